"""Comparisons and evaluations: their files, and their jobs' flags. Nothing is trained or drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.inputs.case import Case

RECIPES = Path(__file__).parents[3] / "jobs" / "recipes"
COMPARISON: dict[str, Any] = {
    "base": "base.yaml",
    "name": "c",
    "recipe": {
        "scorers": {"geneval": {}},
        "run": {"steps": 40, "checkpoint_every": 1},
        "runtime": {"backend": "local"},
    },
    "rows": {"flow_grpo": {"label": "Flow-GRPO", "kind": "reference"}},
    "evaluation": {"judges": ["pickscore", "geneval"], "encoders": ["dino"]},
}
EVALUATION: dict[str, Any] = {
    "images": 4,
    "judges": ["pickscore"],
    "encoders": ["dino"],
    "scorers": {"pickscore": {"path": "shapes/pickscore"}, "dino": {"path": "shapes/dino"}},
    "rows": [{"label": "base", "recipe": "base.yaml"}],
}
RECORD = '{"prompt": "a red cat", "tag": "colors", "include": [{"class": "cat", "count": 1}]}\n'


def _with(whole: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(whole) | dict(changes), sort_keys=False)


def compared(says: str | None, flags: str = "", /, text: str | None = None, **changes: Any) -> Case:
    """A comparison with other keys, or another text of its file."""
    files = {
        "base.yaml": (RECIPES / "shapes_flow_grpo.yaml").read_text(),
        "plain.txt": "a red cat\n",
        "empty.txt": "\n",
        "cat.jsonl": RECORD,
        "c.yaml": _with(COMPARISON, changes) if text is None else text,
    }
    return Case(f"--config c.yaml {flags}".strip(), says, files=files, job="compare")


def judged(**evaluation: Any) -> dict[str, Any]:
    return {"evaluation": COMPARISON["evaluation"] | evaluation}


def evaluated(says: str | None, flags: str = "", /, **changes: Any) -> Case:
    """An evaluation with other keys."""
    files = {
        "base.yaml": (RECIPES / "shapes_flow_grpo.yaml").read_text(),
        "plain.txt": "a red cat\n",
        "empty.txt": "\n",
        "e.yaml": _with(EVALUATION, changes),
    }
    return Case(f"--rows e.yaml {flags}".strip(), says, files=files, job="evaluate")


GENEVAL = {**EVALUATION["scorers"], "geneval": {}}
ROW = COMPARISON["rows"]["flow_grpo"]

CASES = [
    compared(None),
    evaluated(None),
    evaluated(None, "--judges - --prompts plain.txt"),
    # The files themselves.
    compared("not YAML", text="{"),
    compared("holds no keys", text=""),
    compared("holds no keys", text="[1, 2]"),
    compared("holds no keys", text="flow_grpo"),
    compared("base: got None, needs a recipe file", text="name: c"),
    compared(r"base: got \['a'\], needs a recipe file", base=["a"]),
    compared(r"rows\.flow_grpo: .*gone\.yaml", base="gone.yaml"),
    compared("frobnicate", frobnicate=1),
    compared("rows: got", rows=["flow_grpo"]),
    compared("none of the rows is a reference", rows={}),
    compared(r"label", rows={"flow_grpo": {}}),
    compared(r"kind: got 'best'", rows={"flow_grpo": {**ROW, "kind": "best"}}),
    compared(r"rows\.base: is the model before training", rows={"base": ROW}),
    compared("", rows={"..": ROW}),
    compared("", rows={"a/b": ROW}),
    compared(r"rows\.flow_grpo: frobnicate", recipe={"frobnicate": 1}),
    compared(
        "set run.checkpoint_every lower",
        seeds=[1],
        recipe={**COMPARISON["recipe"], "run": {"steps": 2, "checkpoint_every": 2}},
    ),
    *(compared("name: got", name=name) for name in ("..", ".", "", "a/b", "-x")),
    # Judges and encoders.
    compared("nobody not among scorers", **judged(judges=["nobody"])),
    compared("nobody not among scorers", **judged(encoders=["dino", "nobody"])),
    compared("judges names pickscore twice", **judged(judges=["pickscore", "pickscore"])),
    compared("encoders names dino twice", **judged(encoders=["dino", "dino"])),
    compared("judges names dino, and a dino only encodes", **judged(judges=["dino"])),
    compared("encoders names geneval, and a geneval only scores", **judged(encoders=["geneval"])),
    compared("judges: got 'pickscore'", **judged(judges="pickscore")),
    # Prompts.
    compared("nowhere.txt: no such file of prompts", **judged(prompts="nowhere.txt")),
    compared("empty.txt: no prompts in it", **judged(prompts="empty.txt")),
    compared("prompts are read from", **judged(prompts="base.yaml")),
    compared("has no record of GenEval", **judged(prompts="plain.txt")),
    # Seeds and numbers.
    compared("seeds: 2 is there twice", seeds=[1, 2, 2]),
    compared("seeds: got", seeds=[]),
    compared("seeds.*: got", seeds=[-1]),
    compared("seeds.*: got", seeds=[1.5]),
    compared("seeds.*: got", seeds=["1"]),
    compared("seeds: got", seeds=3),
    compared("seeds.*: got", seeds=[10**30]),
    compared("seeds: 1 is there twice", "--seeds 1,1"),
    compared("seeds.*: got -3", "--seeds=-3,1"),
    *(compared("no list of seeds", f"--seeds={seeds}") for seeds in ("a", "1,,2", "1.5", "1;2")),
    *(compared("workers: got", workers=value) for value in (0, -1, "2", 1.5, 10**12)),
    *(compared("workers: got", f"--workers={value}") for value in (0, -1, 10**12)),
    *(compared("gpus: got", gpus=value) for value in (-1, float("inf"), float("nan"), 10**9)),
    compared("pool 3 has fewer pictures", pool=3),
    *(compared("pool: got", pool=value) for value in (-1, 10**12)),
    *(compared("images: got", **judged(images=value)) for value in (0, 1, -5, 10**12)),
    *(compared("steps: got", **judged(steps=value)) for value in (0, -5, 10**12)),
    compared("no row nobody", "--only nobody"),
    compared("names no row", "--only ,"),
    compared("no row x", quick=["x"]),
    # Evaluations.
    evaluated("nobody not among scorers", judges=["nobody"]),
    evaluated("nobody not among scorers", "--judges nobody"),
    evaluated("judges names dino, and a dino only encodes", "--judges pickscore,dino"),
    evaluated("encoders names geneval", encoders=["geneval"], scorers=GENEVAL),
    evaluated("judges names pickscore twice", "--judges pickscore,pickscore"),
    evaluated("no judges and no encoders", "--judges - --encoders -"),
    evaluated("no such file of prompts", "--prompts nowhere.txt"),
    evaluated("no prompts in it", "--prompts empty.txt"),
    evaluated(
        "has no record of GenEval", "--prompts plain.txt", judges=["geneval"], scorers=GENEVAL
    ),
    *(evaluated("images: got", f"--images={value}") for value in (0, 1, -5, 10**12)),
    *(evaluated("steps: got", f"--steps={value}") for value in (0, -5, 10**12)),
    *(evaluated("seed: got", f"--seed={value}") for value in (10**30, -(10**30))),
    *(evaluated("invalid int", f"--images={value}") for value in ("x", "1.5", "1e3")),
    evaluated(r"judge\.nobody: no such scorer", judge={"nobody": {"workers": 2}}),
    evaluated(r"draw\.workers: got 0", draw={"workers": 0}),
    evaluated("timeout_s: got", timeout_s=-1),
    evaluated("against: no row 'x'", "--against x"),
    evaluated("rows: got", rows={"a": 1}),
    evaluated("two rows are called 'base'", rows=EVALUATION["rows"] * 2),
    evaluated("no scorers", scorers={}, judges=[], encoders=[]),
    evaluated("nowhere", "nowhere@3"),
    # The other jobs' numbers.
    *(
        Case(f"--steps={value}", "no whole number above 0", job="pretrain_shapes")
        for value in (-5, 0, "x", "1.5", 10**12, "²")
    ),
    *(Case(f"--threads={value}", "above 0", job="pretrain_shapes") for value in (-1, 0, 10**12)),
    *(Case(f"--seed={value}", "--seed", job="pretrain_shapes") for value in (-1, 2**31, "x")),
    Case("--only nobody", "--only has no nobody", job="pretrain_shapes"),
    Case("--only ,", "--only has no", job="pretrain_shapes"),
    *(
        Case(f"--groups={value}", "groups", job="compare_decoders")
        for value in (0, -3, "x", 10**12)
    ),
    *(Case(f"--pictures={v}", "pictures", job="calibrate_detector") for v in (0, -3, "x", 10**12)),
    *(
        Case(f"make a b --{name}={value}", f"--{name} needs|argument --{name}", job="user_study")
        for name in ("pairs", "images", "size")
        for value in (0, -1, "x")
    ),
]
