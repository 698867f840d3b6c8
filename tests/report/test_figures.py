import numpy as np
import pytest

from percent_ray.pages.style import look
from percent_ray.report import figures
from percent_ray.report.rows import POINTS, Row, over_seeds
from percent_ray.report.runs import read_all
from tests.report import fabricated


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    paths = [str(fabricated.run(home, n, lost=lost)) for n, lost in (("one", 3.0), ("two", 0.5))]
    return [Row(run.label, [run.steps], look(i)) for i, run in enumerate(read_all(paths))]


def panels(chart):
    return {panel.title: {line.label: line for line in panel.lines} for panel in chart.panels}


def test_figure_2_of_one_run_has_its_spaces_in_one_panel_as_shares_of_the_first(rows):
    entropy, variance = panels(figures.figure_2(rows[:1], ["pickscore"])).values()
    assert list(entropy) == ["measured, as trained", "measured", "schedule"]
    assert list(variance) == ["VAE latents", "pixels", "eyes", "pickscore, the reward's"]
    np.testing.assert_allclose(variance["pixels"].y, 1 - np.arange(0, 21, 4) / 40)
    np.testing.assert_array_equal(variance["pixels"].x, np.arange(0, 21, 4))


def test_figure_2_of_two_runs_has_a_panel_for_each_space(rows):
    found = panels(figures.figure_2(rows))
    entropy = found["policy entropy (nats a dimension)"]
    assert [label for label in entropy if "schedule" in label] == ["schedule"]
    assert [*found][1:] == [
        f"variance of {name}, share of the first"
        for name in ("VAE latents", "pixels", "eyes", "pickscore")
    ]
    assert list(found["variance of eyes, share of the first"]) == ["one", "two"]


def test_figure_4_has_the_largest_and_the_least_pull(rows):
    pulled, std, *variances = panels(figures.figure_4(rows)).values()
    assert list(pulled) == [
        f"{n}, {w}, as trained" for n in ("one", "two") for w in ("largest", "least")
    ]
    assert set(pulled["one, largest, as trained"].y) == {0.2}
    np.testing.assert_allclose(std["one"].y[[0, -1]], [0.1, 0.05])
    assert len(variances) == 2, "of the scorers' spaces, not of latents and pixels"


def test_figure_5_draws_probes_and_the_fit_that_they_follow(rows):
    [(title, lines)] = panels(figures.figure_5(rows)).items()
    assert title == "reward over exp(-H), pickscore space"
    assert list(lines) == ["one", "one, fit", "two", "two, fit"]
    np.testing.assert_allclose(lines["one"].y, 4.0 - fabricated.PRICE * lines["one"].x)
    [(run, space, fit), _] = figures.laws(rows)
    assert (run, space) == ("one", "pickscore")
    assert fit.a == pytest.approx(fabricated.PRICE)
    assert len(fit.x) == 6, "probes, not training steps"


def test_figure_6_takes_what_acts_on_the_rewards_own_space():
    methods = {
        "base": {"name": "flow_grpo"},
        "shaped": {"name": "pec", "spaces": ["taste"]},
        "default": {"name": "pcvae"},
        "native": {"name": "entropy_reg", "spaces": ["taste"]},
        "policy": {"name": "entropy_reg", "spaces": []},
        "other": {"name": "pec", "spaces": ["dino"]},
        "relative": {"name": "pec", "relative": True, "spaces": ["taste"]},
    }
    assert figures.of_figure_6(methods, ["taste"]) == ["shaped", "default", "native"]


def test_figure_7_has_probes_strong_and_training_pale(rows):
    reward, _, vendi = panels(figures.figure_7(rows)).values()
    pale, strong = reward["one, as trained"], reward["one"]
    assert (pale.look.alpha, pale.in_key) == (0.35, False)
    assert (strong.look.alpha, strong.in_key, len(strong.x)) == (1.0, True, 6)
    np.testing.assert_allclose(vendi["two"].y[[0, -1]], [9.0, 8.5])


def test_the_frontier_is_over_reward_and_not_over_steps(rows):
    [(title, lines)] = panels(figures.frontier(rows)).items()
    assert title == "Vendi in the group, eyes space"
    np.testing.assert_allclose(lines["one"].y[[0, -1]], [9.0, 6.0])
    assert lines["one"].x[0] == pytest.approx(4 - 2 * np.exp(-0.4))


def test_what_only_probes_have_is_drawn_of_them(rows):
    bare = [
        {
            s: {k: v for k, v in m.items() if k != "movement/shared"}
            for s, m in rows[0].seeds[0].items()
        }
    ]
    found = panels(figures.learning([Row("one", bare, look(0))]))
    assert list(found) == ["change of the pictures that all share", "clipped ratios: clip_low"]
    assert len(found["change of the pictures that all share"]["one"].x) == 6


def test_a_row_of_several_seeds_is_their_mean_at_the_steps_that_all_have():
    one, two = {0: {"r": 1.0}, 1: {"r": 2.0}}, {0: {"r": 3.0}, 2: {"r": 9.0}}
    line = Row("both", [one, two], look(0)).line("r")
    assert (line.x.tolist(), line.y.tolist()) == ([0], [2.0])
    assert line.high[0] - line.y[0] == pytest.approx(np.sqrt(2))
    assert [len(part) for part in over_seeds([])] == [0, 0, 0]


def test_a_long_training_is_drawn_by_means_of_neighbours_and_its_probes_whole():
    steps = {s: {"r": float(s)} | ({"probe/r": 1.0} if s % 20 == 0 else {}) for s in range(9000)}
    trained, probed = Row("long", [steps], look(0)).lines("r")
    assert (len(trained.x), len(probed.x)) == (POINTS, 450)
    assert trained.y.mean() == pytest.approx(np.mean(range(9000)))
