import io
import time
from pathlib import Path

from rich.console import Console

from percent_ray.monitor.terminal import Terminal, headline, probe_line, summary, ui_command

METRICS = {
    "reward/mean": 0.8123,
    "entropy/perceptual_pickscore": 1.2345,
    "entropy/policy": 0.8,
    "diversity/vendi_dino": 5.5,
    "throughput/images_per_s": 12.34,
    "time/step_s": 3.9,
}


def test_headline():
    assert headline(METRICS) == (
        "reward 0.8123  H_perc(pickscore) 1.234  Vendi(dino) 5.500  12.3 images/s  3.9 s"
    )
    assert headline({}) == ""


def test_a_log_gets_plain_lines_with_the_eta_from_the_first_finished_step(monkeypatch):
    """Start-up took a thousand seconds and counts for nothing."""
    now = iter([1000.0, 1010.0, 1030.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    out = io.StringIO()
    console = Console(file=out, width=40, highlight=False, soft_wrap=True)
    terminal = Terminal(14, console=console)
    terminal.begin(10)
    for step in (10, 11, 12):
        terminal.step(step, METRICS)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step 11/14  reward 0.8123")
    assert "ETA" not in lines[0], "one finished step says nothing of the next"
    assert lines[1].endswith("ETA 0:20"), "two more at 10 s"
    assert lines[2].endswith("ETA 0:15"), "one more at 15 s"
    assert "\x1b" not in out.getvalue()


def test_a_probe_is_told_against_the_first_one():
    first = {"reward/mean": 0.9, "diversity/vendi_dino": 9.6, "diversity/vendi_clip": 5.7}
    first["movement/shared"] = 0.0
    assert probe_line(0, first, first) == (
        "probe after step 0:  Vendi(clip) 5.7000  Vendi(dino) 9.6000  reward 0.9000  "
        "shared move 0.0000"
    )
    now = {**first, "reward/mean": 0.95, "movement/shared": 0.5}
    assert "reward 0.9000 -> 0.9500" in probe_line(20, now, first)
    assert "shared move 0.0000 -> 0.5000" in probe_line(20, now, first)
    assert probe_line(20, {}, first) == "probe after step 20:"


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True, highlight=False)
    with Terminal(2, console=console) as terminal:
        terminal.step(0, METRICS)
        assert "ETA 0:00" not in out.getvalue()
        terminal.step(1, METRICS)
    assert "1/2" in out.getvalue()
    assert "ETA 0:00" in out.getvalue()
    assert "reward 0.8123" in out.getvalue()


def test_summary_says_what_changed_and_where_everything_is():
    text = summary(
        run_id="abc",
        tracking_uri="sqlite:////runs/mlflow.db",
        metrics_file=Path("runs/a/metrics.jsonl"),
        checkpoint=Path("runs/a/checkpoints/16"),
        picture=None,
        curves=Path("runs/a/curves.png"),
        first=METRICS | {"entropy/policy": 0.8243},
        last=METRICS | {"reward/mean": 0.9, "entropy/policy": 0.8247, "movement/shared": 0.6},
    )
    assert "reward/mean                        0.8123 -> 0.9000" in text
    assert "diversity/vendi_dino" in text
    assert "movement/shared                    - -> 0.6000" in text
    assert "entropy/policy                     0.8243 -> 0.8247" in text
    assert "curves      runs/a/curves.png" in text
    assert "abc" in text
    assert "runs/a/checkpoints/16" in text
    assert "mlflow ui --backend-store-uri sqlite:////runs/mlflow.db" in text
    assert "time/step_s" not in text


def test_a_server_needs_no_command():
    assert ui_command("http://mlflow:5000") == "http://mlflow:5000"
