"""What reward costs where nothing is trained: choosing among the base model's own pictures.

Weights exp(reward / beta) on the base's pictures are the optimum of E[reward] - beta KL(pi || base)
over all policies. No method has to lose more diversity at a reward than this choice does; how much
more it loses is what its training, not the reward, has cost.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from percent_ray.evaluation.quality import Judged, measure
from percent_ray.flow.noise import generator

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""std / beta, with the reward's std among the pictures of a prompt; 0 is the base itself."""
DRAWS = 8
"""Choices that are averaged, the same random numbers for every strength."""


def tilted(
    rewards: Float[Tensor, " N"], beta: float, gumbel: Float[Tensor, " N"], size: int
) -> Int64[Tensor, " size"]:
    """Indices of `size` pictures drawn without replacement with weights exp(reward / beta).

    `gumbel` is standard Gumbel noise, one draw for each picture (the Gumbel-top-k trick): with the
    same noise a smaller beta only moves the choice uphill. Raises ValueError where there are fewer
    than `size`.
    """
    if len(rewards) < size:
        raise ValueError(f"{size} pictures cannot be chosen from {len(rewards)}; set a larger pool")
    return (rewards.double() / beta + gumbel).topk(size).indices


def selection(
    judged: Sequence[Judged], reward: str, *, size: int, seed: int
) -> list[dict[str, float]]:
    """`quality.measure` of `size` pictures a prompt, chosen by the score `reward` with each of
    `STRENGTHS`, mean over `DRAWS` choices. The first is of pictures that are not chosen by it."""
    scores = [group.reports[reward].values.double() for group in judged]
    std = float(np.sqrt(np.mean([values.var().item() for values in scores])))
    rows: list[dict[str, float]] = []
    for strength in STRENGTHS:
        beta = std / strength if strength else math.inf
        draws = [
            measure(
                [
                    group.chosen(
                        tilted(values, beta, _gumbel(seed, number, draw, len(values)), size)
                    )
                    for number, (group, values) in enumerate(zip(judged, scores, strict=True))
                ]
            )
            for draw in range(DRAWS)
        ]
        rows.append({name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]})
    return rows


def _gumbel(seed: int, number: int, draw: int, count: int) -> Float64[Tensor, " count"]:
    source = generator("selection", seed, number, draw)
    uniform = torch.rand(count, generator=source, dtype=torch.float64).clamp_min(1e-300)
    return -(-uniform.log()).log()
