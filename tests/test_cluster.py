"""The cluster files are checked as far as a machine without a cluster can: they load, token
authentication is on, and they run the command of the README."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
SUBMIT = "ray job submit --working-dir . -- "


def ray_job():
    job, _ = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())
    return job["spec"]


def test_ray_job_runs_the_command_of_the_readme():
    assert SUBMIT + ray_job()["entrypoint"] in (ROOT / "README.md").read_text()
    assert SUBMIT + ray_job()["entrypoint"] in (CLUSTER / "ray-up.yaml").read_text()


def test_ray_job_has_tokens_on_and_a_volume_where_the_runs_go():
    cluster = ray_job()["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert claims[mount["name"]] == "percent-ray-runs"
        assert mount["mountPath"] == pod["containers"][0]["workingDir"] + "/runs"


def test_ray_versions_agree():
    pinned = next(
        line.removeprefix("ray==").strip()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    )
    assert ray_job()["rayClusterSpec"]["rayVersion"] == pinned


def test_ray_up_copies_the_token_and_starts_every_node_with_tokens_on():
    config = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in config[commands] if "ray start" in line]
        assert "export RAY_AUTH_MODE=token" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists(), local


def test_the_image_installs_from_the_constraints():
    text = (CLUSTER / "Dockerfile").read_text()
    assert "-c constraints.txt" in text
    assert "WORKDIR /app" in text
