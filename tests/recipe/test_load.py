import pickle
import re
from itertools import product

import pytest
import yaml
from pydantic import ValidationError

from percent_ray.recipe.load import RecipeError, dump, load
from percent_ray.recipe.tree import Recipe, Role

PROMPTS = "a red circle\na blue square\n"


def problems(*overrides, path=None):
    with pytest.raises(RecipeError) as caught:
        load(path, overrides)
    return list(caught.value.problems)


def test_overrides_beat_file_beats_base_beats_defaults(folder):
    (folder / "base.yaml").write_text("run: {steps: 2, seed: 2}\nlearner: {lr: .2, eps: .2}\n")
    (folder / "file.yaml").write_text("base: base.yaml\nrun: {steps: 3}\nlearner: {lr: .3}\n")
    got = load("file.yaml", ["--learner.lr", ".4", "--run.name=x"])
    assert (got.learner.lr, got.run.steps, got.run.seed, got.run.name) == (0.4, 3, 2, "x")
    assert got.learner.eps == 0.2
    assert got.learner.updates == load(None).learner.updates


def test_a_role_keeps_the_defaults_that_a_file_does_not_name(folder):
    got = load(None, ["--runtime.rollout.cpus", "3"])
    assert got.runtime.rollout == Role(cpus=3, gpus=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("2E+3", 2000.0), ("5", 5.0), (".5", 0.5), ("1.5e-3", 1.5e-3)],
)
def test_numbers_of_the_command_line_and_of_a_file(folder, text, value):
    (folder / "file.yaml").write_text(f"runtime: {{timeout_s: {text}}}\n")
    assert load("file.yaml").runtime.timeout_s == value
    assert load(None, ["--runtime.timeout_s", text]).runtime.timeout_s == value
    assert load(None, [f"--runtime.timeout_s={text}"]).runtime.timeout_s == value


def test_values_are_yaml_and_text_stays_text(folder):
    got = load(
        None,
        [
            *("--learner.betas", "[.8, 0.9]", "--model.t5", "false", "--run.name", "007"),
            *("--scorers.dino.path=shapes/dino", "--monitor.spaces", "[dino, pickscore]"),
        ],
    )
    assert got.learner.betas == (0.8, 0.9)
    assert got.model.t5 is False
    assert got.run.name == "007"
    assert list(got.scorers) == ["pickscore", "dino"]
    assert got.scorers["pickscore"].weight == 1
    assert got.monitor.spaces == ("dino", "pickscore")


def test_another_method_brings_its_own_parameters(tmp_path):
    base, file = tmp_path / "base.yaml", tmp_path / "file.yaml"
    base.write_text(
        "data: {prompts: shapes/train.jsonl}\nscorers: {dino: {}}\n"
        "method: {name: pec, strength: 0.3}\n"
    )
    file.write_text("base: base.yaml\nmethod: {omega: variance}\n")
    method = load(file).method
    assert (method.name, method.strength, method.omega) == ("pec", 0.3, "variance")
    method = load(file, ["--method.name", "kl_cov"]).method
    assert (method.name, method.strength) == ("kl_cov", 1.0)
    again = load(file, ["--method.name", "marginal_pec", "--method.strength", "auto"])
    (tmp_path / "dumped.yaml").write_text(dump(again))
    assert load(tmp_path / "dumped.yaml") == again
    assert pickle.loads(pickle.dumps(again)) == again


def test_a_scorers_key_is_its_name_and_its_kind_the_module(folder):
    overrides = "--scorers.judge.kind clip --scorers.other.kind clip --scorers.other.weight 2"
    got = load(None, overrides.split())
    assert [got.kind_of(name) for name in got.scorers] == ["pickscore", "clip", "clip"]
    assert got.scored == ("pickscore", "other")


def test_a_scorers_path_may_be_a_file_or_a_url(folder):
    (folder / "weights.pt").write_text("")
    (folder / "file.yaml").write_text("scorers: {clip: {path: weights.pt}}\n")
    assert load("file.yaml").scorers["clip"].path == str(folder / "weights.pt")
    got = load(None, ["--scorers.clip.path", "https://judge:8000/v1"])
    assert got.scorers["clip"].path == "https://judge:8000/v1"


