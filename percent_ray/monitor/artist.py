"""Draws a run's pictures in a thread of its own: the run neither waits for them nor ends with
them."""

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from percent_ray.recipe.errors import first_line

WAITING = 32
"""Drawings that wait, at most: each of a probe holds its pictures."""


class Artist:
    """Makes one drawing after the other. What fails is told once for each kind."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._told: set[str] = set()
        self._waiting: queue.Queue[tuple[str, Callable[[], object]]] = queue.Queue(WAITING)
        threading.Thread(target=self._work, name="artist", daemon=True).start()

    def draw(self, kind: str, function: Callable[[], object]) -> None:
        """Call `function` when those before it are done; `kind` names what it makes."""
        try:
            self._waiting.put_nowait((kind, function))
        except queue.Full:
            self._tell(kind, f"{WAITING} drawings are waiting already")

    def attempt(self, kind: str, function: Callable[[], object]) -> None:
        """Call it now."""
        try:
            function()
        except Exception as error:
            self._tell(kind, first_line(error))

    def finish(self, timeout_s: float) -> None:
        """Wait until everything is drawn, at most so long."""
        end = time.monotonic() + timeout_s
        with self._waiting.all_tasks_done:
            while self._waiting.unfinished_tasks and (left := end - time.monotonic()) > 0:
                self._waiting.all_tasks_done.wait(left)
            missing = self._waiting.unfinished_tasks
        if missing:
            self._tell("drawings", f"{missing} were not over in {timeout_s:g} s")

    def _work(self) -> None:
        while True:
            kind, function = self._waiting.get()
            self.attempt(kind, function)
            del function
            self._waiting.task_done()

    def _tell(self, kind: str, why: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._say(
                f"{kind} of {self._folder}: not made: {why}; the run goes on, and this is told once"
            )
