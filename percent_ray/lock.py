"""One run, one writer."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "lock"
"""In a run's folder: process id and host of who writes there, or was the last one to."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """This process alone writes into `folder`; the kernel ends that with the process, however it
    dies.

    Raises ValueError, with pid and host, where another process writes there. Raises OSError where
    the file system knows no locks (some network mounts).
    """
    with (folder / FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{folder} is being written by {file.read().strip() or 'another process'}; wait "
                "for its end or stop it, or set another run.name"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
