"""Every bad input of classes/ is refused as it should be, every odd but good one is taken."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.inputs import server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcomes():
    """By class. A process of its own runs them: forks need one without threads."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.inputs.server", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert not run.returncode, run.stderr
    found = defaultdict(list)
    for line in run.stdout.splitlines():
        outcome = json.loads(line)
        found[outcome["kind"]].append(outcome)
    return found


@pytest.mark.parametrize("kind", server.classes())
def test_inputs_are_refused_in_a_clear_line_or_taken(outcomes, kind):
    found = outcomes[kind]
    assert len(found) == len(server.cases(kind))
    wrong = [
        f"{', '.join(o['wrong'])}: {o['case']} (exit {o['code']})\n{o['errors'][-600:]}"
        for o in found
        if o["wrong"]
    ]
    taken = sum(not o["code"] for o in found)
    print(f"{kind}: {len(found) - taken} refused, {taken} taken, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


def test_there_are_hundreds(outcomes):
    assert sum(map(len, outcomes.values())) >= 300
