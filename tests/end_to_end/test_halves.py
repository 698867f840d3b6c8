import pytest

from percent_ray.recipe.tree import Recipe
from percent_ray.runtime import halves
from tests.end_to_end import world as worlds


def test_each_half_runs_alone_and_the_second_replays_the_first(world, tmp_path, capsys):
    recipe = worlds.recipe(world, tmp_path, backend="local")
    file = halves.sample_groups(recipe)
    assert file.with_suffix(".png").is_file()
    metrics = halves.learn_groups(recipe, file)
    assert metrics["learner/images"] == 8
    assert metrics["ratio/first_max_dev"] < 1e-6
    assert "2 groups" in capsys.readouterr().out


def test_the_halves_of_the_forward_process(world, tmp_path):
    recipe = worlds.forward(worlds.recipe(world, tmp_path, backend="local"))
    metrics = halves.learn_groups(recipe, halves.sample_groups(recipe))
    assert metrics["learner/images"] == 8
    assert metrics["velocity/first_moved_max"] == 0


def test_a_strength_that_probes_set_has_them(world, tmp_path, capsys):
    fields = worlds.recipe(world, tmp_path, backend="local").model_dump()
    method = {"name": "marginal_pec", "strength": "auto", "image_spaces": ["clip"]}
    recipe = Recipe.model_validate(fields | {"method": method})
    halves.sample_groups(recipe)
    assert "\ngroups: " in capsys.readouterr().out


def test_a_foreign_file_is_one_clear_error(world, tmp_path):
    foreign = tmp_path / "foreign.arrow"
    foreign.write_text("not arrow")
    with pytest.raises(ValueError, match=r"foreign\.arrow is not a file of --only rollout"):
        halves.learn_groups(worlds.recipe(world, tmp_path, backend="local"), foreign)
