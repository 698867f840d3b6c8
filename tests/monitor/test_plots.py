import numpy as np
import pytest
from PIL import Image

from percent_ray.monitor import plots
from percent_ray.monitor.history import History
from percent_ray.pages.style import COLOURS
from percent_ray.types import Span


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def shows(path, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels(path).astype(int) - wanted).max(-1) <= 2).any())


def test_timeline_draws_every_stage_in_its_colour(tmp_path):
    spans = [
        Span("sample", "rollout 0", 100, 104),
        Span("perceive", "perception 0", 103, 106),
        Span("update", "learner 0", 106, 110),
        Span("else", "driver", 107, 108),
    ]
    path = tmp_path / "pictures" / "timeline.png"
    plots.timeline(spans, path)
    for stage in ("sample", "perceive", "update"):
        assert shows(path, plots.COLOURS[stage]), stage
    assert shows(path, plots.OTHER)
    assert not shows(path, plots.COLOURS["publish"])


def test_grid_shows_every_picture_of_every_prompt(tmp_path):
    red = np.zeros((3, 3, 8, 8), np.uint8)
    red[:, 0] = 255
    blue = np.zeros((2, 3, 8, 8), np.uint8)
    blue[:, 2] = 255
    path = tmp_path / "grid.png"
    plots.grid([("a red square", red), ("a blue square " * 20, blue)], path)
    counts = [(pixels(path) == colour).all(-1).sum() for colour in ((255, 0, 0), (0, 0, 255))]
    assert counts[1] > 0
    assert counts[0] / counts[1] == pytest.approx(1.5, rel=0.1)


def test_a_prompt_is_no_tex(tmp_path):
    red = np.zeros((2, 3, 8, 8), np.uint8)
    texts = ("$\\frac{x$", "$5 or $6", "a $ alone", "$x$", "\\$x")
    plots.grid([(text, red) for text in texts], tmp_path / "grid.png")
    plots.timeline([Span("$\\frac{x$", "$\\frac{y$", 100, 104)], tmp_path / "timeline.png")
    assert pixels(tmp_path / "grid.png").any()
    assert pixels(tmp_path / "timeline.png").any()


def test_curves_draw_what_was_measured(tmp_path):
    history = History(tmp_path / "metrics.jsonl")
    for step in range(3):
        history.append(step, {"reward/mean": step, "diversity/vendi_dino": 3 - step})
    history.append(3, {"reward/mean": float("nan")})
    plots.curves(history.path, tmp_path / "curves.png")
    assert shows(tmp_path / "curves.png", COLOURS[0])


def test_curves_draw_probes_strong_and_training_pale(tmp_path):
    for name, values in (("a", {}), ("b", {"probe/reward/mean": 2.0})):
        history = History(tmp_path / f"{name}.jsonl")
        for step in range(3):
            history.append(step, {"reward/mean": step, **values})
        plots.curves(history.path, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    assert shows(tmp_path / "b.png", COLOURS[0])


def test_curves_draw_every_space(tmp_path):
    history = History(tmp_path / "metrics.jsonl")
    for step in range(3):
        values = {f"diversity/vendi_{name}": 9 - step - i / 3 for i, name in enumerate("abcdefg")}
        history.append(step, values)
    plots.curves(history.path, tmp_path / "curves.png")
    assert all(shows(tmp_path / "curves.png", colour) for colour in COLOURS)


def test_curves_draw_what_only_probes_measure(tmp_path):
    history = History(tmp_path / "metrics.jsonl")
    for step in range(3):
        history.append(step, {"probe/movement/shared": 0.2 * step})
    plots.curves(history.path, tmp_path / "curves.png")
    assert shows(tmp_path / "curves.png", COLOURS[0])


def test_a_step_without_a_gradient_draws_no_share(tmp_path):
    history = History(tmp_path / "metrics.jsonl")
    for step in range(3):
        history.append(step, {"signal/gradient": 0.0, "signal/noise": 0.0, "reward/mean": step})
    plots.curves(history.path, tmp_path / "curves.png")
    assert plots._signal_share({"signal/gradient": 0.25, "signal/noise": 0.75}) == {"": 0.25}


@pytest.mark.parametrize("draw", [plots.timeline, plots.grid])
def test_nothing_to_draw_is_an_error(tmp_path, draw):
    with pytest.raises(ValueError, match="to draw"):
        draw([], tmp_path / "none.png")
