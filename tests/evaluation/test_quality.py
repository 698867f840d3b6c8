from dataclasses import replace

import pytest
import torch

from percent_ray.evaluation.generate import Pictures, PolicySource
from percent_ray.evaluation.quality import judge_pictures, measure
from percent_ray.flow import noise, sampler
from percent_ray.objective.diversity import cosine_distance, feature_variance, vendi
from percent_ray.scorers.base import Report
from percent_ray.scorers.geneval import GenEval
from percent_ray.types import Prompt
from tests.learn.fake import FakePolicy

PROMPTS = [Prompt("a red circle"), Prompt("a blue square")]


class Halves:
    """Decodes to a picture of the latent's signs."""

    def decode(self, latents):
        return (latents[:, :1].expand(-1, 3, -1, -1) > 0).to(torch.uint8) * 255


def made(**changes):
    options = {"images": 5, "seed": 1, "batch_size": 2} | changes
    source = PolicySource(FakePolicy(), Halves(), steps=3, batch_size=options.pop("batch_size"))
    return [source.draw(prompt, number, **options) for number, prompt in enumerate(PROMPTS)]


def test_pictures_are_the_ode_from_noise_by_ids_whatever_the_batches():
    first, second = made()
    policy = FakePolicy()
    start = noise.group_noise(1, 1, range(5), noise.INITIAL, policy.latent_shape)
    condition = policy.encode(["a blue square"])
    expected = sampler.ode(
        lambda x, sigma: policy.velocity(x, sigma, condition), start, policy.sigmas(3)
    )
    torch.testing.assert_close(second.latents, expected)
    assert (first.prompt.text, first.images.shape) == ("a red circle", (5, 3, 4, 4))
    again = made(batch_size=5)
    torch.testing.assert_close(again[0].latents, first.latents)
    assert not torch.equal(made(seed=2)[0].latents, first.latents)


class Colour:
    """Scores brightness; encodes mean colours."""

    def score(self, images, prompts):
        return images.float().mean((1, 2, 3)) / 255

    def report(self, images, prompts):
        return Report(100 * self.score(images, prompts), "percent")

    def encode(self, images):
        return images.float().mean((2, 3)) + 1


def judged(groups, judges, encoders=None):
    return list(judge_pictures(groups, judges=judges, encoders=encoders or {}))


def picture(seed, tag):
    source = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (6, 3, 4, 4), generator=source, dtype=torch.uint8)
    metadata = {"tag": tag, "include": [{"class": "circle", "count": 1}]}
    return Pictures(Prompt("p", metadata), images, torch.randn(6, 2, 4, 4, generator=source))


def test_measures_are_means_over_prompts():
    groups = [picture(0, "colors"), picture(1, "counting")]
    found = measure(
        judged(
            groups, judges={"pickscore": Colour(), "clip": Colour()}, encoders={"dino": Colour()}
        )
    )
    brightness = torch.stack([g.images.float().mean() / 255 for g in groups]).mean().item()
    assert found["quality/clip"] == pytest.approx(100 * brightness), "in its report's unit"
    features = [Colour().encode(g.images) for g in groups]
    for name, function in (
        ("vendi", vendi),
        ("variance", feature_variance),
        ("distance", cosine_distance),
    ):
        expected = sum(map(function, features)) / 2
        assert found[f"{name}/dino"] == pytest.approx(expected)
        latents = sum(function(g.latents.flatten(1)) for g in groups) / 2
        assert found[f"{name}/vae"] == pytest.approx(latents)


def test_what_all_pictures_share_is_no_loss_of_the_centred_latents():
    """A brighter background of every picture raises each cosine of the latents as they are."""
    groups = [picture(0, "colors"), picture(1, "counting")]
    shifted = [replace(group, latents=group.latents + 3.0) for group in groups]
    # It has tasks, with means of their own.
    judges = {"geneval": GenEval(lambda images, records: [{"circle": []} for _ in images], "")}
    before, after = (measure(judged(g, judges=judges)) for g in (groups, shifted))
    assert after["vendi/vae"] < 0.5 * before["vendi/vae"]
    assert after["vendi/vae_centred"] == pytest.approx(before["vendi/vae_centred"], rel=1e-4)
    mean = torch.cat([group.latents for group in groups]).flatten(1).mean(0)
    expected = sum(vendi(group.latents.flatten(1) - mean) for group in groups) / 2
    assert before["vendi/vae_centred"] == pytest.approx(expected)
    assert "variance/vae_centred" not in before


def test_some_of_the_pictures_are_measured_as_if_they_were_all():
    group = picture(0, "colors")
    half = Pictures(group.prompt, group.images[[4, 1, 2]], group.latents[[4, 1, 2]])
    options = {"judges": {"clip": Colour()}, "encoders": {"dino": Colour()}}
    [whole], [expected] = judge_pictures([group], **options), judge_pictures([half], **options)
    found = measure([whole.chosen(torch.tensor([4, 1, 2]))])
    assert found == pytest.approx(measure([expected]))


def test_geneval_is_the_official_verdict_by_task():
    def detector(images, records):
        right = [i % 3 == 0 for i in range(len(images))]
        box = {"box": [0, 0, 2, 2], "score": 0.95, "color": "red"}
        return [{"circle": [box] if ok else []} for ok in right]

    groups = [picture(0, "colors"), picture(1, "counting")]
    found = measure(judged(groups, judges={"geneval": GenEval(detector, "")}))
    for name in ("quality/geneval", "geneval/colors", "geneval/counting"):
        assert found[name] == pytest.approx(1 / 3)
    assert found["failed/geneval/colors/missing"] == pytest.approx(2 / 3)
    assert found["failed/geneval/colors/color"] == 0.0
