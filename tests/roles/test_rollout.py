"""Which weights a group is drawn with."""

import pytest
import torch

from percent_ray.data import arrow
from percent_ray.roles.rollout import RolloutWorker
from tests.end_to_end import world as worlds


def test_a_group_is_drawn_with_the_weights_it_comes_with(world, tmp_path):
    """Also with the model as it was loaded, after others: a group of a run's first steps."""
    recipe, prompt = worlds.recipe(world, tmp_path), worlds.first(worlds.recipe(world, tmp_path))
    worker = RolloutWorker(recipe, worker="rollout")
    first = worker.sample(3, prompt, 0).payload
    assert worker._policy is not None
    changed = {n: torch.ones_like(p) for n, p in worker._policy.trainable().items()}
    checksum = arrow.checksum(changed)
    later = worker.sample(3, prompt, 1, arrow.pack(changed), checksum).payload
    assert later != first
    assert worker.sample(3, prompt, 0).payload == first
    assert worker.sample(3, prompt, 1, arrow.pack(changed), checksum).payload == later


def test_weights_that_are_not_the_published_ones_are_refused(world, tmp_path):
    recipe = worlds.recipe(world, tmp_path)
    worker = RolloutWorker(recipe, worker="rollout")
    worker.ready()
    assert worker._policy is not None
    weights = {n: p.detach().clone() for n, p in worker._policy.trainable().items()}
    checksum = arrow.checksum(weights)
    next(iter(weights.values())).view(-1)[0] += 1
    with pytest.raises(ValueError, match=f"have checksum .*, expected {checksum}"):
        worker.sample(3, worlds.first(recipe), 1, arrow.pack(weights), checksum)
    weights.popitem()
    with pytest.raises(ValueError, match=r"have \d+ tensors, the model trains \d+"):
        worker.sample(3, worlds.first(recipe), 1, arrow.pack(weights), arrow.checksum(weights))
