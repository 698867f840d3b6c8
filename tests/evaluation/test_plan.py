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
