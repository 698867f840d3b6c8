"""What others on a machine, or beside it, can reach of a run that has started its own cluster."""

import os
import stat
import subprocess
import sys

import pytest

from percent_ray.runtime import connection

LISTENERS = """
import os
import signal
import subprocess
import sys
import psutil
import ray
from percent_ray.runtime import connection

signal.signal(signal.SIGTERM, signal.SIG_IGN)
connection.connect(cpus=1)
assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ

@ray.remote
class Actor:
    def port(self) -> int:
        return os.getpid()

ray.get(Actor.remote().port.remote())
own = psutil.Process()
for process in (own, *own.children(recursive=True)):
    for found in process.net_connections("tcp"):
        if found.status == "LISTEN":
            print(process.name(), found.laddr.ip)

address = ray.get_runtime_context().gcs_address
joining = "from percent_ray.runtime import connection; assert connection.connect()"
subprocess.run(
    [sys.executable, "-c", joining], env=os.environ | {"RAY_ADDRESS": address}, check=True
)
mine = own.children(recursive=True)
os.killpg(0, signal.SIGTERM)  # as `timeout` and systemd do
assert ray.get(Actor.remote().port.remote(), timeout=60)
connection.leave()
print("left", [p.name() for p in mine if p.is_running() and p.status() != psutil.STATUS_ZOMBIE])
"""


def test_the_token_is_its_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    connection._make_token()
    path = tmp_path / ".ray" / "auth_token"
    token = path.read_text()
    assert len(token) == 64
    assert [stat.S_IMODE(p.stat().st_mode) for p in (path.parent, path)] == [0o700, 0o600]
    path.chmod(0o644)
    connection._make_token()
    assert path.read_text() == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray does so by itself")
def test_every_port_is_on_loopback_and_no_process_is_left_of_what_a_signal_has_not_ended():
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS],
        env=environment,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    *lines, left = done.stdout.splitlines()
    listening = [line.rsplit(" ", 1) for line in lines]
    assert any("gcs" in name for name, _ in listening)
    elsewhere = [(n, ip) for n, ip in listening if ip.removeprefix("::ffff:") != "127.0.0.1"]
    assert elsewhere == []
    assert left == "left []"
