"""What a comparison's folder may hold after a full disk, a crash or an editor."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from percent_ray.comparison import results, runs, stored, tables
from tests.comparison import fabricated

ROWS = ["flow_grpo", "pec"]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    plan = fabricated.load(tmp_path_factory.mktemp("whole"), rows=ROWS, seeds=[1])
    fabricated.finish(plan)
    assert not runs.unfinished(plan)
    shutil.copytree(plan.comparison.runs, plan.comparison.home / "kept")
    return plan


@pytest.fixture
def plan(whole):
    """Its files as they were written."""
    shutil.rmtree(whole.comparison.runs)
    shutil.copytree(whole.comparison.home / "kept", whole.comparison.runs)
    return whole


def path(plan, folder: str, file: str):
    return plan.comparison.runs / folder / file


def refused(plan, say: Callable[[], Any], *told: object) -> None:
    with pytest.raises(ValueError, match=r"^\S") as caught:
        say()
    line = str(caught.value)
    assert "\n" not in line
    assert all(str(part) in line for part in told), line


@pytest.mark.parametrize("folder", ["base", "pec-1"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not JSON"),
        (b'{"protocol": {', "is not JSON"),
        (b"\x89\xff\x00garbage\x80", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"null", "holds null"),
        (b"[]", "holds an empty list"),
        (b"7", "holds 7"),
    ],
)
def test_a_result_that_is_none_is_told_with_its_file_and_judged_again(
    plan, folder, content, problem
):
    file = path(plan, folder, stored.RESULT)
    file.write_bytes(content)
    refused(plan, partial(results.read, plan), f"{file}: {problem}", "judges it again")
    assert [job.folder.name for job in runs.unfinished(plan)] == [folder]


def put(*keys: str, to: object) -> Change:
    def change(tree: dict[str, Any]) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = to

    return change


def gone(*keys: str) -> Change:
    def change(tree: dict[str, Any]) -> None:
        for key in keys[:-1]:
            tree = tree[key]
        del tree[keys[-1]]

    return change


QUALITY = ("versions", "0", "quality/clip")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put("versions", to=[1]), "versions is a list"),
        (put("versions", to={}), "versions is an empty dict"),
        (gone("versions"), "versions is null"),
        (put("versions", "last", to={}), "versions has 'last'"),
        (put("versions", "1" * 5000, to={}), "versions has '111"),
        (put("versions", "0", to=[0.5]), "version 0 is a list"),
        (gone(*QUALITY), "version 0 has no quality/clip"),
        (put(*QUALITY, to=None), "version 0: 'quality/clip' is null, needs a number"),
        (put(*QUALITY, to="0.5"), "version 0: 'quality/clip' is '0.5', needs a number"),
        (put(*QUALITY, to=True), "version 0: 'quality/clip' is True"),
        (put(*QUALITY, to=10**400), "version 0: 'quality/clip' is 1000"),
        (put("strengths", to=7), "strengths is 7"),
        (put("strengths", to=[{}]), "strengths[0] has no quality/pickscore"),
        (put("units", to=["cosine"]), "units is a list"),
    ],
)
def test_wrong_numbers_are_told_with_their_place_and_judged_again(plan, change, problem):
    file = path(plan, "base", stored.RESULT)
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))
    refused(plan, partial(results.read, plan), f"{file}: {problem}", "judges it again")
    assert [job.folder.name for job in runs.unfinished(plan)] == ["base"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_has_diverged_is_named_and_not_judged_again(plan, value):
    file = path(plan, "pec-1", stored.RESULT)
    tree = json.loads(file.read_text())
    tree["versions"]["10"]["vendi/dino"] = value
    file.write_text(json.dumps(tree))
    told = f"{file}: version 10: vendi/dino is {value}; the run has diverged: leave it out"
    refused(plan, partial(results.read, plan), told)
    assert not runs.unfinished(plan)


def test_a_run_that_lacks_a_task_of_the_base_is_named(plan):
    file = path(plan, "pec-1", stored.RESULT)
    tree = json.loads(file.read_text())
    del tree["versions"]["10"]["geneval/counting"]
    file.write_text(json.dumps(tree))
    refused(plan, partial(results.read, plan), f"{file}: version 10 has no geneval/counting")


@pytest.mark.parametrize(
    "content", [b"", b"run: {steps: [", b"\x89\xff\x00", b"null", b"7", b"[" * 20_000]
)
def test_a_recipe_that_cannot_be_read_is_told_with_its_file(plan, content):
    file = path(plan, "pec-1", "recipe.yaml")
    file.write_bytes(content)
    for say in (results.read, runs.unfinished):
        refused(plan, partial(say, plan), file, "; restore it, or delete it")
    file.unlink()
    assert [job.folder.name for job in runs.unfinished(plan)] == ["pec-1"]


def test_a_recipe_of_other_types_is_another_recipe(plan):
    file = path(plan, "pec-1", "recipe.yaml")
    file.write_text("model: {path: 3}\ndata: {prompts: [1]}\nrun: many\n")
    assert [job.folder.name for job in runs.unfinished(plan)] == ["pec-1"]


@pytest.mark.parametrize("folder", ["base", "pec-1"])
@pytest.mark.parametrize("damage", ["empty", "torn", "text", "flat", "named", "gone"])
def test_pictures_that_cannot_be_read_are_told_with_their_file(plan, folder, damage):
    file = path(plan, folder, stored.PICTURES)
    whole = file.read_bytes()
    read = results.read(plan)
    if damage == "flat":
        np.savez(file, images=np.zeros(3, np.uint8))
    elif damage == "named":
        np.savez(file, pictures=np.zeros(3, np.uint8))
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "torn": whole[:200], "text": b"images"}[damage])
    refused(plan, partial(tables.tabulate, read, read), f"{file}: ", "delete evaluation.json")
