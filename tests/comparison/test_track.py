"""The copy of a comparison's report in MLflow."""

import pytest

from percent_ray.comparison import report, results, tables
from percent_ray.recipe.tree import Monitor
from tests.comparison import fabricated


@pytest.mark.slow
def test_the_report_is_one_run_of_mlflow_however_often_it_is_written(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of a database
    plan = fabricated.load(tmp_path)
    fabricated.finish(plan)
    read = results.read(plan)
    numbers = tables.tabulate(read, results.read(plan, "s1"))
    report.write(read, numbers, "x")
    uri = f"sqlite:///{tmp_path}/mine.db"
    for _ in range(2):
        report.track(read, numbers, Monitor(tracking_uri=uri, experiment="mine"))
    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.data.metrics["ours/vendi/clip"] == pytest.approx(7.47)
    names = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
    assert names >= {"report/report.html", "report/table_1.csv", "report/table_s1.csv"}
