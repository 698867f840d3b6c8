"""Roles that move metadata only: the loop's own behaviour, in milliseconds."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from percent_ray.types import Perception, Prompt, ShapedBatch, Span, Trajectory, Update

STD = np.array([0.7, 0.5, 0.3], np.float32)


class FakeRoles:
    """Rollouts and perceptions take a random while, as those of a cluster do."""

    def __init__(self, group_size: int = 4, dropped: Sequence[int] = (), seed: int = 0) -> None:
        self.group_size = group_size
        self.dropped = set(dropped)
        self.version = 0
        self.published: list[int] = []
        self.sampled: list[tuple[int, int]] = []
        self.consumed: list[ShapedBatch] = []
        self.saved: list[Path] = []
        self._random = random.Random(seed)

    async def _work(self) -> None:
        await asyncio.sleep(self._random.random() * 0.003)

    async def sample(self, group_id: int, prompt: Prompt, version: int) -> Trajectory:
        assert version in self.published
        self.sampled.append((group_id, version))
        start = time.time()
        await self._work()
        return Trajectory(
            group_id=group_id,
            prompt=prompt,
            version=version,
            steps=range(3),
            std=STD,
            entropy=0.5 * np.log(2 * np.pi * np.e) + np.log(STD),
            scored=(0, 1, 2),
            payload=f"payload-{group_id}",
            condition=f"condition-{group_id}",
            span=Span("sample", "fake", start, time.time(), group_id),
        )

    async def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        start = time.time()
        await self._work()
        k = self.group_size
        group_id = trajectory.group_id
        draws = np.random.default_rng(abs(group_id))
        return Perception(
            group_id=group_id,
            rewards={"pickscore": draws.random(k).astype(np.float32)},
            log_p_perc={"pickscore": draws.random((k, 3)).astype(np.float32)},
            log_p_policy=draws.random((k, 3)).astype(np.float32),
            features={},
            variance={"latent": 1.0, "pixel": 0.1},
            thumbnails=np.zeros((k, 3, 8, 8), np.uint8) if pictures else None,
            failures={"pickscore": "pickscore: broken"} if group_id in self.dropped else {},
            dropped=group_id in self.dropped,
            span=Span("perceive", "fake", start, time.time(), group_id),
        )

    async def update(self, batch: ShapedBatch) -> Update:
        start = time.time()
        await self._work()
        self.consumed.append(batch)
        self.version = batch.version + 1
        span = Span("update", "fake", start, time.time())
        return Update(self.version, {"loss/total": 0.0}, span)

    async def publish(self, version: int) -> None:
        self.published.append(version)

    async def save(self, folder: Path, oldest: int) -> None:
        self.saved.append(folder)

    def queued(self) -> Mapping[str, int]:
        return {"rollout": 0, "perception": 0}


class FakeObserver:
    def __init__(self) -> None:
        self.steps: list[tuple[int, Mapping[str, float], Sequence[Span]]] = []
        self.probes: list[int] = []
        self.probed: list[Mapping[str, float]] = []
        self.failures: list[tuple[int, Sequence[Mapping[str, str]]]] = []

    def failed(self, step: int, groups: Sequence[Mapping[str, str]]) -> None:
        if any(groups):
            self.failures.append((step, groups))

    def step(self, step: int, metrics: Mapping[str, float], spans: Sequence[Span]) -> None:
        self.steps.append((step, dict(metrics), list(spans)))

    def probe(
        self, version: int, metrics: Mapping[str, float], pictures: Sequence[tuple[str, Any]]
    ) -> None:
        self.probes.append(version)
        self.probed.append(dict(metrics))
