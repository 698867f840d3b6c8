"""What a resumed run may change."""

from percent_ray.recipe import load as recipes
from percent_ray.recipe.errors import generic
from percent_ray.recipe.load import differences, load, moved


def test_differences_leave_out_what_a_resumed_run_may_change(folder):
    served = ("--scorers.judge.kind", "http", "--scorers.judge.path", "http://judge")

    def tree(*overrides):
        return load(None, (*served, *overrides)).model_dump(mode="json")

    free = ("--run.steps", "7", "--runtime.rollout.workers", "3")
    free += ("--scorers.pickscore.batch_size", "3")
    free += ("--scorers.judge.token_env", "JUDGE_TOKEN")
    assert differences(tree(), tree(*free)) == []
    assert differences(tree(), tree(*free, "--learner.lr", "1")) == [
        "learner.lr was 0.0003, is 1.0"
    ]
    assert "scorers.clip.weight was not there, is 1.0" in differences(
        tree(), tree("--scorers.clip.weight", "1")
    )


def test_probes_are_not_free_where_they_steer(folder):
    def tree(every, *overrides):
        probes = ("--monitor.probe_every", str(every))
        return load(None, (*overrides, *probes)).model_dump(mode="json")

    assert differences(tree(4), tree(40)) == []
    auto = (
        *("--scorers.dino.weight", "0", "--method.name", "marginal_pec"),
        *("--method.strength", "auto", "--method.image_spaces", "[dino]"),
    )
    assert differences(tree(4, *auto), tree(40, *auto)) == ["monitor.probe_every was 4, is 40"]


def test_free_keys_exist():
    keys = [generic(key) for key, _ in recipes.flatten(recipes.defaults())]
    for free in recipes.FREE:
        assert any(key == free or key.startswith(free + ".") for key in keys), free


def test_places_that_may_move_exist():
    keys = {generic(key) for key, _ in recipes.flatten(load(None).model_dump(mode="json"))}
    assert keys >= set(recipes.PATHS)


def test_a_file_that_was_moved_is_the_same_and_is_told(folder):
    def tree(name):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("a red circle\n")
        return load(None, ["--data.prompts", str(path)]).model_dump(mode="json")

    then, now = tree("old/mine.txt"), tree("new/mine.txt")
    lines = [f"data.prompts was {folder}/old/mine.txt, is {folder}/new/mine.txt"]
    assert differences(then, now) == lines, "both are there"
    assert moved(then, now) == {}
    (folder / "old" / "mine.txt").unlink()
    assert differences(then, now) == []
    assert list(moved(then, now).values()) == [
        f"data.prompts was {folder}/old/mine.txt, which is gone: taken to be what is now "
        f"{folder}/new/mine.txt"
    ]
    other = tree("new/other.txt")
    assert differences(then, other) == [lines[0].replace("new/mine", "new/other")], "another name"
    assert moved(then, other) == {}
