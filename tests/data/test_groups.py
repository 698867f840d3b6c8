"""The file between the two halves of a run, whole and damaged."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from percent_ray.data import arrow, groups
from percent_ray.objective.grpo import Weights
from percent_ray.recipe.tree import Recipe, Sampling
from percent_ray.types import ShapedBatch, ShapedRow

RECIPE = Recipe()
NAN = float("nan")


def payload(**changes):
    source = torch.Generator().manual_seed(0)
    shapes = {"latents": (4, 3, 2, 3, 5), "means": (4, 2, 2, 3, 5), "log_probs": (4, 2)}
    tensors = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    tensors |= {"final": torch.zeros(4, 2, 3, 5)} | changes
    return arrow.trajectory_table(steps=range(1, 3), **tensors)


def batch(rows=2, **changes):
    row = ShapedRow(
        group_id=7,
        version=0,
        payload=payload(),
        condition=arrow.pack({"prompt_embeds": torch.ones(1, 6, 8)}),
        weights=Weights(torch.randn(4, 2, generator=torch.Generator().manual_seed(1))),
    )
    return ShapedBatch(0, (replace(row, **changes),) * rows)


@pytest.fixture
def file(tmp_path):
    groups.write(batch(), tmp_path / "g.arrow", RECIPE)
    return tmp_path / "g.arrow"


def test_a_batch_comes_back_bit_for_bit(file):
    found = groups.read(file, RECIPE)
    assert len(found.rows) == 2
    for row, expected in zip(found.rows, batch().rows, strict=True):
        assert (row.group_id, row.version) == (7, 0)
        assert row.payload.equals(expected.payload)
        assert row.condition.equals(expected.condition)
        assert torch.equal(row.weights.advantage, expected.weights.advantage)
        assert row.weights.score is None


def refused(path, recipe=RECIPE):
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        groups.read(path, recipe)
    said = str(caught.value)
    assert "\n" not in said
    assert said.count("--only rollout"), said
    return said


WHOLE = "is not a file of --only rollout: "
FILES = {
    "empty": (b"", WHOLE),
    "text": (b"not arrow", WHOLE),
    "binary": (b"\x00\xff" * 999, WHOLE),
    "only the magic": (b"ARROW1\x00\x00" * 2, WHOLE),
    "JSON": (b'{"group_id": 1}', WHOLE),
}


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES)
def test_another_file_is_one_line(tmp_path, content, expected):
    path = tmp_path / "other.arrow"
    path.write_bytes(content)
    assert expected in refused(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_torn_file_is_one_line(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert WHOLE in refused(file)


def test_no_file_and_a_folder_are_one_line(tmp_path):
    assert WHOLE in refused(tmp_path)
    assert WHOLE in refused(tmp_path / "nowhere.arrow")


def rewritten(file: Path, change):
    """The same file with its table changed."""
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    table = change(table)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def column(name, values, kind=None):
    def change(table):
        number = table.schema.get_field_index(name)
        return table.set_column(number, name, pa.array(values, kind))

    return change


BYTES = pa.binary()
TABLES = {
    "text payloads": (column("payload", ["/etc/passwd", "b"]), "its column payload is string"),
    "text conditions": (column("condition", ["a", "b"]), "its column condition is string"),
    "numbers for groups": (column("group_id", ["a", "b"]), "its column group_id is string"),
    "weights that are a number": (column("weights", [1.0, 2.0]), "its column weights is double"),
    "no payload": (lambda t: t.drop_columns(["payload"]), "payload"),
    "no metadata": (lambda t: t.replace_schema_metadata(None), "expected a groups table"),
    "garbage for metadata": (
        lambda t: t.replace_schema_metadata({"percent_ray": "{"}),
        "expected a groups table",
    ),
    "a list for metadata": (
        lambda t: t.replace_schema_metadata({"percent_ray": "[1]"}),
        "expected a groups table",
    ),
    "no rows": (lambda t: t.slice(0, 0), "has no groups"),
    "empty payloads": (column("payload", [b"", b""], BYTES), "its payload is torn"),
    "no payloads": (column("payload", [None, None], BYTES), "its payload is torn"),
    "garbage for payloads": (column("payload", [b"\xff" * 99] * 2, BYTES), "its payload is torn"),
    "torn conditions": (
        lambda t: column("condition", [v[:80] for v in t["condition"].to_pylist()], BYTES)(t),
        "its condition is torn",
    ),
    "conditions for payloads": (
        lambda t: column("payload", t["condition"].to_pylist(), BYTES)(t),
        "expected a trajectory table",
    ),
    "payloads for conditions": (
        lambda t: column("condition", t["payload"].to_pylist(), BYTES)(t),
        "expected a tensors table",
    ),
    "unknown weights": (
        column("weights", [{"advantage": [[1.0, 1.0]] * 4, "x": [[1.0]]}] * 2),
        "x",
    ),
    "no advantage": (column("weights", [{"score": [[1.0, 1.0]] * 4}] * 2), "advantage"),
    "ragged weights": (column("weights", [{"advantage": [[1.0, 1.0], [1.0]]}] * 2), "group 7"),
    "weights of fewer images": (
        column("weights", [{"advantage": [[1.0, 1.0]] * 3}] * 2),
        r"its advantage is \[3, 2\] and its payload has 4 images of 2",
    ),
    "NaN weights": (
        column("weights", [{"advantage": [[1.0, NAN]] * 4}] * 2),
        "4 of the 8 numbers of its weights' advantage are NaN or infinite",
    ),
}


@pytest.mark.parametrize(("change", "expected"), TABLES.values(), ids=TABLES)
def test_a_damaged_table_is_one_line(file, change, expected):
    rewritten(file, change)
    assert re.search(expected, said := refused(file)), said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"payload": payload(final=torch.full((4, 2, 3, 5), NAN))}, "its payload's final are NaN"),
        (
            {"payload": payload(log_probs=torch.full((4, 2), NAN))},
            "its payload's log_probs are NaN",
        ),
        (
            {"condition": arrow.pack({"prompt_embeds": torch.full((1, 6, 8), float("inf"))})},
            "48 of the 48 numbers of its condition's prompt_embeds are NaN or infinite",
        ),
    ],
)
def test_numbers_that_are_not_finite_are_named(tmp_path, changes, expected):
    groups.write(batch(**changes), tmp_path / "nan.arrow", RECIPE)
    said = refused(tmp_path / "nan.arrow")
    assert expected in said
    assert "group 7" in said
    assert "learner.lr" not in said


def test_a_file_without_groups_says_why(tmp_path):
    groups.write(batch(rows=0), tmp_path / "none.arrow", RECIPE)
    assert "none teaches anything" in refused(tmp_path / "none.arrow")


def test_a_file_of_other_settings_names_them(file):
    other = RECIPE.model_copy(update={"sampling": Sampling(noise_level=0.3, steps=12)})
    said = refused(file, other)
    assert "sampling.noise_level was 0.7, is 0.3" in said
    assert "sampling.steps was 10, is 12" in said
    elsewhere = RECIPE.model.model_copy(update={"path": f"/mnt/{RECIPE.model.path}"})
    groups.read(file, RECIPE.model_copy(update={"model": elsewhere}))


@pytest.mark.parametrize(
    ("latents", "tokens", "steps", "expected"),
    [
        ((2, 3, 5), 6, 10, ""),
        ((4, 3, 5), 6, 10, r"latents \(2, 3, 5\), the model's are \(4, 3, 5\)"),
        ((2, 3, 5), 9, 10, r"a condition of .*\(1, 6, 8\)\}, the model's are .*\(1, 9, 8\)\}"),
        ((2, 3, 5), 6, 2, r"3 steps, sampling\.steps are 2"),
    ],
)
def test_tensors_that_are_not_the_models_are_one_line(file, latents, tokens, steps, expected):
    shapes: dict[str, Any] = {
        "latent_shape": latents,
        "condition_shapes": {"prompt_embeds": (tokens, 8)},
    }
    found = groups.read(file, RECIPE)
    recipe = RECIPE.model_copy(update={"sampling": Sampling(steps=steps)})
    if not expected:
        groups.check_fits(file, found, recipe, **shapes)
        return
    with pytest.raises(ValueError, match=rf"group 7 has {expected}; give the recipe"):
        groups.check_fits(file, found, recipe, **shapes)
