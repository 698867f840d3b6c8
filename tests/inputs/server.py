"""Runs cases: the jobs are imported once, then each case is a fork with a folder of its own."""

import contextlib
import gc
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.inputs.case import Case

CLASSES = Path(__file__).parent / "classes"
IMPORTED = (
    *("percent_ray.run", "percent_ray.data.prompts", "percent_ray.runtime.halves"),
    *("percent_ray.scorers.geneval", "percent_ray.monitor.plots", "matplotlib.pyplot"),
    *("percent_ray.comparison.runs", "percent_ray.evaluation.engine", "percent_ray.export.source"),
    *("percent_ray.report.page", "percent_ray.study.page", "percent_ray.study.count"),
    *("percent_ray.preview.report", "percent_ray.recipe.command_line"),
)
"""What the jobs import once they know what to do: not again in every case."""
AT_ONCE = 2
TRAINS = "the models would be loaded now"


@dataclass(frozen=True, slots=True)
class Outcome:
    case: str
    code: int | None
    """None for one that hangs."""
    output: str
    errors: str
    wrong: tuple[str, ...]
    """What is not as it should be; empty where all is."""
    seconds: float


def classes() -> list[str]:
    return sorted(path.stem for path in CLASSES.glob("*.py") if path.stem != "__init__")


def cases(name: str) -> list[Case]:
    return importlib.import_module(f"tests.inputs.classes.{name}").CASES


def run(chosen: list[tuple[str, Case]]) -> Iterator[tuple[str, Outcome]]:
    """(class, outcome) of each, AT_ONCE at a time, in the order that they end."""
    _begin()
    waiting, running = chosen[::-1], dict[int, tuple[str, Case, Path, float]]()
    with tempfile.TemporaryDirectory() as root:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                kind, case = waiting.pop()
                folder = Path(root) / str(len(waiting))
                folder.mkdir()
                running[_fork(case, folder)] = (kind, case, folder, time.monotonic())
            ended, code = os.waitpid(-1, os.WNOHANG)
            if ended:
                kind, case, folder, start = running.pop(ended)
                took = time.monotonic() - start
                yield kind, _judge(case, folder, os.waitstatus_to_exitcode(code), took)
                shutil.rmtree(folder)
                continue
            for pid, (_, case, _, start) in running.items():
                if time.monotonic() - start > case.seconds:
                    os.killpg(pid, signal.SIGKILL)
            time.sleep(0.002)


def _begin() -> None:
    """What every case would otherwise do again."""
    for module in IMPORTED:
        importlib.import_module(module)
    for name in {case.job for kind in classes() for case in cases(kind)}:
        _job(name)
    from percent_ray.recipe import load as recipes

    with contextlib.suppress(recipes.RecipeError):
        recipes.load(None, ["--learner.lrr", "1", "--learner.lr", "x"])
    gc.collect()
    gc.freeze()


def _fork(case: Case, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _child(case, folder)
    return pid


def _child(case: Case, folder: Path) -> NoReturn:
    """Never returns, whatever happens."""
    code = 1
    try:
        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        here = folder / "here"
        here.mkdir()
        os.chdir(here)
        for name, content in case.files.items():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, bytes) else content.encode()
            (here / name).write_bytes(data)
        if case.prepare is not None:
            case.prepare(here)
        sys.argv = [f"jobs/{case.job}.py", *case.words]
        _stop_before_models()
        _job(case.job)()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _job(name: str) -> Callable[[], None]:
    module = "jobs.pretrain_shapes.__main__" if name == "pretrain_shapes" else f"jobs.{name}"
    return importlib.import_module(module).main


def _stop_before_models() -> None:
    from percent_ray import run
    from percent_ray.comparison import runs
    from percent_ray.evaluation import engine
    from percent_ray.preview import report
    from percent_ray.runtime import halves

    async def trains(*_: Any, **__: Any) -> None:
        print(TRAINS)

    def loads(*_: Any, **__: Any) -> NoReturn:
        print(TRAINS)
        raise SystemExit(0)

    run._train = trains
    for module in (halves,):
        for part in ("RolloutWorker", "PerceptionWorker"):
            setattr(module, part, loads)
    report.show = runs.unfinished = engine.todo = loads


def _judge(case: Case, folder: Path, code: int, seconds: float) -> Outcome:
    output, errors = (
        (folder / name).read_text(errors="replace") if (folder / name).exists() else ""
        for name in ("stdout", "stderr")
    )
    wrong: list[str] = []
    if code == -signal.SIGKILL:
        wrong.append("hangs")
    if "Traceback" in errors + output:
        wrong.append("traceback")
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    if case.says is None:
        if code or said:
            wrong.append("is refused")
    elif not code:
        wrong.append("exit 0")
    else:
        if code != case.code:
            wrong.append(f"exit {code}, not {case.code}")
        if len(said) != case.lines or len(errors.splitlines()) != case.lines:
            wrong.append(f"{len(said)} error lines of {len(errors.splitlines())}")
        if not any(re.search(case.says, line) for line in said):
            wrong.append(f"does not say {case.says!r}")
        if any(len(line) > 600 for line in said):
            wrong.append("a line of more than 600 characters")
        if any((folder / "here").glob("runs/*")) and not any(
            name.startswith("runs/") for name in case.files
        ):
            wrong.append("leaves a folder in runs/")
    return Outcome(case.name, code, output, errors, tuple(wrong), seconds)


def main(part: str = "") -> None:
    """Prints every outcome; with --json as JSON lines."""
    as_json = part == "--json"
    wanted = "" if as_json else part
    chosen = [
        (kind, case)
        for kind in classes()
        for case in cases(kind)
        if wanted in f"{kind}: {case.name}"
    ]
    for kind, outcome in run(chosen):
        if as_json:
            print(json.dumps({"kind": kind, **asdict(outcome)}), flush=True)
            continue
        mark = f"WRONG ({', '.join(outcome.wrong)})" if outcome.wrong else "good"
        print(f"{mark} [{kind}] {outcome.case}  ({outcome.seconds:.2f} s, exit {outcome.code})")
        print("".join(f"    {line[:300]}\n" for line in outcome.errors.splitlines()[-4:]), end="")


if __name__ == "__main__":
    main(*sys.argv[1:2])
