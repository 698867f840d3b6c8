import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from percent_ray.data import arrow
from percent_ray.models import batch
from percent_ray.models.decoder import VaeDecoder
from percent_ray.recipe.tree import Perceptual, Recipe, Sampling, Scorer
from percent_ray.roles.perception import PerceptionWorker, retried
from percent_ray.roles.rollout import RolloutWorker
from percent_ray.scorers.base import load_scorer
from percent_ray.types import Perception, Prompt, Span, Trajectory
from tests.end_to_end import world as worlds

K, S = 4, 3
STD = np.array([0.7, 0.5, 0.3], np.float32)


class PixelDecoder:
    """Latents [N, 3, h, w] as pixels, squashed to 0..1."""

    def decode(self, latents):
        return latents.float().sigmoid().mul(255).round().to(torch.uint8)

    def describe(self):
        return "pixels"


class Brightness:
    """Scores and encodes mean colours; its first `failures` scores go wrong."""

    def __init__(self, failures: int = 0, wrong: float | None = None) -> None:
        self.failures, self.wrong, self.calls = failures, wrong, 0

    def describe(self):
        return "brightness"

    def encode(self, images):
        return images.float().flatten(2).mean(2)

    def score(self, images, prompts):
        self.calls += 1
        assert len(prompts) == len(images)
        values = self.encode(images).mean(1)
        if self.calls <= self.failures:
            if self.wrong is None:
                raise RuntimeError("out of\nmemory")
            values[0] = self.wrong
        return values


def payload() -> object:
    draws = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, 3, 4, 4, generator=draws)

    return arrow.trajectory_table(
        latents=noise(K, S + 1),
        means=noise(K, S),
        log_probs=torch.zeros(K, S),
        final=noise(K),
        steps=range(S),
    )


def perceive(scorers: dict, scored=(0, 1, 2), method=None, **settings) -> Perception:
    recipe = Recipe(
        method=method or {"name": "flow_grpo"},
        scorers={name: settings.get(name, Scorer(weight=1.0)) for name in scorers},
        sampling=Sampling(group_size=K),
        perceptual=Perceptual(spaces=("pickscore",), batch_size=5),
    )
    worker = PerceptionWorker(recipe, worker="test", decoder=PixelDecoder(), scorers=scorers)
    trajectory = Trajectory(
        group_id=7,
        prompt=Prompt("a cat"),
        version=0,
        steps=range(S),
        std=STD,
        entropy=STD,
        scored=scored,
        payload=payload(),
        condition=None,
        span=Span("sample", "test", 0, 1),
    )
    return worker.perceive(trajectory, pictures=True)


def test_perceptual_log_prob_is_that_of_sample_and_mean_decoded():
    seen = perceive({"pickscore": Brightness()}, scored=(0, 2))
    table = payload()
    decode, encode = PixelDecoder().decode, Brightness().encode
    for column, step in enumerate((0, 2)):
        features = [
            encode(decode(arrow.column(table, name)[:, index]))
            for name, index in (("latents", step + 1), ("means", step))
        ]
        ours, theirs = (f / f.norm(dim=1, keepdim=True) * math.sqrt(3) for f in features)
        variance = float(STD[step]) ** 2
        expected = (
            -((ours - theirs) ** 2).mean(1) / (2 * variance)
            - 0.5 * math.log(variance)
            - 0.5 * math.log(2 * math.pi)
        )
        found = torch.tensor(seen.log_p_perc["pickscore"][:, column])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert seen.thumbnails is not None
    assert seen.thumbnails.shape == (K, 3, 4, 4)


def test_a_reward_that_fails_twice_is_tried_again():
    scorer = Brightness(failures=2)
    seen = perceive({"pickscore": scorer})
    assert scorer.calls == 3
    assert not seen.dropped
    assert seen.rewards["pickscore"].shape == (K,)


