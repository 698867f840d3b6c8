import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from percent_ray.learn.batch import Images, chunks, groups_of, micro_batches
from tests.learn.fake import FakePolicy, draw_batch, fake_recipe

READ = ("latents", "log_probs")


def test_chunks_are_a_partition_that_depends_on_seed_and_step():
    first = chunks([13, 12], 2, seed=1, version=3)
    assert [len(chunk) for chunk in first] == [13, 12]
    assert sorted([*first[0], *first[1]]) == list(range(25))
    assert first == chunks([13, 12], 2, seed=1, version=3)
    assert first != chunks([13, 12], 2, seed=1, version=4)
    assert first != chunks([13, 12], 2, seed=2, version=3)
    assert set(first[0]) != set(chunks([13, 12], 2, seed=1, version=4)[0]), "other images together"


@pytest.mark.parametrize("updates", [1, 2, 3, 4])
def test_every_chunk_has_its_share_of_every_group_in_the_groups_order(updates):
    parts = chunks([24] * 6, updates, seed=1, version=0)
    for part in parts:
        groups = [image // 24 for image in part]
        assert groups == sorted(groups)
        assert Counter(groups) == dict.fromkeys(range(6), 24 // updates)
    assert sorted(parts[0]) != parts[0], "in a random order inside of a group"


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_share_a_chunk_in_equally_many_micro_batches(world, size):
    chunk = [5, 3, 8, 1, 9, 2, 7]
    ranks = [list(micro_batches(chunk, rank=rank, world=world, size=size)) for rank in range(world)]
    assert len({len(mine) for mine in ranks}) == 1
    real = [i for mine in ranks for images, padding in mine if not padding for i in images]
    assert sorted(real) == sorted(chunk)
    assert all(0 < len(images) <= size for mine in ranks for images, _ in mine)


@pytest.mark.parametrize("world", range(2, 9))
@pytest.mark.parametrize(("groups", "updates"), [(48, 2), (47, 2), (41, 3)])
def test_a_rank_takes_images_of_its_share_of_the_groups_alone(groups, updates, world):
    """Of the same ones in every optimizer step; of those on a border both ranks do."""
    sizes = [24] * groups
    parts = chunks(sizes, updates, seed=1, version=0)
    ranks = [groups_of(sizes, parts, rank=rank, world=world) for rank in range(world)]
    assert {group for mine in ranks for group in mine} == set(range(groups))
    assert max(len(mine) for mine in ranks) <= math.ceil(groups / world) + 1
    assert sum(len(mine) for mine in ranks) <= groups + world - 1
    if groups % world == 0:
        assert {len(mine) for mine in ranks} == {groups // world}
    for rank, mine in enumerate(ranks):
        for part in parts:
            for images, _ in micro_batches(part, rank=rank, world=world, size=5):
                assert {image // 24 for image in images} <= set(mine), "padding, too"


def test_a_rank_without_an_image_takes_one_group_for_padding():
    parts = chunks([1, 1, 1], 1, seed=1, version=0)
    assert groups_of([1, 1, 1], parts, rank=3, world=4) == [0]


def test_groups_without_tables_are_counted_and_cannot_be_taken(tmp_path):
    batch = draw_batch(FakePolicy(), fake_recipe(tmp_path))
    rows = [replace(batch.rows[0], payload=None, condition=None), *batch.rows[1:]]
    images = Images(replace(batch, rows=tuple(rows)), READ)
    assert len(images) == 24
    taken = images.take([7], torch.device("cpu"), padding=False)
    whole = Images(batch, READ).take([7], torch.device("cpu"), padding=False)
    assert torch.equal(taken.columns["latents"], whole.columns["latents"])
    with pytest.raises(KeyError):
        images.take([0], torch.device("cpu"), padding=False)


def test_take_copies_only_its_rows(tmp_path):
    recipe = fake_recipe(tmp_path)
    batch = draw_batch(FakePolicy(), recipe)
    images = Images(batch, READ)
    taken = images.take([7, 0], torch.device("cpu"), padding=False)
    latents = batch.rows[1].payload["latents"].chunk(0).to_numpy_ndarray()
    assert taken.columns["latents"].shape == (2, 4, 2, 4, 4)
    assert (taken.columns["latents"][0].numpy() == latents[1]).all()
    assert torch.equal(taken.weights.advantage[0], batch.rows[1].weights.advantage[1])
    assert set(taken.columns) == set(READ)
    assert taken.ids == [(1, 1), (0, 0)]
    assert taken.condition["embeds"].shape == (2, 3)


def test_payload_and_weights_must_belong_together(tmp_path):
    batch = draw_batch(FakePolicy(), fake_recipe(tmp_path))
    rows = list(batch.rows)
    rows[2] = replace(rows[2], weights=rows[2].weights.map(lambda weight: weight[:4]))
    with pytest.raises(ValueError, match="group 2 has 6 images and weights of 4"):
        Images(replace(batch, rows=tuple(rows)), READ)
    rows[2] = replace(rows[2], weights=batch.rows[2].weights.map(lambda weight: weight[:, :2]))
    with pytest.raises(ValueError, match="group 2 has 3 trained steps and weights of 2"):
        Images(replace(batch, rows=tuple(rows)), READ)


def test_groups_of_one_step_have_equally_many_trained_steps(tmp_path):
    short = draw_batch(FakePolicy(), fake_recipe(tmp_path, sampling={"steps": 3}), groups=1)
    long = draw_batch(FakePolicy(), fake_recipe(tmp_path), groups=1)
    rows = short.rows + long.rows
    with pytest.raises(ValueError, match=r"\[2, 3\] trained steps"):
        Images(replace(long, rows=rows), READ)