def test_null_takes_a_scorer_out(folder):
    overrides = "--scorers.clip.weight 1 --scorers.pickscore null --perceptual.spaces [clip]"
    got = load(None, overrides.split())
    assert list(got.scorers) == ["clip"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("--learner.lrr 1", "learner.lrr: unknown; did you mean learner.lr?"),
        ("--lr 1", "lr: unknown; did you mean learner.lr?"),
        (
            "--scorers.a.kind http --scorers.a.path http://a --scorers.a.token_env sk-3f9a",
            "scorers.a.token_env: no name of an environment variable; give one of capitals, "
            "digits and '_', such as JUDGE_TOKEN",
        ),
        (
            "--scorers.clip.path https://me:sk-3f9a@judge:8000/v1",
            "scorers.clip.path: a URL that holds a user name or password; leave it out and set "
            "token_env",
        ),
        (
            "--scorers.clip.path http://[judge/v1",
            "scorers.clip.path: no URL; give one such as https://judge:8000/v1",
        ),
        (
            "--scorers.clip.path s3://bucket/judge",
            "scorers.clip.path: s3://bucket/judge is no URL of a server; give one such as "
            "https://judge:8000/v1",
        ),
        ("--lerner.lr 1", "lerner: unknown; did you mean learner?"),
        (
            "--scorers.pickscore.wieght 1",
            "scorers.pickscore.wieght: unknown; did you mean scorers.pickscore.weight?",
        ),
        ("--qqq.zzz 1", "qqq: unknown; --help lists the keys"),
        ("--learner.lr abc", "learner.lr: got 'abc', needs a number"),
        ("--learner.lr true", "learner.lr: got True, needs a number"),
        ("--learner.lr .nan", "learner.lr: got nan, needs a finite number"),
        ("--learner.lr 0", "learner.lr: got 0, needs at least 1e-12"),
        ("--run.steps 1.5", "run.steps: got 1.5, needs a whole number"),
        ("--model.t5 maybe", "model.t5: got 'maybe', needs true or false"),
        (
            "--sampling.kind ode",
            "sampling.kind: got 'ode', needs one of 'flow_sde', 'cps' or 'dance'",
        ),
        ("--monitor.spaces dino", "monitor.spaces: got 'dino', needs a list such as [a, b]"),
        ("--learner 3", "learner: got 3, needs keys of its own; it is a section"),
        ("--run.name a/b", "run.name: got 'a/b', needs letters, digits, '_', '.' and '-' only"),
        ("--learner.betas [.9]", "learner.betas.1: missing; the list needs more values"),
        ("--run.seed", "--run.seed: has no value; give --run.seed VALUE"),
        ("seven", "'seven': unexpected; overrides are --section.key value"),
        ("--scorers.pickscore.weight 0", "scorers: none has a weight above 0; set one's weight"),
        ("--perceptual.tiny_path ./x", "perceptual.tiny_path: no folder {here}/x; give a folder"),
        (
            "--perceptual.batch_size x",
            "perceptual.batch_size: got 'x', needs a whole number or one of 'auto'",
        ),
        ("--model.resolution 0", "model.resolution: got 0, needs at least 8 or a list such"),
        ("--perceptual.decoder small", "perceptual.decoder: got 'small'"),
        ("--model.path ./x", "model.path: no folder {here}/x; give a folder or a hub id such as"),
        ("--data.prompts x.txt", "data.prompts: no file {here}/x.txt"),
        ("--model.family sd9", "model.family: unknown 'sd9'; known are"),
        (
            "--method.name pecc",
            "method.name: unknown 'pecc'; known are clip_cov, diverse_grpo, entropy_reg, ",
        ),
        (
            "--method.name pec --method.stength 1",
            "method.stength: pec has no such parameter; it has spaces, strength, relative,",
        ),
        ("--method.strength 1", "method.strength: flow_grpo has no such parameter; it has none"),
        ("--method.name pec --method.strength 0", "method.strength: got 0, needs at least 1e-09"),
        (
            "--method.name pec --method.spaces [dino]",
            "method.spaces: 'dino' is not among scorers (pickscore); add it there with weight 0",
        ),
        (
            "--method.name clip_cov --method.fraction 1",
            "method.fraction: got 1, needs a number below 1",
        ),
        (
            "--method.name marginal_pec --method.image_spaces [pickscore] --method.strength auto "
            "--monitor.probe_every 0",
            "method.strength auto measures on probes; set monitor.probe_every above 0",
        ),
        ("--scorers.pikscore.weight 1", "scorers: unknown 'pikscore'; known are"),
        ("--scorers.base.weight 1", "scorers: unknown 'base'; known are"),
        ("--scorers.detector.weight 1", "scorers: unknown 'detector'; known are"),
        ("--model.family trained", "model.family: unknown 'trained'; known are"),
        ("--method.name base", "method.name: unknown 'base'; known are"),
        (
            "--scorers.mine.kind pikscore",
            "scorers.mine.kind: unknown 'pikscore'; known are aesthetic, clip, dino, geneval, "
            "hpsv2, http, imagereward, pickscore, unifiedreward",
        ),
        ("--scorers.mine.weight 1", "scorers: unknown 'mine'; known are"),
        ("--model.path http://x/y", "model.path: http://x/y is a URL; give a folder or a hub id"),
        (
            "--scorers.clip.normalize true",
            "scorers.clip.normalize: its weight is 0; set weight, or leave normalize out",
        ),
        (
            "--runtime.rollout.workers 4 --runtime.rollout.max_workers 3",
            "runtime.rollout.max_workers 3 is below runtime.rollout.workers 4; set it higher",
        ),
        (
            "--runtime.learner.workers 2 --runtime.learner.gpus .5",
            "runtime.learner.gpus 0.5: two of its 2 ranks would be on one card, which NCCL "
            "refuses; set it to 1, or runtime.learner.workers 1",
        ),
        (
            "--model.lora_rank 0 --runtime.backend local",
            "model.dtype bfloat16 with model.lora_rank 0: a step of AdamW is lost in it, and "
            "runtime.backend local keeps no float32 copy; set model.dtype float32",
        ),
        (
            "--model.lora_rank 0 --learner.zero_stage 0",
            "model.dtype bfloat16 with model.lora_rank 0: learner.zero_stage 0 keeps no float32",
        ),
        (
            "--model.dtype float16",
            "model.dtype float16: gradients are below its least number, and no loss is scaled here",
        ),
        (
            "--runtime.learner.max_workers 3",
            "runtime.learner.max_workers 3: the learner group keeps its size; leave it out",
        ),
        (
            "--objective.ratio guard --sampling.kind cps",
            "objective.ratio guard is of a log-prob with its variance, which cps drops; set",
        ),
        (
            "--objective.ratio guard --objective.old_log_prob replayed",
            "objective.ratio guard compares means with those that were drawn around; set",
        ),
        (
            "--objective.kl_steps 2",
            "objective.kl_steps 2, kl_form gaussian: are of a KL; set objective.kl above 0, or ",
        ),
        (
            "--objective.reference_every 5",
            "objective.reference_every 5, reference_kl 0: move the reference of a KL; set ",
        ),
        (
            "--objective.kl 1 --objective.kl_steps 30",
            "objective.kl_steps 30: 9 steps are trained; set it lower, or to 0",
        ),
        (
            "--objective.kl 1 --objective.kl_steps 1 --sampling.window_size 2 "
            "--sampling.window_high 5",
            "objective.kl_steps 1: is of the first steps, and a window (sampling.window_size) may",
        ),
        (
            "--method.name diverse_grpo --method.image_spaces [pickscore] --sampling.group_size 4",
            "method.clusters 4: a group has 4 images (sampling.group_size), each then its own",
        ),
        ("--scorers.pickscore.verdict 2", "scorers.pickscore.verdict: got 2, needs at most 1"),
        ("--scorers.vae.kind clip", "scorers: 'vae' can be no name; give letters, digits, '_' and"),
        ("--sampling.window_size 30", "sampling.window_size: an SDE window of 30 steps does not"),
        ("--sampling.train_fraction 0.001", "sampling.train_fraction: a trained fraction of 0.001"),
        ("--scorers.pickscore.path ./x", "scorers.pickscore.path: no folder {here}/x; give a"),
        (
            "--sampling.kind cps --sampling.train_fraction 1",
            "sampling.kind cps draws the last of 10 steps without noise, which cannot be trained; "
            "set sampling.train_fraction 0.95 or sampling.kind flow_sde",
        ),
        (
            "--sampling.kind cps --sampling.window_size 2 --sampling.window_high 10",
            "sampling.kind cps draws the last of 10 steps without noise, which cannot be trained; "
            "set sampling.window_high 9 or sampling.kind flow_sde",
        ),
    ],
)
def test_one_line_says_what_to_set(folder, overrides, message):
    (found,) = problems(*overrides.split(" "))
    assert found.startswith(message.format(here=folder))
    assert "\n" not in found