@pytest.mark.parametrize("wrong", [None, math.nan, math.inf])
def test_a_required_reward_that_keeps_failing_drops_the_group(wrong):
    seen = perceive({"pickscore": Brightness(failures=99, wrong=wrong)})
    assert seen.dropped
    assert "pickscore" not in seen.rewards, "a failed reward is never a number"
    assert len(seen.failures) == 1
    assert "\n" not in seen.failures["pickscore"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda n: torch.zeros(n - 1), "returned float32 [3], expected floats [4]"),
        (lambda n: torch.zeros(1), "returned float32 [1], expected floats [4]"),
        (lambda n: torch.tensor(1.0), "returned float32 [], expected floats [4]"),
        (lambda n: torch.zeros(n, 1), "returned float32 [4, 1], expected floats [4]"),
        (lambda n: torch.zeros(n, dtype=torch.int64), "returned int64 [4], expected floats [4]"),
        (lambda n: torch.zeros(n, dtype=torch.bool), "returned bool [4], expected floats [4]"),
        (lambda n: torch.zeros(n, dtype=torch.complex64), "returned complex64 [4], expected"),
        (lambda n: [0.0] * n, "returned list, expected a tensor"),
        (lambda n: None, "returned NoneType, expected a tensor"),
        (lambda n: torch.full((n,), 1e300, dtype=torch.float64), "4 of 4 not finite"),
    ],
)
def test_an_answer_of_another_length_shape_or_dtype_is_a_failed_reward(answer, said):
    odd = Brightness()
    odd.score = lambda images, prompts: answer(len(images))
    seen = perceive({"pickscore": Brightness(), "clip": odd})
    assert seen.dropped
    assert list(seen.rewards) == ["pickscore"]
    assert seen.failures["clip"].startswith(f"scorers.clip: {said}")


def test_an_answer_with_a_gradient_is_a_reward():
    odd = Brightness()
    odd.score = lambda images, prompts: torch.nn.Parameter(torch.arange(K).float())
    assert perceive({"pickscore": odd}).rewards["pickscore"].tolist() == [0, 1, 2, 3]


def test_an_optional_reward_that_fails_is_left_out_and_counted():
    optional = Scorer(weight=1.0, required=False, retries=0)
    broken = Brightness(failures=99)
    seen = perceive({"pickscore": Brightness(), "clip": broken}, clip=optional)
    assert not seen.dropped
    assert broken.calls == 1
    assert list(seen.rewards) == ["pickscore"]
    assert seen.failures == {"clip": "scorers.clip: RuntimeError: out of"}


def test_a_group_with_scores_of_judges_alone_has_no_reward():
    """Their weight is 0: it would be a reward of 0."""
    scorers = {"pickscore": Brightness(failures=99), "clip": Brightness()}
    settings = {"pickscore": Scorer(weight=1.0, required=False), "clip": Scorer()}
    gardo = {"name": "gardo", "image_spaces": ["clip"], "judges": ["clip"]}
    seen = perceive(scorers, method=gardo, **settings)
    assert list(seen.rewards) == ["clip"]
    assert seen.dropped


