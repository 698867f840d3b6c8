from pathlib import Path

import pytest

from percent_ray.recipe import load as recipes
from percent_ray.recipe.load import RecipeError
from percent_ray.recipe.process import notes

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
NFT = RECIPES / "shapes_nft.yaml"


def test_the_reverse_process_has_nothing_to_say():
    assert notes(recipes.load(RECIPES / "shapes_pec.yaml")) == []


def test_a_run_in_rays_copy_of_the_working_directory_is_told():
    folder = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1/runs"
    [line] = notes(recipes.load(RECIPES / "shapes_pec.yaml", ["--run.folder", folder]))
    assert line.startswith(f"run.folder {folder}: is {folder}, in Ray's copy of --working-dir")


def test_the_forward_process_says_what_it_does_not_measure_and_not_read():
    measured, unread = notes(recipes.load(NFT))
    assert "policy and perceptual entropy have no meaning and are not measured" in measured
    assert unread == (
        "not read under learner.process forward: objective.clip_low 0.001, "
        "objective.clip_high 0.001"
    )
    set_more = ["--sampling.noise_level", "0.9", "--perceptual.decode", "clean"]
    [_, unread] = notes(recipes.load(NFT, set_more))
    assert "sampling.noise_level 0.9, perceptual.decode clean, " in unread
    [_, unread] = notes(recipes.load(NFT, ["--forward.loss", "awm", "--forward.beta", "0.1"]))
    assert unread.endswith("forward: forward.beta 0.1")


def test_a_key_that_is_read_is_not_called_unread():
    """The decoder reads its batch size, and a shifted distribution no share of the schedule."""
    lines = notes(recipes.load(NFT, ["--perceptual.batch_size", "8"]))
    assert "batch_size" not in " ".join(lines)
    recipes.load(NFT, ["--sampling.train_fraction", "0.01"])


def test_guidance_is_told():
    line = notes(recipes.load(NFT, ["--model.guidance", "4.5"]))[1]
    assert line.startswith("model.guidance 4.5: groups are drawn with it and the velocity under it")


def test_a_layout_that_cannot_tell_signal_from_noise_is_told():
    pec = RECIPES / "shapes_pec.yaml"
    [line] = notes(recipes.load(pec, ["--learner.micro_batch", "72"]))
    assert "an optimizer step of 72 images is one micro-batch" in line
    shared = ["--runtime.learner.workers", "4", "--learner.micro_batch", "6"]
    [line] = notes(recipes.load(pec, shared))
    assert "6 groups do not divide among 4 learners" in line


@pytest.mark.parametrize(("key", "value"), [("workers", "13"), ("max_workers", "16")])
def test_workers_that_can_have_no_group_are_told(key, value):
    pec = RECIPES / "shapes_pec.yaml"
    [line] = notes(recipes.load(pec, [f"--runtime.perception.{key}", value]))
    assert line == (
        f"runtime.perception.{key} {value}: at most 12 groups are in flight (data.groups_per_step "
        f"6 x (runtime.max_staleness 1 + 1)), {int(value) - 12} workers would never have one; set "
        "12 or less"
    )
    assert notes(recipes.load(pec, ["--runtime.perception.workers", "12"])) == []


def test_a_tiny_decoder_that_is_not_used_is_told():
    pec = RECIPES / "shapes_pec.yaml"
    [line] = notes(recipes.load(pec, ["--perceptual.tiny_path", "shapes/tiny"]))
    assert line == "perceptual.decoder full: perceptual.tiny_path shapes/tiny is not read"
    tiny = ["--perceptual.decoder", "tiny", "--perceptual.decode", "clean"]
    assert notes(recipes.load(pec, tiny)) == []
    [line] = notes(recipes.load(pec, [*tiny, "--perceptual.spaces", "[]"]))
    assert line.startswith("perceptual.decoder tiny is not loaded: no transition is scored")
    [_, unread] = notes(recipes.load(NFT, ["--perceptual.decoder", "tiny"]))
    assert "perceptual.decoder tiny" in unread
    [line] = notes(recipes.load(pec, ["--perceptual.decoder", "tiny"]))
    assert "decoded noisy" in line
    assert "compare_decoders.py" in line


def test_keys_of_the_forward_process_are_not_read_by_the_other():
    recipe = recipes.load(RECIPES / "shapes_pec.yaml", ["--learner.old.most", "0.9"])
    assert notes(recipe) == ["not read under learner.process reverse: learner.old.most 0.9"]


def test_a_ratio_that_leaves_the_age_of_groups_out_is_told():
    replayed = ["--objective.old_log_prob", "replayed", "--runtime.max_staleness"]
    [line] = notes(recipes.load(RECIPES / "shapes_pec.yaml", [*replayed, "2"]))
    assert "begins at 1 also for groups that older weights have drawn" in line
    assert "(runtime.max_staleness 2)" in line
    assert notes(recipes.load(RECIPES / "shapes_pec.yaml", [*replayed, "0"])) == []


@pytest.mark.parametrize("method", ["pec", "pcvae", "entropy_reg", "clip_cov", "kl_cov"])
def test_a_method_of_transitions_is_refused_in_one_line(method):
    with pytest.raises(RecipeError) as caught:
        recipes.load(NFT, ["--method.name", method])
    [problem] = caught.value.problems
    assert problem == (
        f"method.name {method} acts on denoising steps, which learner.process forward does not "
        "have; set learner.process reverse, or method.name to one of diverse_grpo, flow_grpo, "
        "gardo, marginal_pec, uni_tmpo"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--learner.process", "reverse", "--sampling.solver", "dpmpp_2m"], "is of the forward"),
        (["--forward.times", "0"], "forward.times 0 is for a schedule; set it to 1 or more"),
        (
            ["--forward.distribution", "schedule", "--forward.times", "11"],
            "forward.times 11 is more than the schedule's 10",
        ),
        (
            ["--forward.distribution", "schedule", "--sampling.train_fraction", "0.01"],
            "sampling.train_fraction: a trained fraction",
        ),
        (["--learner.old.first", "0.9"], "learner.old.first 0.9 is above learner.old.most 0.3"),
        (["--learner.process", "backward"], "learner.process: got 'backward'"),
    ],
)
def test_what_does_not_fit_the_process(changes, said):
    with pytest.raises(RecipeError) as caught:
        recipes.load(NFT, changes)
    [problem] = caught.value.problems
    assert said in problem


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "--method.name pec --method.native true --method.relative true",
            "method.relative is about shaped rewards, method.native has none; set one to false",
        ),
        (
            "--method.name kl_cov --method.spaces [pickscore] --perceptual.steps 2",
            "perceptual.steps 2: kl_cov compares groups step by step",
        ),
        (
            "--method.name entropy_reg --sampling.kind cps --sampling.train_fraction .5",
            "method.name entropy_reg weighs log pi, and that of sampling.kind cps is another size",
        ),
    ],
)
def test_methods_that_would_end_the_first_step_are_refused(overrides, message):
    with pytest.raises(RecipeError) as caught:
        recipes.load(None, overrides.split())
    assert any(line.startswith(message) for line in caught.value.problems)
