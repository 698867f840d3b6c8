"""One run, one writer: processes that want one folder."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from percent_ray import lock

HOLD = """
import sys, time
from pathlib import Path
from percent_ray import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_with_pid_and_host_until_the_first_is_dead(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        said = f"is being written by process {other.pid} on {socket.gethostname()}; wait for"
        with pytest.raises(ValueError, match=said), lock.held(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with lock.held(tmp_path):
        assert (tmp_path / lock.FILE).read_text().startswith(f"process {os.getpid()} on ")
    with lock.held(tmp_path):
        pass
