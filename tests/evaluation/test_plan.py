from pathlib import Path

import pytest

from percent_ray.evaluation import plan as plans
from percent_ray.evaluation.checkpoints import Checkpoint
from percent_ray.recipe.load import RecipeError

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


def written(folder, text):
    path = folder / "rows.yaml"
    path.write_text(f"base: {RECIPES / 'evaluate_shapes.yaml'}\n{text}")
    return path


def test_rows_are_looked_up_and_named(tmp_path):
    path = written(
        tmp_path,
        f"""
rows:
  - {{label: "Base, 5 steps!", recipe: {RECIPES / "shapes_pec.yaml"}, steps: 5, guidance: 2}}
  - {{pipeline: shapes/sd3, steps: 7}}
""",
    )
    plan = plans.load(path, images=3, keep=True)
    base, pipeline = plan.rows
    assert (base.label, base.name) == ("Base, 5 steps!", "Base_5_steps")
    assert isinstance(base.of, Checkpoint)
    assert (base.of.steps, base.of.model.guidance, base.of.policy) == (5, 2, None)
    assert (pipeline.label, pipeline.of.steps) == ("sd3", 7)
    assert (plan.evaluation.images, plan.evaluation.keep) == (3, True)
    assert list(plan.scorers) == ["pickscore", "clip", "geneval", "dino"]
    assert base.identity() == plans.load(path, images=3).rows[0].identity()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows: 3", "rows: got 3, needs a list"),
        ("rows: [a]", r"rows\[0\] : got 'a', needs keys"),
        ("rows: [{label: x}]", r"rows\[0\] x: pipeline"),
        ("rows: [{run: runs/gone}]", "no checkpoint in .*runs/gone"),
        ("rows: [{recipe: gone.yaml}]", "gone.yaml: no such file"),
        ("rows: [{run: a, recipe: b}]", "give one of run, recipe or pipeline"),
        ("rows: [{pipeline: shapes/sd3, stepz: 3}]", "stepz: unknown; a row has pipeline"),
        ("rows: [{pipeline: shapes/sd3}, {pipeline: shapes/sd3}]", "two rows are called 'sd3'"),
        ("images: 1\nrows: [{pipeline: shapes/sd3}]", "images: got 1, needs at least 2"),
        ("judges: [gone]\nrows: [{pipeline: shapes/sd3}]", "gone not among scorers"),
        ("against: gone\nrows: [{pipeline: shapes/sd3}]", "no row 'gone'; there are sd3"),
        ("prompts: gone.txt\nrows: [{pipeline: shapes/sd3}]", "gone.txt: no such file"),
        ("rows: [{pipeline: ./gone}]", r"rows\[0\] : no folder .*gone; give a folder or a hub id"),
        ("judges: []\nencoders: []\nrows: [{pipeline: shapes/sd3}]", "nothing to measure"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        plans.load(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_rows_alone_are_told_where_judges_come_from(tmp_path):
    path = tmp_path / "rows.yaml"
    path.write_text("rows: [{pipeline: shapes/sd3}]")
    with pytest.raises(RecipeError, match="no scorers; `base: FILE` takes"):
        plans.load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(RecipeError, match=r"rows\.yaml: line 1: byte 0xff is not UTF-8"):
        plans.load(path)


def test_without_a_run_the_embedded_model_is_judged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plans.load(RECIPES / "evaluate_shapes.yaml", newest=True)
    assert [row.label for row in plan.rows] == ["base model"]
    assert "no run in runs" in plan.notes[0]
    with pytest.raises(RecipeError, match="no rows; give some there, or RUN"):
        plans.load(written(tmp_path, "rows: []"))


def test_judges_of_another_world_are_said(tmp_path):
    plan = plans.load(written(tmp_path, f"rows: [{{pipeline: {tmp_path}}}]"))
    assert "know nothing of the pictures of" in plan.notes[0]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("evaluate_*.yaml")), ids=lambda p: p.stem)
def test_shipped_files_load(path):
    plan = plans.load(path)
    assert plan.rows
    assert plan.prompts


SCORERS = [
    ('"../../evil": {kind: clip}', "'../../evil' can be no name"),
    ('"": {kind: clip}', "'' can be no name"),
    ("vae: {kind: clip}", "'vae' can be no name"),
    ("vae_centred: {kind: clip}", "'vae_centred' can be no name"),
    (f"{'a' * 101}: {{kind: clip}}", "can be no name"),
    ("draw: {kind: clip}", "'draw' is the name of other actors"),
    ("mine: {kind: nobody}", "scorers.mine.kind: unknown 'nobody'; known are aesthetic, "),
    ("mine: {kind: os}", "scorers.mine.kind: unknown 'os'"),
    ("nobody: {}", "scorers: unknown 'nobody'"),
    ("clip: {path: none}", "scorers.clip.path: no folder none"),
    ("clip: {path: /nonexist}", "scorers.clip.path: no folder /nonexist"),
    ("geneval: {color_path: /nonexist}", "scorers.geneval.color_path: no folder /nonexist"),
    ("mine: {kind: http}", "scorers.mine.path: a http has no default; set it to the URL"),
    ("mine: {kind: http, path: owner/name}", "scorers.mine.path: owner/name is a hub id; give a "),
    ("aesthetic: {}", "scorers.aesthetic.path: a aesthetic has no default; set it to its file"),
    ("clip: {color_path: shapes/clip}", "scorers.clip.color_path: a clip has no use for it; leave"),
    ("mine: {kind: clip, verdict: 0.5}", "scorers.mine.verdict: a clip has no use for it; leave"),
    ("geneval: {timeout_s: 3}", "scorers.geneval.timeout_s: a geneval has no use for it"),
    ("mine: {kind: http, path: 'http://h', served_model: x}", "served_model: a http has no use"),
    ("mine: {kind: http, path: 'http://u:pw@h'}", "a URL that holds a user name or password"),
    ("mine: {kind: http, path: 'http://h', token_env: sk-pw}", "no name of an environment var"),
    ('"a\\nb": {kind: clip}', "has characters that are no text"),
]


