"""The cluster that a process joins, or starts: with a token, and on loopback alone."""

import contextlib
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants


def connect(*, cpus: int | None = None) -> bool:
    """Join the cluster of RAY_ADDRESS (set inside a Ray job), or start one on this machine, with
    the machine's cores or `cpus`. Returns whether it did; False where this process has one."""
    if ray.is_initialized():
        return False
    own: dict[str, Any] = {
        "address": "local",  # not one that happens to run on this machine
        "num_cpus": cpus,
        "include_dashboard": False,  # takes longer to start than the rest of the cluster
    }
    # Workers' output stays in their log files: what matters of it comes back as an error.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
        return True
    _make_token()
    with _on_loopback():
        ray.init(**quiet, **own)
    return True


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """A cluster that is started inside listens on 127.0.0.1 alone. Ray's own switch for machines
    that it makes no clusters of; an address that `ray.init` is given is not taken."""
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
