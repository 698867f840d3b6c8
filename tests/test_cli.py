import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from percent_ray import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture
def version(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", {"percent_ray": "1.2.3"}.__getitem__)


def test_version(version, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == "percent_ray 1.2.3\n"


def test_without_arguments_it_names_the_jobs(version, capsys):
    cli.main([])
    text = capsys.readouterr().out
    assert "jobs/train_pec.py" in text
    assert "ray job submit --working-dir . -- python jobs/train_pec.py" in text


def test_the_package_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "percent_ray", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.stdout == f"percent_ray {importlib.metadata.version('percent_ray')}\n"
