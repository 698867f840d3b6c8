"""The cluster files are checked as far as a machine without a cluster can: they load, token
authentication is on, and they run the command of the README."""

import subprocess
from pathlib import Path

import yaml

from percent_ray.recipe import load as recipes

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
SUBMIT = "ray job submit --working-dir . -- "


def ray_job():
    job, _ = yaml.safe_load_all((CLUSTER / "rayjob.yaml").read_text())
    return job["spec"]


def words(path):
    """A file in one line, without what continues a command."""
    return " ".join(word for word in (ROOT / path).read_text().split() if word not in ("\\", "#"))


def test_ray_job_runs_a_command_of_the_readme():
    for path in ("README.md", "cluster/ray-up.yaml"):
        assert SUBMIT + ray_job()["entrypoint"] in words(path)


def recipe_of(entrypoint):
    _, _, _, config, *_ = entrypoint.split()
    return recipes.load(ROOT / config)


def test_ray_job_has_a_group_a_role_with_what_the_recipe_asks():
    runtime = recipe_of(ray_job()["entrypoint"]).runtime
    groups = {
        group["groupName"]: group for group in ray_job()["rayClusterSpec"]["workerGroupSpecs"]
    }
    assert groups.keys() == {"rollout", "perception", "learner"}
    for name, group in groups.items():
        role = getattr(runtime, name)
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert group["replicas"] == group["minReplicas"] == role.workers
        assert int(limits["nvidia.com/gpu"]) == role.gpus
        assert int(limits["cpu"]) >= role.cpus
        assert limits == container["resources"]["requests"]


def test_ray_job_has_tokens_on_and_a_volume_where_the_runs_go():
    cluster = ray_job()["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        claims = {
            v["name"]: v["persistentVolumeClaim"]["claimName"]
            for v in pod["volumes"]
            if "persistentVolumeClaim" in v
        }
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert claims["runs"] == "percent-ray-runs"
        assert mounts == {"runs": container["workingDir"] + "/runs", "shm": "/dev/shm"}


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


def test_slurm_takes_the_token_and_comes_back():
    """What the script does is in tests/end_to_end/test_slurm.py."""
    text = (CLUSTER / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)
    for line in ("#SBATCH --requeue", "#SBATCH --signal=B:USR1@", "RAY_AUTH_MODE=token"):
        assert line in text