def test_cps_trains_every_step_that_has_noise(folder):
    for steps in (2, 10, 250):
        sizes = ["--sampling.kind", "cps", "--sampling.steps", str(steps)]
        (found,) = problems(*sizes, "--sampling.train_fraction", "1")
        said = found.split("set sampling.train_fraction ")[1].split(" or ")[0]
        got = load(None, [*sizes, "--sampling.train_fraction", said])
        assert got.trained_steps(0) == range(steps - 1)
    window = ["--sampling.window_size", "10", "--sampling.window_high", "10"]
    for one in (["--sampling.steps", "1"], window):
        one += ["--sampling.train_fraction", "1"]
        (found,) = problems("--sampling.kind", "cps", *one)
        assert found.endswith("trained; set sampling.kind flow_sde")


def test_any_sizes_are_accepted_or_the_line_has_one_that_is(folder):
    """Groups x images x optimizer steps x ranks x micro-batch x scored steps."""
    grid = product((1, 3, 47), (2, 5, 24), (1, 2, 7, 200), (1, 2, 5), (1, 8, 1000), (0, 4, 10))
    for groups, images, updates, ranks, micro_batch, scored in grid:
        sizes = {
            "data": {"groups_per_step": groups},
            "sampling": {"group_size": images},
            "learner": {"updates": updates, "micro_batch": micro_batch},
            "runtime": {"learner": {"workers": ranks, "gpus": 1}},
            "perceptual": {"steps": scored},
        }
        if updates > groups * images or scored > 9:
            with pytest.raises(ValidationError) as refused:
                Recipe.model_validate(sizes)
            said = str(refused.value)
            for section, key, value in re.findall(r"set (\w+)\.(\w+) (\d+)", said):
                sizes[section] = sizes[section] | {key: int(value)}
        Recipe.model_validate(sizes)


