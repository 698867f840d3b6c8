"""The main loop: sample, perceive, shape, update, publish. It knows roles, not where they run.

    groups of step n+1   sample ─ perceive ─┐   sample ─ perceive ─┐
    groups of step n     ───────────────────┼─ shape ─ update ─ publish
                                            └ each group is perceived while the next is sampled

With max_staleness 1 the groups of step n+1 are on their way while the learner works on step n.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from percent_ray.data.prompts import PromptStream
from percent_ray.objective.strength import State
from percent_ray.recipe.tree import Recipe
from percent_ray.shape import Group, describe, shape
from percent_ray.slots import Slot, Slots
from percent_ray.types import Perception, Prompt, ShapedBatch, Span, Trajectory, Update


class Roles(Protocol):
    """The three roles, in this process or on a cluster."""

    async def sample(self, group_id: int, prompt: Prompt, version: int) -> Trajectory:
        """One group, drawn by exactly `version`."""
        ...

    async def perceive(self, trajectory: Trajectory, *, pictures: bool) -> Perception:
        """What the frozen models say of it."""
        ...

    async def update(self, batch: ShapedBatch) -> Update:
        """One learner step; its weights are the next version, held until they are published."""
        ...

    async def publish(self, version: int) -> None:
        """From now on groups may be sampled under `version`."""
        ...

    async def save(self, folder: Path, oldest: int) -> None:
        """Write weights, optimizer and EMA into `folder`, and the weights that groups were drawn by
        of the versions `oldest` and later."""
        ...

    def queued(self) -> Mapping[str, int]:
        """Groups that wait for a worker, by role."""
        ...


class Observer(Protocol):
    """What the loop tells of a run. It must neither raise nor wait."""

    def failed(self, step: int, groups: Sequence[Mapping[str, str]]) -> None:
        """The lines of `Perception.failures` of each group of a step or of a probe before it."""
        ...

    def step(self, step: int, metrics: Mapping[str, float], spans: Sequence[Span]) -> None: ...

    def probe(
        self, version: int, metrics: Mapping[str, float], pictures: Sequence[tuple[str, Any]]
    ) -> None:
        """`pictures`: (prompt, uint8 [K, 3, h, w]) of each probe group."""
        ...


@dataclass
class Progress:
    """Where a run stands; with the weights, all that a checkpoint holds."""

    version: int = 0
    shape_state: State = field(default_factory=dict)
    oldest: int | None = None
    """The first version whose weights the next groups are drawn by; None: this one."""


Checkpoint = Callable[[Progress], Any]
"""Awaitable that writes a checkpoint of the given progress."""


class Loop:
    """One run of the five verbs over `roles`."""

    def __init__(
        self,
        recipe: Recipe,
        roles: Roles,
        *,
        stream: PromptStream,
        probes: Sequence[Prompt],
        observer: Observer,
        checkpoint: Checkpoint,
        progress: Progress,
    ) -> None:
        self.recipe = recipe
        self.roles = roles
        self.stream = stream
        self.probes = probes
        self.observer = observer
        self.checkpoint = checkpoint
        self.progress = progress
        self.stopping = False
        """Set from outside: finish the step at hand, write a checkpoint, return. There is no last
        probe: whoever stops a run may not wait for long."""
        self._recorded = time.time()
        self._groups: dict[int, asyncio.Task[Group]] = {}
        self._slots = Slots(
            groups_per_step=recipe.data.groups_per_step,
            max_staleness=recipe.runtime.max_staleness,
            checkpoint_every=recipe.run.checkpoint_every,
            steps=recipe.run.steps,
            version=progress.version,
            oldest=progress.oldest,
        )
        self._saved = progress.version
        """The version of the last checkpoint."""

    async def run(self) -> Progress:
        """Train until `run.steps`; returns where the run stands. Errors of any role end it."""
        try:
            await self.roles.publish(self.progress.version)
            self._recorded = time.time()
            while self.progress.version < self.recipe.run.steps and not self.stopping:
                await self._step()
            await self._save()
            if not self.stopping:
                await self._probe()
        finally:
            for task in self._groups.values():
                task.cancel()
            await asyncio.gather(*self._groups.values(), return_exceptions=True)
        return self.progress

    async def _step(self) -> None:
        """Consume the groups of one step and publish the next version."""
        step = self.progress.version
        every = self.recipe.monitor.probe_every
        probe = await self._probe() if every and step % every == 0 else ()
        self._launch()
        waiting = self.roles.queued()
        groups = await self._gathered(self._slots.groups(step))
        arrived = time.time()
        self.observer.failed(step, [perception.failures for _, perception in groups])
        batch, state, metrics = shape(self.recipe, step, groups, self.progress.shape_state, probe)
        shaped = Span("shape", "driver", arrived, time.time())
        update = await self.roles.update(batch)
        published = time.time()
        await self.roles.publish(update.version)
        self._slots.publish(update.version)
        self.progress = Progress(update.version, state, self._slots.drawn_by(update.version))
        spans = [
            *(span for group in groups for span in (group[0].span, group[1].span)),
            shaped,
            update.span,
            Span("publish", "driver", published, time.time()),
        ]
        if not self.stopping:
            self._launch()
        metrics |= update.metrics
        metrics |= {f"queue/{role}": float(count) for role, count in waiting.items()}
        metrics |= self._timings(spans)
        # Before the checkpoint: a run that is killed between the two repeats the step. The other
        # way round, the resumed run would go on behind a step that no record has.
        self.observer.step(step, metrics, spans)
        if update.version % self.recipe.run.checkpoint_every == 0:
            await self._save()

    async def _save(self) -> None:
        if self._saved < self.progress.version:
            await self.checkpoint(self.progress)
            self._saved = self.progress.version

    def _launch(self) -> None:
        """Send every group on its way that has a free slot."""
        for slot in self._slots.acquire():
            group = self._group(slot, self.stream.prompt(slot.group_id), pictures=False)
            self._groups[slot.group_id] = asyncio.create_task(group)

    async def _gathered(self, numbers: Sequence[int]) -> list[Group]:
        """The groups of these ids, which are then forgotten. Where one fails the others are not, so
        that the end of the run takes them along."""
        groups = await asyncio.gather(*(self._groups[number] for number in numbers))
        for number in numbers:
            del self._groups[number]
        return groups

    async def _group(self, slot: Slot, prompt: Prompt, *, pictures: bool) -> Group:
        trajectory = await self.roles.sample(slot.group_id, prompt, slot.version)
        return trajectory, await self.roles.perceive(trajectory, pictures=pictures)

    async def _probe(self) -> Sequence[Group]:
        """Fixed prompts with fixed noise under the version that is out: what the run has changed,
        free of sampling noise. Probe groups have negative ids and are never learned from."""
        if not self.recipe.monitor.probe_every:
            return ()
        version = self.progress.version
        for number, prompt in enumerate(self.probes):
            probe = self._group(Slot(-1 - number, version), prompt, pictures=True)
            self._groups[-1 - number] = asyncio.create_task(probe)
        groups = await self._gathered([-1 - number for number in range(len(self.probes))])
        self.observer.failed(version, [perception.failures for _, perception in groups])
        metrics = describe(self.recipe, groups, every=True)
        pictures = [(t.prompt.text, p.thumbnails) for t, p in groups]
        self.observer.probe(version, metrics, pictures)
        return groups

    def _timings(self, spans: Sequence[Span]) -> dict[str, float]:
        """Seconds by stage, summed over workers, and seconds and images a second from the last
        step's record to now: a probe or a checkpoint in between counts."""
        since, self._recorded = self._recorded, time.time()
        seconds = self._recorded - since
        stages = dict.fromkeys(span.stage for span in spans)
        timings = {
            f"time/{stage}_s": sum(span.seconds for span in spans if span.stage == stage)
            for stage in stages
        }
        images = self.recipe.trained_images
        return timings | {"time/step_s": seconds, "throughput/images_per_s": images / seconds}