def test_the_tiny_decoder_makes_scored_transitions_and_no_finished_image(world):
    recipe = worlds.recipe(world, world)
    trajectory = RolloutWorker(recipe, worker="test").sample(0, Prompt("a red circle"), 0)
    full = PerceptionWorker(recipe, worker="test")
    tiny = PerceptionWorker(worlds.with_tiny_decoder(recipe, world), worker="test")
    assert ["decoder" in line for line in tiny.ready()] == [True, True, False, False]
    assert len(full.ready()) == 3
    expected, seen = (w.perceive(trajectory, pictures=True) for w in (full, tiny))
    assert (seen.thumbnails == expected.thumbnails).all()
    assert (seen.rewards["pickscore"] == expected.rewards["pickscore"]).all()
    assert (seen.features["clip"] == expected.features["clip"]).all()
    vae = AutoencoderTiny.from_pretrained(world / "tiny").requires_grad_(False)
    scorer = load_scorer("pickscore", recipe.scorers["pickscore"], device=torch.device("cpu"))
    features = []
    for name, start in (("latents", 1), ("means", 0)):
        rows = arrow.column(trajectory.payload, name)[:, start:]
        pixels = vae.decode(rows.flatten(0, 1)).sample / 2 + 0.5
        encoded = scorer.encode((pixels.clamp(0, 1) * 255).round().to(torch.uint8))
        features.append(encoded / encoded.norm(dim=1, keepdim=True) * math.sqrt(encoded.shape[1]))
    residual = (features[0] - features[1]).square().mean(1).view(4, 3)
    variance = torch.tensor(trajectory.std) ** 2
    found = -residual / (2 * variance) - 0.5 * variance.log() - 0.5 * math.log(2 * math.pi)
    ours = torch.tensor(seen.log_p_perc["pickscore"])
    torch.testing.assert_close(ours, found, rtol=1e-3, atol=1e-4)
    assert (ours - torch.tensor(expected.log_p_perc["pickscore"])).abs().max() > 1e-3


@pytest.mark.parametrize("way", ["no space", "forward"])
def test_no_tiny_decoder_is_loaded_where_no_transition_is_scored(world, way):
    recipe = worlds.with_tiny_decoder(worlds.recipe(world, world), world)
    if way == "forward":
        recipe = worlds.forward(recipe)
    else:
        fields = recipe.model_dump() | {"method": {"name": "flow_grpo"}}
        fields["perceptual"]["spaces"] = ()
        recipe = Recipe.model_validate(fields)
    lines = PerceptionWorker(recipe, worker="test").ready()
    assert not [line for line in lines if "AutoencoderTiny" in line]


def test_an_automatic_batch_is_what_fits_and_changes_no_number(world, monkeypatch):
    recipe = worlds.with_tiny_decoder(worlds.recipe(world, world), world)
    fields = recipe.model_dump()
    fields["perceptual"]["batch_size"] = "auto"
    automatic = Recipe.model_validate(fields)
    assert all("48 images" in line for line in decoders(PerceptionWorker(automatic, worker="x")))

    class Card:
        """Three finished images fit, and not all of the scored ones once they are joined."""

        def free(self):
            return 12_500

        def peak(self, work):
            work()
            return 1000

    monkeypatch.setattr(batch, "card", lambda device, runtime: Card())
    worker = PerceptionWorker(automatic, worker="test")
    finished, scored = decoders(worker)
    # 2 x 4 and 2 x 24 images of 768 bytes are joined.
    assert "auto: 3 images; one takes" in finished
    assert "auto: 1 images; one takes" in scored
    calls: dict[str, list[int]] = {"AutoencoderKL": [], "AutoencoderTiny": []}
    decode = VaeDecoder.decode

    def counted(decoder, latents):
        calls[type(decoder.vae).__name__].append(len(latents))
        return decode(decoder, latents)

    monkeypatch.setattr(VaeDecoder, "decode", counted)
    trajectory = RolloutWorker(recipe, worker="test").sample(0, Prompt("a red circle"), 0)
    seen = worker.perceive(trajectory, pictures=False)
    assert calls == {"AutoencoderKL": [3, 1], "AutoencoderTiny": [1] * 24}
    expected = PerceptionWorker(recipe, worker="test").perceive(trajectory, pictures=False)
    ours, theirs = (p.log_p_perc["pickscore"] for p in (seen, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def decoders(worker: PerceptionWorker) -> list[str]:
    return [line for line in worker.ready() if line.startswith("decoder")]


def test_retried_raises_the_last_error():
    calls = []

    def score():
        calls.append(1)
        raise OSError(f"call {len(calls)}")

    with pytest.raises(OSError, match="call 3"):
        retried(score, retries=2)
