"""The cluster that a process joins, or starts: with a token, and on loopback alone."""

import contextlib
import functools
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services, worker

LEAVE_S = 10.0
"""Longest wait for the end of the processes of a cluster that this process has started."""


def connect(*, cpus: int | None = None) -> bool:
    """Join the cluster of RAY_ADDRESS (set inside a Ray job), or start one on this machine, with
    the machine's cores or `cpus`. Returns whether it did; False where this process has one."""
    if ray.is_initialized():
        return False
    before = signal.getsignal(signal.SIGTERM)
    _connect(cpus)
    # In Python Ray puts its own in the place of ours.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
    return True


def _connect(cpus: int | None) -> None:
    own: dict[str, Any] = {
        "address": "local",  # not one that happens to run on this machine
        "num_cpus": cpus,
        "include_dashboard": False,  # takes longer to start than the rest of the cluster
    }
    # Workers' output stays in their log files: what matters of it comes back as an error.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        with _on_loopback() if _is_on_loopback(address) else contextlib.nullcontext():
            try:
                ray.init(**quiet)
            except ValueError as error:
                raise ValueError(f"RAY_ADDRESS {address}: {error}") from error
        return
    _make_token()
    with _on_loopback(), _in_groups_of_their_own():
        ray.init(**quiet, **own)


def _is_on_loopback(address: str) -> bool:
    """Whether a cluster listens on 127.0.0.1 alone: Ray would look for it at the machine's own
    address, and wait."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdecimal():
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=3).close()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A cluster that is started inside listens on 127.0.0.1 alone, and such a one is joined.
    Ray's own switch for machines that it makes no clusters of; an address that `ray.init` is given
    is not taken."""
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.get(name)
    if given is None:
        os.environ[name] = "0"  # for the processes that Ray starts
        ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read it
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if given is None:
            del os.environ[name]


@contextlib.contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """The cluster's processes that are started inside do not get the signals of this one's process
    group: `timeout`, systemd and Slurm send SIGTERM to all of it, and a run that is to end with a
    checkpoint needs its cluster until then. Ray itself shields them from Ctrl-C alone."""
    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = before


def leave() -> None:
    """Leave the cluster. Of one that this process has started, return when none of its processes is
    left: Ray tells them to end and does not look whether they do. One that is still there after
    LEAVE_S is killed."""
    left, end = _started(), time.monotonic() + LEAVE_S
    ray.shutdown()
    while left and time.monotonic() < end:
        time.sleep(0.05)
        left = [process for process in left if _runs(process)]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _started() -> list[psutil.Process]:
    """Ray's processes that this one has started, and theirs; none where it has joined a cluster."""
    node: Any = worker._global_node
    found: list[psutil.Process] = []
    for infos in node.all_processes.values() if node else ():
        for info in infos:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                found += [process, *process.children(recursive=True)]
    return found


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _make_token() -> None:
    """Write the token of this user's clusters for nobody else to read: Ray itself would write it
    for everyone. One that is there is shut to others."""
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        # Whole or not there, also where two runs start at once.
        descriptor, own = tempfile.mkstemp(dir=path.parent)  # of mode 0600
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
        os.unlink(own)
    path.chmod(0o600)