@pytest.mark.parametrize(("scorer", "words"), SCORERS, ids=[words for _, words in SCORERS])
def test_a_scorer_is_checked_before_anything_starts(tmp_path, scorer, words):
    asked = f"scorers: {{{scorer}}}\nrows: [{{pipeline: shapes/sd3}}]"
    with pytest.raises(RecipeError) as caught:
        plans.load(written(tmp_path, asked))
    [line] = caught.value.problems
    assert words in line
    assert "\n" not in line
    assert "pw" not in line
    assert not (tmp_path.parent / "evil").exists()


def row(text):
    return f"rows: [{{pipeline: shapes/sd3, {text}}}]"


RUN = f"rows: [{{recipe: {RECIPES / 'shapes_pec.yaml'}, %s}}]"
ROWS = [
    *((row(f"steps: {n}"), "steps: got .* needs at") for n in (0, 1001)),
    *((RUN % f"steps: {n}", "steps: got .* needs at") for n in (0, 1001)),
    *((row(f"batch_size: {n}"), "batch_size: got .* needs at") for n in (0, 65_537)),
    *((RUN % f"batch_size: {n}", "batch_size: got .* needs at") for n in (0, 65_537)),
    *((row(f"guidance: {n}"), "guidance: got .* needs a") for n in (-1, 101, ".inf")),
    *((RUN % f"guidance: {n}", "guidance: got .* needs a") for n in (0, 101, ".inf")),
    *((row(f"resolution: {n}"), "resolution.*: got") for n in (7, 16_385, "[8, 7]")),
    (row("resolution: [8]"), "resolution.1: missing; the list needs more values"),
    *((row(f"lora_scale: {n}"), "lora_scale: got .* needs a") for n in (-101, 101, ".nan")),
    *(
        (row(f"label: {n}"), r"rows\[0\] : label: got .* needs a text that is not empty")
        for n in ("[a]", "{a: 1}", "null", "7", "''", "' '")
    ),
    (row(f"label: {'a' * 121}"), "label: has 121 characters; give at most 120"),
    (row('label: "a\\ud800"'), r"label: 'a\\ud800' has characters that are no text"),
    (row('label: "a\\nb"'), "label: .* has characters that are no text"),
    (row("lora: none.safetensors"), "lora: .*none.safetensors has 0 safetensors files"),
    (row("components: {vae: none}"), "components.vae: no folder none"),
    ("rows: [{pipeline: ''}]", "pipeline: got '', needs a text that is not empty"),
    ("rows: [{pipeline: ~nouser/x}]", "~nouser/x: no such user"),
    ("rows: [{run: ~nouser/x}]", "~nouser/x: no such user"),
    ("rows: [{recipe: ~nouser/x}]", "~nouser/x: no such user"),
    (row("lora: ~nouser/x"), "~nouser/x: no such user"),
    (f"rows: [{{pipeline: {'a' * 300}}}]", "File name too long"),
    ('rows: [{pipeline: "a\\nb"}]', "pipeline: .* has characters that are no text"),
]
SHARED = [
    ("folder: ''", "folder: got '', needs a text that is not empty"),
    ('folder: "a\\nb"', "folder: .* has characters that are no text"),
    ("folder: ~nouser/x", "folder: ~nouser/x: no such user"),
    *((f"timeout_s: {n}", "timeout_s: got .* needs a") for n in (0, 10_000_001, ".inf")),
    *((f"images: {n}", "images: got .* needs at") for n in (1, 10_001)),
    *((f"steps: {n}", "steps: got .* needs at") for n in (0, 1001)),
    *(
        (text % what, f"{key}.{words}")
        for key, text in (("draw", "draw: {%s}"), ("judge.default", "judge: {default: {%s}}"))
        for what, words in (
            ("workers: 0", "workers: got 0"),
            ("workers: 100001", "workers: got 100001"),
            ("gpus: -1", "gpus: got -1"),
            ("gpus: 1000001", "gpus: got 1000001"),
            ("gpus: 1.5", "gpus 1.5: above 1 whole cards are given"),
        )
    ),
]


@pytest.mark.parametrize(
    ("text", "words"),
    [*ROWS, *((f"{text}\n{row('steps: 1')}", words) for text, words in SHARED)],
)
def test_what_is_out_of_bounds_is_one_line(tmp_path, text, words):
    with pytest.raises(RecipeError, match=words) as caught:
        plans.load(written(tmp_path, text))
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_the_outermost_numbers_are_taken(tmp_path):
    text = """
folder: ~/eval
images: 10000
steps: 1000
timeout_s: 10000000
draw: {workers: 100000, gpus: 2}
judge: {default: {workers: 1, gpus: 0.5}}
rows:
  - pipeline: shapes/sd3
    label: %s
    steps: 1000
    guidance: 0
    lora_scale: -100
    resolution: [8, 16384]
    batch_size: 65536
    arguments: {negative_prompt: "a\\nb"}
"""
    plan = plans.load(written(tmp_path, text % ("a" * 120)))
    assert plan.rows[0].of.resolution == (8, 16384)
    assert plan.evaluation.home == Path.home() / "eval"
