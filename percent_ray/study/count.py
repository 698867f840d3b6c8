"""Counting a study: files of answers in, percentages and the paper's figure out."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Int

from percent_ray.study.figure import draw
from percent_ray.study.records import QUESTIONS, Answers, Key, find_key, read_answers, read_key
from percent_ray.study.statistics import CONFIDENCE, MISSING, SIDES, Question, summarize


def count(paths: Sequence[Path], key_path: Path | None) -> list[str]:
    """Count the answers in `paths` and write `counts.json`, `counts.csv` and `counts.png` beside
    the key, which is sought near the first file where `key_path` is None; returns what to say.

    Raises ValueError, which names the file, as `read_answers` does, and for a question that nobody
    has answered.
    """
    key_path = key_path or find_key(paths)
    key = read_key(key_path)
    files = read_answers(paths, key)
    votes = tabulate(files, key)
    counted = {
        question: summarize(votes[:, :, column], question)
        for column, question in enumerate(QUESTIONS)
    }
    folder = key_path.parent
    annotators = [answers.annotator for answers in files]
    numbers = {
        "study": key.study,
        "a": key.row_a.label,
        "b": key.row_b.label,
        "pairs": len(key.pairs),
        "annotators": annotators,
        "questions": {question: asdict(of) for question, of in counted.items()},
    }
    (folder / "counts.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    _write_csv(counted, key, folder / "counts.csv")
    draw(counted, key, len(files), folder / "counts.png")
    return [
        f"{len(files)} annotators, {len(key.pairs)} pairs, "
        f"{sum(q.given for q in counted.values())} answers "
        f"({sum(q.missing for q in counted.values())} missing); {CONFIDENCE:.0%} intervals",
        *(_said(question, of, key) for question, of in counted.items()),
        *(["one annotator: the intervals say nothing of other people"] if len(files) == 1 else []),
        f"written: {folder}/counts.json, counts.csv, counts.png",
    ]


def tabulate(files: Sequence[Answers], key: Key) -> Int[np.ndarray, "annotators pairs questions"]:
    """Every answer as its place in `SIDES`, or MISSING."""
    votes = np.full((len(files), len(key.pairs), len(QUESTIONS)), MISSING)
    for row, answers in enumerate(files):
        for answer in answers.answers:
            pair = key.pairs[answer.pair - 1]
            first, second = ("a", "b") if pair.set_1 == "A" else ("b", "a")
            sides = {"set_1": first, "none": "none", "set_2": second}
            for column, question in enumerate(QUESTIONS):
                if (choice := getattr(answer, question)) is not None:
                    votes[row, answer.pair - 1, column] = SIDES.index(sides[choice])
    return votes


def _said(question: str, of: Question, key: Key) -> str:
    names = {"a": key.row_a.label, "none": "no preference", "b": key.row_b.label}
    shares = ", ".join(
        f"{names[side]} {share.percent:.0f} % ({share.low:.0f} to {share.high:.0f})"
        for side, share in of.shares.items()
    )
    agreed = "" if of.agreed is None else f"; annotators agree in {of.agreed:.0%}"
    alpha = "" if of.alpha is None else f", Krippendorff's alpha {of.alpha:.2f}"
    return (
        f"{question}: {shares}\n  pairs {of.pairs_a} to {of.pairs_b}, {of.pairs_tied} tied, sign "
        f"test p {of.p:.2g}{agreed}{alpha}"
    )


def _write_csv(counted: Mapping[str, Question], key: Key, path: Path) -> None:
    columns = ["question", "a", "b", "answers", "missing"]
    columns += [f"{side}_{what}" for side in SIDES for what in ("percent", "low", "high")]
    columns += ["pairs_a", "pairs_tied", "pairs_b", "sign_test_p", "agreed", "krippendorff_alpha"]
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(columns)
        for question, of in counted.items():
            shares = [
                f"{value:.6g}"
                for side in SIDES
                for value in (of.shares[side].percent, of.shares[side].low, of.shares[side].high)
            ]
            known = ["" if v is None else f"{v:.6g}" for v in (of.p, of.agreed, of.alpha)]
            named = [question, key.row_a.label, key.row_b.label, of.given, of.missing]
            out.writerow([*named, *shares, of.pairs_a, of.pairs_tied, of.pairs_b, *known])