def test_compiled_blocks_do_not_go_with_zero_3(folder):
    asked = ["--model.compile", "true", "--learner.zero_stage", "3"]
    (found,) = problems(*asked)
    assert "set learner.zero_stage 2 or model.compile false" in found
    load(None, [*asked, "--learner.zero_stage", "2"])


def test_every_problem_is_told_at_once(folder):
    assert len(problems("--learner.lrr", "1", "--run.steps", "x", "--model.t5", "7")) == 3
    crossed = problems("--data.prompts", "x", "--scorers.pickscore.weight", "0")
    assert len(crossed) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner: {lr: 1, lr: 2}", "not YAML: line 1, column 18: key 'lr' is given twice"),
        ("learner: [", "not YAML: line 1"),
        ("7", "holds 7; needs sections such as `learner:`"),
        ("base: none.yaml", "none.yaml: no such file or directory"),
        ("base: loop.yaml", "loop.yaml: a base cannot have a base; take the `base:` line out"),
    ],
)
def test_a_bad_file_is_one_line(folder, text, message):
    (folder / "loop.yaml").write_text("base: other.yaml")
    (folder / "file.yaml").write_text(text)
    (found,) = problems(path="file.yaml")
    assert message in found
    assert "\n" not in found


def test_paths_of_a_file_are_relative_to_it_and_those_of_the_command_line_to_here(folder):
    there = folder.parent / "there"
    (there / "model").mkdir(parents=True)
    (there / "mine.txt").write_text(PROMPTS)
    (folder / "mine.txt").write_text(PROMPTS)
    (there / "file.yaml").write_text(
        "data: {prompts: mine.txt}\nmodel: {path: ./model}\nperceptual: {tiny_path: ./model}\n"
    )
    got = load(there / "file.yaml")
    assert got.data.prompts == str(there / "mine.txt")
    assert got.model.path == got.perceptual.tiny_path == str(there / "model")
    got = load(there / "file.yaml", ["--data.prompts", "mine.txt"])
    assert got.data.prompts == str(folder / "mine.txt")


def test_an_empty_section_changes_nothing(folder):
    (folder / "file.yaml").write_text("learner:\nruntime:\n  rollout:\n")
    assert load("file.yaml") == load(None)


def test_dump_loads_back_equal(folder, tmp_path):
    (folder / "mine.txt").write_text(PROMPTS)
    saved = load(None, ["--learner.lr", "1e-5", "--data.prompts", "mine.txt", "--run.name", "1e3"])
    (tmp_path / "recipe.yaml").write_text(dump(saved))
    assert load(tmp_path / "recipe.yaml") == saved


def test_dump_is_plain_yaml(folder):
    assert yaml.safe_load(dump(load(None)))["learner"]["lr"] == 3e-4
