"""The last handler of every job, and its command line."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from percent_ray import job
from percent_ray.recipe.load import RecipeError
from percent_ray.types import LearnerLost

ROOT = Path(__file__).parents[1]
JOBS = [*sorted((ROOT / "jobs").glob("*.py")), ROOT / "jobs" / "pretrain_shapes"]


@pytest.fixture
def ended(tmp_path, monkeypatch, capsys):
    """Exit code and lines of a job that raises an error, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def end(error, **options):
        def main():
            raise error

        with pytest.raises(SystemExit) as caught:
            job.run(main, **options)
        return caught.value.code, capsys.readouterr().err.splitlines()

    handler = signal.getsignal(signal.SIGTERM)
    yield end
    signal.signal(signal.SIGTERM, handler)


def from_ray(error):
    wrapped = type("RayTaskError", (ValueError,), {"__module__": "ray.exceptions"})("Traceback")
    wrapped.cause = error
    return wrapped


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (ValueError("a is 1; set 2"), 2, ["error: a is 1; set 2"]),
        (RecipeError(["a", "b"]), 2, ["error: a", "error: b"]),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.yaml"),
            2,
            ["error: x.yaml: no such file or directory"],
        ),
        (OSError(errno.ENOSPC, "No space left", "/x"), 1, ["error: /x: no space left"]),
        (FloatingPointError("loss is nan"), 1, ["error: loss is nan"]),
        (LearnerLost("rank 1 died"), 1, ["error: rank 1 died"]),
        (ExceptionGroup("two", [ValueError("one")]), 2, ["error: one"]),
        (from_ray(ValueError("over there")), 2, ["error: over there"]),
        (TypeError("no\nway"), 1, ["error: TypeError: no; see error.txt"]),
        (KeyError("k"), 1, ["error: KeyError: 'k'; see error.txt"]),
        (RecursionError(), 1, ["error: RecursionError; see error.txt"]),
        (
            UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
            2,
            [
                "error: UnicodeDecodeError: 'utf-8' codec can't decode byte 0x78 in position 0: "
                "bad; see error.txt"
            ],
        ),
        (KeyboardInterrupt(), 130, ["stopped by Ctrl-C"]),
        (SystemExit(signal.SIGTERM), 143, ["stopped by SIGTERM"]),
    ],
)
def test_an_error_is_a_line_for_each_problem_and_a_code(ended, error, code, lines):
    assert ended(error) == (code, lines)
    assert Path("error.txt").exists() == ("error.txt" in lines[0])
    if "error.txt" in lines[0]:
        assert "Traceback" in Path("error.txt").read_text()


def test_a_job_that_ends_well_or_by_its_own_code_is_left_alone(ended):
    job.run(lambda: None)
    assert ended(SystemExit(1)) == (1, [])


def test_what_a_run_has_kept_is_told(ended):
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    errors = TypeError("no"), KeyboardInterrupt()
    for error in errors:
        job.keep(error, folder)
    assert ended(errors[0]) == (1, ["error: TypeError: no; see runs/mine/error.txt"])
    line = "stopped by Ctrl-C; runs/mine has no checkpoint to go on from"
    assert ended(errors[1]) == (130, [line])
    (folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    error = job.Stopped()
    job.keep(error, folder)
    line = "stopped by SIGTERM; --resume runs/mine goes on from step-00000003"
    assert ended(error) == (143, [line])


def test_a_traceback_that_cannot_be_written_is_not_named(ended):
    Path("error.txt").mkdir()
    assert ended(TypeError("no")) == (1, ["error: TypeError: no"])


@pytest.mark.parametrize(
    ("argv", "refused"),
    [
        (["--to", ""], "--to"),
        (["--to="], "--to"),
        (["--to", "  "], "--to"),
        ([""], "an argument"),
        (["--all", ""], "an argument"),
        (["--data.probe_prompts", ""], None),
        (["--data.probe_prompts="], None),
        (["--to", "x", "a"], None),
    ],
)
def test_empty_values_are_refused_unless_they_are_a_recipes(argv, refused):
    parser = job.Parser()
    parser.add_argument("--to", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("runs", nargs="*")
    if refused is None:
        parser.parse_known_args(argv)
        return
    with pytest.raises(ValueError, match=f"^{refused} is empty"):
        parser.parse_known_args(argv)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_job_has_the_handler_and_the_parser(path):
    text = (path / "__main__.py" if path.is_dir() else path).read_text()
    assert "job.run(" in text or "job.catch()" in text
    assert "ArgumentParser(" not in text
    assert "SystemExit(2)" not in text


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
@pytest.mark.parametrize("path", ["jobs/loop_by_hand.py", "jobs/train_pec.py"])
def test_a_signal_while_imports_run_is_one_line(tmp_path, path, number, code, name):
    (tmp_path / "torch.py").write_text("import time\nprint('in', flush=True)\ntime.sleep(60)\n")
    job_process = subprocess.Popen(
        [sys.executable, ROOT / path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        # A shell's job in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert job_process.stdout.readline() == "in\n"
    start = time.monotonic()
    job_process.send_signal(number)
    assert job_process.communicate(timeout=30)[1] == f"stopped by {name}\n"
    assert job_process.returncode == code
    assert time.monotonic() - start < 20


def test_a_lost_ssh_ends_neither_a_job_nor_what_it_has_started(tmp_path):
    """SIGHUP goes to the whole process group, and is ignored as under nohup."""
    program = (
        "import subprocess, sys, time\n"
        "from percent_ray import job\n"
        "def main():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1.5)'])\n"
        "    print('ready', flush=True)\n"
        "    print('child', child.wait())\n"
        "job.run(main)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    os.killpg(running.pid, signal.SIGHUP)
    out, _ = running.communicate(timeout=20)
    assert (out, running.returncode) == ("child 0\n", 0)
