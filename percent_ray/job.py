"""The frame of every job in jobs/: a command line that refuses empty values, and the last handler.

A job ends with 0, with 2 for what its user can set right, with 130 or 143 for Ctrl-C and SIGTERM,
with 1 for the rest, and always with one line for each thing that is wrong, never with a traceback.
Imports nothing that takes time, so that a signal has its line while a job imports the rest.
"""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ERRORS = "error.txt"
"""The traceback of what ended a job: in the run's folder, else in the working directory."""
WIDEST = 500
"""Characters of a line; the middle of a longer one is left out."""
MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.EPIPE}
"""Errors of a machine, which no other setting would have avoided."""


class Stopped(KeyboardInterrupt):
    """SIGTERM, which then ends a job as Ctrl-C does."""


class Parser(argparse.ArgumentParser):
    """Raises ValueError for what is wrong with a command line, and refuses flags and arguments
    that are empty, as those of an unset shell variable are: `--resume ""` is not "no --resume"."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help shows how")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        before = ""
        for word in words:
            flag, equals, value = word.partition("=")
            if equals and not value.strip() and flag in self._option_string_actions:
                self._refuse(flag)
            taker = self._option_string_actions.get(before)
            # What is no flag of this parser is another's to judge: `--data.probe_prompts ""`.
            if not word.strip() and (taker or not before.startswith("-")):
                self._refuse(before if taker and taker.nargs != 0 else "an argument")
            before = word
        return super().parse_known_args(words, namespace or argparse.Namespace())

    def _refuse(self, name: str) -> NoReturn:
        self.error(f"{name} is empty (an unset shell variable?); give a value or leave it out")


def run(main: Callable[[], None], *, stopped: str = "") -> None:
    """Do `main`. Where it fails or is stopped, prints one line, and exits with its code; `stopped`
    says what is true then, such as "the same command goes on from here"."""
    _take_signals()
    try:
        main()
        sys.stdout.flush()
    except BaseException as error:
        end(error, stopped=stopped)


def catch() -> None:
    """The same for a file that is its own main: from here on, its imports among it."""
    _take_signals()
    sys.excepthook = lambda kind, error, trace: end(error)


def keep(error: BaseException, folder: Path) -> None:
    """Add to an error what there is in the run's folder: the traceback, which is written there, and
    a checkpoint to go on from."""
    if isinstance(error, Exception) and (written := _write(error, folder)):
        error.add_note(f"see {written}")
    if not folder.is_dir():
        error.add_note(f"the run's folder {folder} is gone")
    found = sorted((folder / "checkpoints").glob("step-[0-9]*"))
    checkpoints = [path for path in found if path.is_dir()]
    if checkpoints:
        error.add_note(f"--resume {folder} goes on from {checkpoints[-1].name}")
    elif isinstance(error, KeyboardInterrupt):
        error.add_note(f"{folder} has no checkpoint to go on from")


def end(error: BaseException, *, stopped: str = "") -> NoReturn:
    """The last handler: prints what an error says and exits with its code."""
    if isinstance(error, SystemExit) and error.code != signal.SIGTERM:  # which Ray makes of it
        raise error
    notes: list[str] = list(getattr(error, "__notes__", ()))
    if isinstance(error, KeyboardInterrupt | SystemExit):
        by_hand = isinstance(error, KeyboardInterrupt) and not isinstance(error, Stopped)
        name, code = ("Ctrl-C", 130) if by_hand else ("SIGTERM", 143)
        _exit(code, ["; ".join([f"stopped by {name}", *notes, *filter(None, [stopped])])])
    if isinstance(error, BrokenPipeError):
        # The interpreter would write what is left to it, and complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    cause = _cause(error)
    lines, foreign = _lines(cause)
    if foreign and not notes and (written := _write(error, Path())):
        notes.append(f"see {written}")
    _exit(
        2 if _is_users(cause) else 1,
        [f"error: {'; '.join([line, *notes])}" for line in lines],
    )


def _take_signals() -> None:
    # A prompt may have letters that the terminal's encoding does not.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"  # figures go to files
    signal.signal(signal.SIGTERM, _terminate)
    # A lost ssh ends no training, nor the processes that Ray starts, which inherit this. Other jobs
    # end at their next line, and the same command goes on.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Read when Ray is imported. Its C++ would take SIGTERM for a failure, and abort with a stack.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Ends at once while something is imported: there is nothing to undo, and a module that tries
    an import may take the exception for that import's."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            with contextlib.suppress(OSError):
                print("stopped by SIGTERM", file=sys.stderr, flush=True)
            os._exit(143)
        frame = frame.f_back
    raise Stopped


def _exit(code: int, lines: Sequence[str]) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody may read it any more
        print("\n".join(map(_plain, lines)), file=sys.stderr, flush=True)
    raise SystemExit(code) from None


def _plain(line: str) -> str:
    """One line of a terminal, whatever a file's name or a value has in it."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= WIDEST else f"{line[: WIDEST // 2]} ... {line[-WIDEST // 3 :]}"


def _cause(error: BaseException) -> BaseException:
    """What was raised at first: in a group of errors, or in another process of Ray's."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif type(error).__module__.startswith("ray.") and isinstance(
            inner := getattr(error, "cause", None), BaseException
        ):
            error = inner
        else:
            return error


def _is_users(error: BaseException) -> bool:
    """Whether it is for the user to set right."""
    if isinstance(error, OSError):
        return not isinstance(error, ConnectionError | TimeoutError) and error.errno not in MACHINE
    return isinstance(error, ValueError)


def _lines(error: BaseException) -> tuple[Sequence[str], bool]:
    """What it says, a line for each problem; and whether the words are a library's, which the type
    belongs to."""
    problems = getattr(error, "problems", None)
    if problems:
        return problems, False
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return [f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"], False
    text = str(error).strip().splitlines()
    # Such as "Validation error for field 'x':".
    line = " ".join(text[:2] if text and text[0].endswith(":") else text[:1])
    ours = isinstance(error, OSError) or type(error) in (ValueError, FloatingPointError)
    if line and (ours or type(error).__module__.startswith("percent_ray.")):
        return [line], False
    return [f"{type(error).__name__}: {line}".removesuffix(": ")], True


def _write(error: BaseException, folder: Path) -> Path | None:
    """The traceback's file; None where it cannot be written."""
    path = folder / ERRORS
    try:
        path.write_text("".join(traceback.format_exception(error)))
    except (OSError, UnicodeError):
        return None
    return path
