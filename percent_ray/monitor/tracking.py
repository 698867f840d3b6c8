"""MLflow, kept at arm's length: one thread talks to it, and nothing that it does can stop a run.

Metrics are first appended to `metrics.jsonl` in the run's folder, pictures are first written there;
MLflow gets a copy through a bounded queue. What a slow or dead server does not take is dropped and
counted.
"""

import logging
import math
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from percent_ray.monitor import history
from percent_ray.monitor.history import History
from percent_ray.recipe import secret

if TYPE_CHECKING:
    from mlflow import MlflowClient

Send = Callable[["MlflowClient", str], object]
"""One delivery: called with the client and the run id."""

Status = Literal["FINISHED", "FAILED", "KILLED"]

_log = logging.getLogger(__name__)

_PARAM_LENGTH = 6000
_PARAMS_A_CALL = 100


class Tracker:
    """Where a run's metrics, pictures and files go. No method waits for MLflow, none raises for it.

    `run_folder` is FOLDER/NAME of the run; without a `tracking_uri` MLflow's database and artifacts
    are FOLDER/mlflow.db and FOLDER/mlruns, shared by the runs of FOLDER. `run_id` continues an
    MLflow run.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        tracking_uri: str,
        experiment: str,
        run_name: str,
        run_id: str | None = None,
        queue_size: int = 1000,
        flush_s: float | None = None,
    ) -> None:
        self.folder = run_folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._uri = tracking_uri or f"sqlite:///{self.folder.parent / 'mlflow.db'}"
        self.uri = secret.public(tracking_uri) or self._uri
        """Without credentials."""
        self.history = History(self.folder / history.FILE)
        self._artifacts = None if tracking_uri else (self.folder.parent / "mlruns").as_uri()
        self._experiment = experiment
        self._run_name = run_name
        self._run_id = run_id
        self._client: MlflowClient | None = None
        self._params: dict[str, str] = {}
        self._status: Status = "FINISHED"
        # A server may be dead; a database file is at worst slow (its first use migrates it).
        self._flush_s = flush_s or (5.0 if self._uri.startswith("http") else 30.0)
        self._deadline: float | None = None
        self._dropped = 0
        self._failed = 0
        self._queue: queue.Queue[Send] = queue.Queue(queue_size)
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run; None until the server has given one."""
        return self._run_id

    @property
    def lost(self) -> int:
        """Records that MLflow did not take; the run's folder has them."""
        return self._dropped + self._failed

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters once. A resumed run keeps those that MLflow has already."""
        self._params |= {key: str(value)[:_PARAM_LENGTH] for key, value in values.items()}
        self._send(self._log_params)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step to the metrics file, then hand them to MLflow."""
        self.history.append(step, values)
        now = int(time.time() * 1000)
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}

        def send(client: "MlflowClient", run_id: str) -> None:
            from mlflow.entities import Metric

            metrics = [Metric(name, value, now, step) for name, value in finite.items()]
            client.log_batch(run_id, metrics=metrics)

        self._send(send)

    def file(self, path: Path, folder: str) -> None:
        """Copy a file, or what is in a folder, to `folder` of MLflow's artifacts."""
        if path.is_dir():
            self._send(lambda client, run_id: client.log_artifacts(run_id, str(path), folder))
        else:
            self._send(lambda client, run_id: client.log_artifact(run_id, str(path), folder))

    def close(self, status: Status = "FINISHED") -> None:
        """Deliver what is waiting for at most `flush_s` seconds and end the MLflow run."""
        self._status = status
        self._deadline = time.monotonic() + self._flush_s
        # The thread itself gives up at the deadline, unless it hangs in a call.
        self._thread.join(self._flush_s + 1)
        hangs = self._thread.is_alive()
        self._dropped += self._queue.qsize() + hangs
        self.history.close()
        if self.lost:
            _log.warning(
                "MLflow at %s did not take %d records%s; %s has every metric",
                self.uri,
                self.lost,
                ", the last within its time, and has the run as running" if hangs else "",
                self.history.path,
            )

    def _send(self, send: Send) -> None:
        try:
            self._queue.put_nowait(send)
        except queue.Full:
            self._dropped += 1

    def _work(self) -> None:
        while (send := self._next()) is not None:
            self._attempt(send)
        self._attempt(lambda client, run_id: client.set_terminated(run_id, self._status))

    def _next(self) -> Send | None:
        """The next delivery; None when the tracker is closed and empty, or out of time."""
        while self._deadline is None or time.monotonic() < self._deadline:
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                if self._deadline is not None:
                    return None
        return None

    def _attempt(self, send: Send) -> None:
        try:
            send(*self._connect())
        except Exception as error:
            if not self._failed:
                _log.warning(
                    "MLflow at %s: %s; the run goes on, %s has every metric",
                    self.uri,
                    secret.hide(str(error), self._uri).split("\n", 1)[0][:120],
                    self.history.path,
                )
            self._failed += 1

    def _connect(self) -> tuple["MlflowClient", str]:
        """The client and the run id; tried again at every delivery until it works once."""
        if self._client is None or self._run_id is None:
            with self._alone():
                client = _client(self._uri)
                self._run_id = self._continue_run(client) or self._create_run(client)
            self._client = client
            self._log_params(client, self._run_id)
        return self._client, self._run_id

    def _alone(self) -> AbstractContextManager[object]:
        """One run of the folder at a time: MLflow makes its tables at the first call, and of two
        processes that do so at once one fails. A server does that by itself."""
        if self._artifacts is None:
            return nullcontext()
        return FileLock(self.folder.parent / "mlflow.lock")

    def _continue_run(self, client: "MlflowClient") -> str | None:
        from mlflow.exceptions import MlflowException

        if self._run_id is None:
            return None
        try:
            client.update_run(self._run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            _log.warning("MLflow at %s has no run %s; starting another", self.uri, self._run_id)
            return None
        return self._run_id

    def _create_run(self, client: "MlflowClient") -> str:
        found = client.get_experiment_by_name(self._experiment)
        experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(self._experiment, artifact_location=self._artifacts)
        )
        return client.create_run(experiment_id, run_name=self._run_name).info.run_id

    def _log_params(self, client: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Param

        there = client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in self._params.items() if key not in there]
        for start in range(0, len(new), _PARAMS_A_CALL):
            client.log_batch(run_id, params=new[start : start + _PARAMS_A_CALL])


def _client(uri: str) -> "MlflowClient":
    # Read when mlflow is imported. Without them a call to a dead server takes minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    # Telemetry is a call to a machine that nobody named in the recipe.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    # What fails is told in one line of ours, and not with MLflow's traceback, too.
    for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"mlflow\.")
    return MlflowClient(tracking_uri=uri)
