"""How many images a decoder takes in one call. No GPU is at hand here: the numbers of a card are a
stand-in, the decoders are real."""

from dataclasses import dataclass

import pytest
import torch

from percent_ray.models import batch, sd3
from percent_ray.models.decoder import load_tiny
from percent_ray.recipe.tree import Role, Runtime
from tests.models.cases import CPU, noise
from tests.tiny import build_tiny, sd3_config

SIZE = 16, 16
IMAGE = 3 * 16 * 16
"""Bytes of one in uint8."""


@dataclass
class Card:
    one: int
    """Bytes that an image takes."""
    left: int
    calls: int = 0

    def free(self) -> int:
        assert self.calls == 1, "what a first call keeps is not free"
        return self.left

    def peak(self, work) -> int:
        self.calls += 1
        assert work().shape == (1, 3, *SIZE)
        return self.one


@pytest.fixture(scope="module")
def decoder(folder):
    return sd3.load_decoder(sd3_config(folder), device=CPU)


@pytest.mark.parametrize(
    ("left", "images", "expected"),
    [
        (10**9, 24, 48),
        (48 * 1000 / 0.8 + 1, 0, 48),
        (48 * 1000 / 0.8 - 1, 0, 32),
        (15 * 1000 / 0.8, 0, 12),
        (3500, 0, 2),
        (10, 0, 1),
        # 100 images before and after they are joined.
        ((16 * 1000 + 200 * IMAGE) / 0.8 + 1, 100, 16),
        ((16 * 1000 + 200 * IMAGE) / 0.8 - 9, 100, 12),
    ],
)
def test_the_largest_that_fits_a_share_of_the_free_memory(decoder, left, images, expected):
    card = Card(1000, int(left))
    chosen, why = batch.choose("auto", decoder, SIZE, images=images, card=card)
    assert chosen == expected
    assert why.startswith(f"perceptual.batch_size auto: {expected} images; one takes ")


def test_a_number_is_taken_as_it_is_and_a_cpu_takes_48(decoder):
    assert batch.choose(7, decoder, SIZE, images=9, card=Card(1, 0)) == (7, "")
    chosen, why = batch.choose("auto", decoder, SIZE, images=9, card=None)
    assert chosen == 48
    assert "on a CPU" in why


def test_the_blank_latent_is_that_of_the_runs_size(decoder, folder, tmp_path):
    build_tiny(tmp_path)
    tiny = load_tiny(sd3_config(folder), str(tmp_path), default="", device=CPU)
    for each in (decoder, tiny):
        assert each.blank((16, 32)).shape == (1, 4, 8, 16)
        assert each.decode(each.blank((16, 32))).shape == (1, 3, 16, 32)


class Memory:
    """torch.cuda's numbers of 1000 bytes: 300 are free, 400 ours, of which 250 are used."""

    def __init__(self, monkeypatch):
        for name, value in (
            ("mem_get_info", (300, 1000)),
            ("memory_allocated", 250),
            ("memory_reserved", 400),
            ("max_memory_allocated", 900),
            ("reset_peak_memory_stats", None),
            ("synchronize", None),
        ):
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


@pytest.mark.parametrize(
    ("runtime", "free"),
    [
        (Runtime(), 450),
        (Runtime(perception=Role(gpus=0.5)), 250),
        (Runtime(perception=Role(gpus=0.9)), 450),
        (Runtime(perception=Role(gpus=0.5), backend="local"), 450),
    ],
)
def test_what_is_free_is_what_is_cached_too_and_within_the_workers_share(
    monkeypatch, runtime, free
):
    Memory(monkeypatch)
    card = batch.card(torch.device("cuda"), runtime)
    assert card is not None
    assert card.free() == free
    assert card.peak(lambda: noise(1)) == 650
    assert batch.card(CPU, runtime) is None
