"""Is a step signal or noise? Measured on the gradients that a step makes anyway (docs/method.md,
"Signal and noise").

Gradients are never stored for it: each is reduced to a sketch of 16,384 numbers, which is linear
(the sketch of a sum is the sum of the sketches, over passes and ranks) and keeps inner products.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from percent_ray.flow.noise import generator
from percent_ray.learn.engine import Engine
from percent_ray.models.base import Policy

BUCKETS = 2**14
"""Numbers of a sketch: a squared norm is right to sqrt(2 / BUCKETS), 1.1 %."""
PERIOD = 4_194_301
"""Random signs, a prime number of them: no two elements that share a bucket share a sign."""
MEMORY = 0.9
FILE = "signal.safetensors"


class Sketch:
    """Count sketches of named tensors: every element goes with a random sign into one bucket, both
    a function of its place. For all it makes, |sketch|^2 is |tensor|^2 and inner products are inner
    products, without bias and to about 1 %."""

    def __init__(self, device: torch.device) -> None:
        bits = torch.randint(2, (PERIOD,), generator=generator("sketch", "signs"))
        self._signs = (2 * bits - 1).to(device, torch.float32)

    def __call__(self, name: str, tensor: Tensor) -> Float64[Tensor, " n"]:
        """Of one tensor; the sketch of several is the sum of theirs."""
        flat = tensor.detach().reshape(-1)
        sums = torch.zeros(BUCKETS, dtype=torch.float64, device=flat.device)
        for piece in flat.split(PERIOD):
            signed = piece.float() * self._signs[: len(piece)]
            rows = torch.nn.functional.pad(signed, (0, -len(piece) % BUCKETS)).view(-1, BUCKETS)
            sums = sums.roll(PERIOD % BUCKETS) + rows.sum(0, dtype=torch.float64)
        place = int(torch.randint(BUCKETS, (), generator=generator("sketch", name)).item())
        return sums.roll(place)


class Meter:
    """Measures the gradients of one rank's optimizer steps, and the updates of its weights.

    The gradient of a step is a sum over units that are drawn independently: groups, or as many
    micro-batches as end together with one. From |G|^2 of the whole and the |G_u|^2 of the units,
    with their shares p_u of the images,

        signal = (|G|^2 - sum |G_u|^2) / (1 - sum p_u^2)        noise = |G|^2 - signal

    are the squared norm of the expected gradient, without bias (so that it may be below 0), and what
    the randomness of the units adds to it (arXiv 1812.06162, appendix A, for units of any size).
    """

    def __init__(self, policy: Policy, engine: Engine) -> None:
        self._policy = policy
        self._engine = engine
        self._sketch = Sketch(engine.device)
        self._unit = self._zeros(BUCKETS)
        """Of the gradients since the last `end_unit`."""
        self._total = self._zeros(BUCKETS + 2)
        """Of the optimizer step: the sketch, sum |G_u|^2 and sum p_u^2."""
        self._past = self._zeros(BUCKETS)
        self._steps = 0
        self._lasting: list[Tensor] = []
        self._measured: list[Tensor] = []
        """Signal and noise of each optimizer step since the last `metrics`."""
        self._weights = self._sketched()
        self._update: Tensor | None = None
        """The last learner step's change of the weights."""
        for name, weight in policy.trainable().items():
            weight.register_hook(lambda gradient, name=name: self._add(name, gradient))

    def _add(self, name: str, gradient: Tensor) -> None:
        self._unit += self._sketch(name, gradient) / self._engine.scale

    def end_unit(self, share: float) -> None:
        """The gradients since the last call are those of one unit, `share` of the step's images."""
        squares = torch.stack([self._unit.square().sum(), self._unit.new_tensor(share**2)])
        self._total += torch.cat([self._unit, squares])
        self._unit = self._zeros(BUCKETS)

    def end_step(self) -> None:
        """All ranks have passed through the units of one optimizer step. Every rank enters."""
        total = self._engine.all_reduce(self._total, "sum")
        gradient, units, shares = total[:-2], total[-2], total[-1]
        whole = gradient.square().sum()
        self._lasting.append(gradient)
        # One unit has nothing to be compared with.
        signal = (whole - units) / (1 - shares).clamp_min(1e-12)
        if shares < 1 - 1e-9:
            self._measured.append(torch.stack([signal, whole - signal]))
        self._total = self._zeros(BUCKETS + 2)

    def metrics(self) -> dict[str, float]:
        """Of one learner step, once its weights are there; every rank enters. `signal/gradient` and
        `signal/noise` are means over its optimizer steps; `signal/update_cosine` compares the
        change of the weights with the last one."""
        found: dict[str, float] = {}
        if self._measured:
            signal, noise = torch.stack(self._measured).mean(0).tolist()
            found = {"signal/gradient": signal, "signal/noise": noise}
        if self._lasting:
            gradient = torch.stack(self._lasting).mean(0)
            found["signal/whole"] = gradient.square().sum().item()
            if self._steps:
                past = self._past / (1 - MEMORY**self._steps)
                found["signal/lasting"] = (gradient @ past).item()
                found["signal/past"] = past.square().sum().item()
            self._past = MEMORY * self._past + (1 - MEMORY) * gradient
            self._steps += 1
        self._measured, self._lasting = [], []
        before, self._weights = self._weights, self._sketched()
        last, self._update = self._update, self._weights - before
        if last is not None and self._update.any() and last.any():
            cosine = torch.nn.functional.cosine_similarity(last, self._update, dim=0)
            found["signal/update_cosine"] = cosine.item()
        return found

    def save(self, folder: Path) -> None:
        """Write what the next step is compared with into an existing folder."""
        if self._update is not None:
            save_file({"update": self._update.cpu()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Continue from `save`, with the weights as they are now."""
        path = folder / FILE
        device = str(self._engine.device)
        self._update = load_file(path, device=device)["update"] if path.is_file() else None
        self._weights = self._sketched()

    def _sketched(self) -> Tensor:
        with self._engine.whole():
            parts = (self._sketch(n, w) for n, w in self._policy.trainable().items())
            return torch.stack(list(parts)).sum(0)

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float64, device=self._engine.device)
