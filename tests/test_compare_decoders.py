"""jobs/compare_decoders.py: what it computes, and the job itself on the shipped world."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.compare_decoders import Compared, summary, table

ROOT = Path(__file__).parents[1]


def test_correlations_within_groups_over_all_and_of_the_mean_over_steps():
    """Two groups, each in reverse by the tiny decoder, far from each other by both; a step that is
    of the second group's window alone."""
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    groups = [(rows[:, :1], -rows[:, :1]), (rows + 100, 100 - rows)]
    groups[1][0][:, 1] += 10 * torch.tensor([1.0, 2.0, 3.0])
    groups[1][1][:, 1] += 10 * torch.tensor([1.0, 2.0, 3.0])
    said = summary(Compared({"x": groups}, [range(1), range(2)], 9, (3.0, 1.5)))
    assert said["ratio"] == 2
    steps = said["spearman"]["x"]
    assert steps["0"]["within"] == -1
    # Ranks 1 to 6 and 3 2 1 6 5 4.
    assert steps["0"]["all"] == pytest.approx(1 - 6 * 16 / (6 * 35), abs=1e-4)
    assert steps["1"] == {"within": 1.0, "all": 1.0}
    assert steps["mean"]["within"] == 0, "-1 in the one group and 1 in the other"
    assert any("step 1" in line and "1.000" in line for line in table(said))


def job(*arguments):
    command = [sys.executable, "jobs/compare_decoders.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_job_on_the_shipped_world():
    shared = ("--groups", "1", "--json", "--sampling.group_size", "8", "--perceptual.spaces")
    ended = job(*shared, "[pickscore,dino]", "--perceptual.decode", "clean")
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["images"] == 2 * 8 * 3
    assert said["ratio"] == pytest.approx(said["full_s"] / said["tiny_s"], rel=0.05)
    for space in ("pickscore", "dino"):
        assert list(said["spearman"][space]) == ["0", "1", "2", "mean"]
        assert said["spearman"][space]["mean"]["within"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--learner.process", "forward"], "learner.process forward has no transitions to score"),
        (["--perceptual.spaces", "[]"], "perceptual.spaces: names no space to score in"),
        (["--perceptual.tiny_path", "shapes/sd3"], "perceptual.tiny_path: decoder of "),
        (["--perceptual.decoder", "small"], "perceptual.decoder: got 'small'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, said):
    ended = job("--json", *arguments)
    assert ended.returncode == 2
    assert [said in line for line in ended.stderr.splitlines() if line.startswith("error: ")] == [
        True
    ]
