"""Writes the prompt files: GenEval records, one JSON object a line, train and held out."""

import json
from pathlib import Path
from typing import Final

import numpy as np

from percent_ray.data.geneval_prompts import meaning
from percent_ray.shapes import scenes

TEST_COUNTS: Final = dict(
    single_object=2, two_object=4, counting=4, colors=8, position=16, color_attr=48
)
PROBE_PER_TASK: Final = 2
TRAIN_LIMIT: Final = 96
"""Records of one task in the training file, so that colour pairs do not swamp the others."""
GENEVAL: Final = dict(color_attr=1, colors=2, position=7, two_object=22, counting=26)
"""How often ``geneval.jsonl`` has each training record of a task. Of 158 records 96 are colour
pairs, and 12 are pairs of shapes or counts, which the benchmark weighs as much: by these repeats
the tasks have 16, 6, 32, 25 and 20 % of the groups, more where the base model is worse."""


def split(seed: int = 0) -> tuple[list[scenes.Metadata], list[scenes.Metadata]]:
    """Disjoint (train, test) records of all six tasks."""
    rng = np.random.default_rng(seed)
    train: list[scenes.Metadata] = []
    test: list[scenes.Metadata] = []
    for task in scenes.TASKS:
        records = scenes.all_metadata(task)
        shuffled = [records[i] for i in rng.permutation(len(records))]
        held_out = TEST_COUNTS[task]
        test += shuffled[:held_out]
        train += shuffled[held_out : held_out + TRAIN_LIMIT]
    return train, test


def probe(test: list[scenes.Metadata]) -> list[scenes.Metadata]:
    """PROBE_PER_TASK held-out records of each task, the tasks in turn."""
    by_task = [[record for record in test if record["tag"] == task] for task in scenes.TASKS]
    return [records[i] for i in range(PROBE_PER_TASK) for records in by_task]


def write(folder: Path, seed: int = 0) -> None:
    """Writes ``train.jsonl``, ``geneval.jsonl``, ``test.jsonl`` and ``probe.jsonl`` into
    ``folder``. ``geneval.jsonl`` has no picture of a held-out prompt in other words either."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = split(seed)
    held_out = {meaning(record) for record in test}
    free = [record for record in train if meaning(record) not in held_out]
    geneval = [record for record in free for _ in range(GENEVAL.get(record["tag"], 0))]
    files = {"train": train, "geneval": geneval, "test": test, "probe": probe(test)}
    for name, records in files.items():
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
