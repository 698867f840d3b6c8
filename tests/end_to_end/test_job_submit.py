"""The README's cluster command, against a head that the test starts with a token of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment of a client of a fresh head with token authentication."""
    temporary = Path("/tmp") / f"pr-{os.getpid()}"  # socket paths must be short
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        # as in an activated environment: the job's `python` is the head's
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "RAY_ADDRESS": f"http://127.0.0.1:{(dashboard := free_port())}",
    }
    os.umask(0o077)
    (tmp_path / "token").write_text("a" * 32)
    server = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--port={free_port()}", f"--dashboard-port={dashboard}"),
            *("--dashboard-host=127.0.0.1", f"--temp-dir={temporary}"),
            f"--ray-client-server-port={free_port()}",
            # A fixed one by default: beside another cluster the job server would find no agent.
            f"--dashboard-agent-listen-port={free_port()}",
        ],
        env={k: v for k, v in environment.items() if k != "RAY_ADDRESS"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(environment["RAY_ADDRESS"], server)
        yield environment
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # all that the head has started
        server.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def answer(url: str) -> int | None:
    """HTTP status of a call without a token; None where nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Until the job server answers; without the token it must refuse."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert server.poll() is None, "ray start ended"
        status = answer(f"{address}/api/jobs/")
        if status is not None:
            assert status == 401, "the job server is open: token authentication is off"
            return
        time.sleep(0.5)
    raise AssertionError(f"no job server at {address}")


@pytest.mark.ray
@pytest.mark.slow
def test_ray_job_submit_runs_the_job_and_reports_its_exit_code(head, tmp_path):
    def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["python", "jobs/train_pec.py", *arguments]
        return subprocess.run(
            [RAY, "job", "submit", "--working-dir", ".", "--", *command],
            cwd=ROOT,
            env=head,
            capture_output=True,
            text=True,
            timeout=400,
        )

    sizes = ("--run.steps", "2", "--sampling.group_size", "4", "--learner.micro_batch", "6")
    done = submit("--run.folder", str(tmp_path), *sizes, "--monitor.probe_groups", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    [run] = [path for path in tmp_path.iterdir() if (path / "recipe.yaml").is_file()]
    assert (run / "checkpoints" / "step-00000002" / "policy").is_dir()
    assert (run / "timeline.png").is_file()

    wrong = submit("--learner.lrr", "1")
    assert wrong.returncode != 0
    assert "learner.lrr" in wrong.stdout
