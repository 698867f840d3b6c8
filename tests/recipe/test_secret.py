import pytest

from percent_ray.recipe import secret
from percent_ray.recipe.load import RecipeError, dump, load
from percent_ray.recipe.process import notes

URI = "https://jane:hunter2@tracking.example:5000/ml?access_token=s3cr3t&team=a"
BARE = "https://tracking.example:5000/ml"


@pytest.mark.parametrize(
    ("uri", "bare"),
    [
        (URI, BARE),
        ("http://tok3n@host:5000", "http://host:5000"),
        ("postgresql+psycopg2://u:p%40ss@db/mlflow?password=x", "postgresql+psycopg2://db/mlflow"),
        ("http://u:a@b/c#d?e@host/x", "http://host/x"),
        ("mysql://:word@db/x#f", "mysql://db/x"),
        # Nothing to hide in these.
        ("http://host:5000/ml", "http://host:5000/ml"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("file:///home/me@work/mlruns", "file:///home/me@work/mlruns"),
        ("runs?/mlruns", "runs?/mlruns"),
        ("databricks", "databricks"),
        ("", ""),
    ],
)
def test_what_is_left_of_a_uri(uri, bare):
    assert secret.public(uri) == bare


def test_a_library_that_repeats_credentials():
    said = f"request to {URI} failed: user jane, password hunter2, header s3cr3t"
    assert secret.hide(said, URI) == (
        f"request to {BARE} failed: user jane, password ***, header ***"
    )
    assert secret.hide("no p@ss, no p%40ss", "http://u:p%40ss@h") == "no ***, no ***"
    assert secret.hide("bad tok3n", "http://tok3n@h") == "bad ***"
    assert secret.hide("nothing to hide", "http://host") == "nothing to hide"


def test_a_recipe_holds_credentials_and_no_text_of_it_does(folder):
    recipe = load(None, ["--monitor.tracking_uri", URI])
    assert recipe.monitor.tracking_uri == URI
    for text in (dump(recipe), repr(recipe), str(recipe.model_dump()), recipe.model_dump_json()):
        assert "hunter2" not in text
        assert "s3cr3t" not in text
    assert BARE in dump(recipe)
    assert any("give it again with --resume" in line for line in notes(recipe))
    bare = load(None, ["--monitor.tracking_uri", BARE])
    assert not any("tracking_uri" in line for line in notes(bare))


def test_a_refused_uri_is_not_repeated(folder):
    with pytest.raises(RecipeError) as caught:
        load(None, ["--monitor.tracking_uri", "http://jane:hunter2@host/\x01"])
    [problem] = caught.value.problems
    assert "has characters that are no text" in problem
    assert "hunter2" not in problem
