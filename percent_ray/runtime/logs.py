"""What the process of a dead actor has written last."""

import re
from pathlib import Path

import ray
from ray._private import worker

LINES = 3
"""Of the end of a log."""
MOST = 300
"""Letters of them."""
LONGEST = 1 << 16
"""Bytes of a log that are read."""


def last_lines(death: str, folder: Path | None = None) -> str:
    """The end of the log of the process that Ray's words on a death name ("pid: 123"), in one line;
    where to look, where its machine is another; empty where they name none.

    `folder` is where this machine's logs are, Ray's own where None.
    """
    process, machine = re.search(r"\bpid: (\d+)", death), re.search(r"\bip: (\S+)", death)
    if process is None:
        return ""
    name = f"worker-*-{process[1]}.err"
    if folder is None:
        node = worker._global_node
        if node is None:
            return ""
        folder = Path(node.get_logs_dir_path())
    if machine and machine[1] != ray.util.get_node_ip_address():
        # A process of this machine may have the same number.
        return f"its log is {folder / name} on {machine[1]}"
    texts = [_tail(path) for path in folder.glob(name)]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return f"its log ends: {' | '.join(lines[-LINES:])[-MOST:]}" if lines else "its log is empty"


def _tail(path: Path) -> str:
    """The end of a log, which may be of any length."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST))
        return file.read().decode(errors="replace")
