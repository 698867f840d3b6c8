from pathlib import Path

import pytest

from percent_ray.recipe import command_line
from percent_ray.recipe.errors import known_keys
from percent_ray.recipe.load import dump, load
from percent_ray.recipe.section import METHODS


def test_job_flags_are_taken_from_the_overrides(folder):
    (folder / "file.yaml").write_text("run: {steps: 3}\n")
    (folder / "groups.arrow").write_text("")
    flags = ["--config", "file.yaml", "--learner.lr", "1e-4", "--only", "learn"]
    argv = [*flags, "--from", "groups.arrow"]
    got = command_line.parse(argv, job="job.py", default=Path("no.yaml"))
    assert (got.recipe.run.steps, got.recipe.learner.lr) == (3, 1e-4)
    assert (got.only, got.source, got.resume) == ("learn", Path("groups.arrow"), None)


def test_resume_reads_the_recipe_of_the_run(folder):
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    (run / command_line.RECIPE_FILE).write_text(dump(load(None, ["--run.seed", "9"])))
    for name in ("mine", "runs/mine", str(run)):
        got = command_line.parse(["--resume", name], job="job.py", default=Path("no.yaml"))
        assert got.resume == run
        assert got.recipe.run.seed == 9


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--confg x", "--confg: unknown; did you mean --config?"),
        ("--config x.yaml", "--config: no file x.yaml"),
        ("--config", "argument --config: expected one argument"),
        ("--only eval", "argument --only: invalid choice: 'eval'"),
        ("--only learn", "--only learn and --from FILE go together; give both or neither"),
        ("--resume ", "--resume is empty (an unset shell variable?); give a value or leave it out"),
        ("--config=", "--config is empty"),
        ("--run.steps 3 ", "an argument is empty"),
        ("--dry-run --tflops x", "argument --tflops: 'x' is not a number"),
        ("--resume nope", "--resume: no recipe.yaml in nope"),
        ("--learner.lrr 1", "learner.lrr: unknown; did you mean learner.lr?"),
    ],
)
def test_a_wrong_command_line_is_one_line(folder, argv, message):
    (folder / "default.yaml").write_text("")
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        command_line.parse(argv.split(" "), job="job.py", default=Path("default.yaml"))
    assert str(caught.value).startswith(message)


def test_half_of_a_resumed_run_is_refused(folder):
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text("")
    argv = ["--resume", "run", "--only", "rollout"]
    with pytest.raises(ValueError, match=r"\A--only starts from the model") as caught:
        command_line.parse(argv, job="job.py", default=Path("x"))
    assert str(caught.value).endswith("drop --resume")


def test_help_teaches_every_key_within_100_columns(capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.parse(["--help"], job="jobs/train_pec.py", default=Path("x"))
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for key in known_keys():
        assert key in text
    assert "AdamW learning rate" in text
    assert "[flow_sde | cps | dance]" in " ".join(text.split())
    for name in METHODS:
        assert f"\n{name}: " in text
    assert "method.image_spaces             [dino]" in text
    assert "Share of the images that the KL holds" in text, "a method's docstrings"
