import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from percent_ray.monitor import history
from percent_ray.monitor.tracking import Tracker


@pytest.fixture(scope="module")
def client_class():
    """mlflow, imported before any clock of a test runs."""
    from percent_ray.monitor.tracking import _client

    return type(_client("sqlite://"))


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def black_hole():
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def tracker(folder, uri="", **options):
    return Tracker(folder, tracking_uri=uri, experiment="tests", run_name="a", **options)


def test_everything_is_in_the_folder_and_in_mlflow(tmp_path, client_class):
    (tmp_path / "recipe.yaml").write_text("run: {}")
    folder = tmp_path / "runs" / "a"
    run = tracker(folder, flush_s=200)
    run.params({"learner.lr": 1e-4, "many": "x" * 9000})
    run.metrics(0, {"reward/mean": 0.5, "bad": float("nan")})
    run.metrics(1, {"reward/mean": 0.75})
    run.file(tmp_path / "recipe.yaml", "recipe")
    run.close()
    assert run.lost == 0
    assert history.read(folder / "metrics.jsonl")[1] == {"reward/mean": 0.75}

    client = client_class(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    seen = client.get_run(run.run_id)
    assert seen.info.status == "FINISHED"
    assert seen.info.run_name == "a"
    assert seen.data.params["learner.lr"] == "0.0001"
    points = client.get_metric_history(run.run_id, "reward/mean")
    assert [(p.step, p.value) for p in points] == [(0, 0.5), (1, 0.75)]
    assert "bad" not in seen.data.metrics
    assert {a.path for a in client.list_artifacts(run.run_id)} == {"recipe"}
    assert (tmp_path / "runs" / "mlruns").is_dir()

    again = tracker(folder, run_id=run.run_id, flush_s=200)
    assert again.run_id == run.run_id
    again.params({"learner.lr": 5, "new": 1})
    again.metrics(2, {"reward/mean": 1.0})
    again.close("FAILED")
    assert again.lost == 0
    seen = client.get_run(run.run_id)
    assert seen.info.status == "FAILED"
    assert seen.data.params["learner.lr"] == "0.0001"
    assert seen.data.params["new"] == "1"
    assert len(client.get_metric_history(run.run_id, "reward/mean")) == 3
    assert list(history.read(folder / "metrics.jsonl")) == [0, 1, 2]

    other = tracker(folder, run_id="0" * 32, flush_s=200)
    other.metrics(3, {"reward/mean": 1.0})
    other.close()
    assert other.run_id not in (None, run.run_id, "0" * 32)


RUN = """
import sys
from pathlib import Path
from percent_ray.monitor.tracking import Tracker, _client
_client("sqlite://")  # imported before the runs start together
print("ready", flush=True)
sys.stdin.readline()
run = Tracker(Path(sys.argv[1]), tracking_uri="", experiment="tests", run_name="a", flush_s=200)
run.metrics(0, {"reward/mean": 0.5})
run.close()
sys.exit(run.lost)
"""


def test_runs_that_start_together_in_a_new_folder_lose_nothing(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b", "c")
    ]
    assert [run.stdout.readline() for run in runs if run.stdout] == 3 * ["ready\n"]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    for run in runs:
        run.communicate(timeout=240)
    assert [run.returncode for run in runs] == [0, 0, 0]


@pytest.mark.parametrize("server", ["closed_port", "black_hole"])
def test_a_dead_server_neither_stalls_nor_ends_a_run(
    tmp_path, client_class, server, request, caplog
):
    start = time.monotonic()
    run = tracker(tmp_path / "a", request.getfixturevalue(server), queue_size=20, flush_s=1)
    run.params({"learner.lr": 1e-4})
    slowest = 0.0
    for step in range(100):
        before = time.monotonic()
        run.metrics(step, {"reward/mean": float(step)})
        slowest = max(slowest, time.monotonic() - before)
    run.file(tmp_path / "none.yaml", "recipe")
    assert run.run_id is None
    run.close()
    assert slowest < 1
    assert time.monotonic() - start < 15
    assert run.lost > 50
    assert list(history.read(tmp_path / "a" / "metrics.jsonl")) == list(range(100))
    warnings = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
    assert 1 <= len(warnings) <= 2
    assert "has every metric" in warnings[-1]


def test_a_server_that_comes_back_gets_the_rest_and_the_parameters(
    tmp_path, client_class, monkeypatch
):
    from percent_ray.monitor import tracking

    real, calls = tracking._client, []

    def flaky(uri):
        if not uri.startswith("sqlite"):  # a thread that an earlier test's dead server still holds
            raise ConnectionError(uri)
        calls.append(uri)
        if len(calls) < 3:
            raise ConnectionError("not yet")
        return real(uri)

    monkeypatch.setattr(tracking, "_client", flaky)
    run = tracker(tmp_path / "runs" / "a", flush_s=200)
    run.params({"learner.lr": 1e-4})
    for step in range(5):
        run.metrics(step, {"reward/mean": float(step)})
    run.close()
    assert run.lost == 2
    seen = client_class(tracking_uri=run.uri).get_run(run.run_id)
    assert seen.data.params == {"learner.lr": "0.0001"}
    assert seen.data.metrics == {"reward/mean": 4.0}


def test_an_upload_that_hangs_at_the_end_is_told(tmp_path, client_class, monkeypatch, caplog):
    from percent_ray.monitor import tracking

    real, sending, going = tracking._client, threading.Event(), threading.Event()

    def hang(*_):
        sending.set()
        going.wait()

    def hanging(uri):
        client = real(uri)
        client.log_artifact = hang
        return client

    monkeypatch.setattr(tracking, "_client", hanging)
    run = tracker(tmp_path / "runs" / "a", flush_s=0.1)
    run.file(tmp_path / "policy", "policy")
    sending.wait()
    run.close()
    going.set()
    assert run.lost == 1
    [warning] = [record.getMessage() for record in caplog.records]
    assert "1 records, the last within its time, and has the run as running; " in warning


def test_credentials_of_the_uri_are_given_to_mlflow_alone(tmp_path, monkeypatch, caplog):
    from percent_ray.monitor import tracking

    uri, given = "http://jane:hunter2@host:5000/?token=s3cr3t", []

    def refuse(uri):
        given.append(uri)
        raise ConnectionError(f"API request to {uri} failed for jane:hunter2")

    monkeypatch.setattr(tracking, "_client", refuse)
    run = tracker(tmp_path / "runs" / "a", uri, flush_s=20)
    run.metrics(0, {"reward/mean": 0.5})
    run.close()
    assert given[0] == uri
    assert run.uri == "http://host:5000/"
    said = caplog.text
    assert "MLflow at http://host:5000/: API request to http://host:5000/ failed" in said
    assert "did not take" in said
    assert not {"hunter2", "s3cr3t"} & set(re.findall(r"\w+", said))
