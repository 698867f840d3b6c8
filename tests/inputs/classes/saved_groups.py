"""Files for `--only learn --from`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.inputs.case import Case

WRITE = "write one by --only rollout"


def learned(says: str, *words: str, prepare: Callable[[Path], Any] | None = None) -> Case:
    return Case(("--only", "learn", "--from", "g.arrow", *words), says, prepare=prepare)


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda here: (here / "g.arrow").write_bytes(data)


def table(**columns: Any) -> Callable[[Path], Any]:
    """A file with other columns."""

    def write(here: Path) -> None:
        found = pa.table(columns)
        file = pa.OSFile(str(here / "g.arrow"), "wb")
        with file as sink, pa.ipc.new_file(sink, found.schema) as writer:
            writer.write_table(found)

    return write


def groups(
    *, settings: dict[str, Any] | None = None, rows: int = 1, cut: float = 1.0, **tensors: Any
) -> Callable[[Path], Any]:
    """A file of `--only rollout` under the default recipe of the job with other settings."""

    def write(here: Path) -> None:
        import torch

        from percent_ray.data import arrow
        from percent_ray.data import groups as file_of
        from percent_ray.objective.grpo import Weights
        from percent_ray.recipe.load import load
        from percent_ray.types import ShapedBatch, ShapedRow

        shapes = {"latents": (4, 3, 2, 3, 5), "means": (4, 2, 2, 3, 5), "log_probs": (4, 2)}
        drawn = {name: torch.zeros(shape) for name, shape in shapes.items()}
        drawn |= {"final": torch.zeros(4, 2, 3, 5)}
        drawn |= {name: drawn[name] + value for name, value in tensors.items() if name in drawn}
        weights = Weights(torch.ones(4, 2) * tensors.get("advantage", 1.0))
        payload = arrow.trajectory_table(steps=range(2), **drawn)
        condition = arrow.pack({"prompt_embeds": torch.ones(1, 2, 3)})
        row = ShapedRow(3, 0, payload, condition, weights)
        recipes = Path(__file__).parents[3] / "jobs" / "recipes"
        recipe = load(recipes / "shapes_pec.yaml", settings_of(settings or {}))
        file = here / "g.arrow"
        file_of.write(ShapedBatch(0, (row,) * rows), file, recipe)
        data = file.read_bytes()
        file.write_bytes(data[: int(cut * len(data))])

    return write


def settings_of(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


CASES = [
    learned("g.arrow"),
    learned("g.arrow", prepare=lambda here: (here / "g.arrow").mkdir()),
    *(
        learned(WRITE, prepare=content(data))
        for data in (b"", b"not arrow", b"\x00\xff" * 99, b"ARROW1\x00\x00", b"{}", b"\x89PNG\r\n")
    ),
    *(learned(WRITE, prepare=groups(cut=cut)) for cut in (0.01, 0.2, 0.5, 0.9, 0.99)),
    learned("expected a groups table", prepare=table(a=[1])),
    learned("expected a groups table", prepare=table(payload=["/etc/passwd"])),
    learned("has no groups", prepare=groups(rows=0)),
    learned(
        "sampling.noise_level was 0.3, is", prepare=groups(settings={"sampling.noise_level": 0.3})
    ),
    learned("sampling.steps was", "--sampling.steps=9", prepare=groups()),
    learned("model.resolution was", "--model.resolution=64", prepare=groups()),
    learned("its weights' advantage are NaN", prepare=groups(advantage=float("nan"))),
    learned("its payload's latents are NaN", prepare=groups(latents=float("nan"))),
    learned("its payload's log_probs are NaN", prepare=groups(log_probs=float("inf"))),
    Case("--only learn", "--from"),
]
