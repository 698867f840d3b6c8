"""Is a step signal or noise? Measured on the gradients that a step makes anyway (docs/method.md,
"Signal and noise").

Gradients are never stored for it: each is reduced to a sketch of 65,536 numbers, which is linear
(the sketch of a sum is the sum of the sketches, over passes and ranks) and keeps inner products.
"""

from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from percent_ray.flow.noise import generator
from percent_ray.learn.engine import Engine
from percent_ray.metrics import COSINE, DESCENT, GRADIENT, NOISE
from percent_ray.models.base import Policy

BUCKETS = 2**16
"""Numbers of a sketch: a squared norm is right to sqrt(2 / BUCKETS), 0.6 %."""
PERIOD = 4_194_301
"""Random signs, a prime number of them: no two elements of a tensor share bucket and sign."""
FILE = "signal.safetensors"


class Sketch:
    """Count sketches of named tensors: every element goes with a random sign into one bucket, both
    a function of its name and place. For all it makes, |sketch|^2 is |tensor|^2 and inner products
    are inner products, without bias and to about 1 %."""

    def __init__(self, device: torch.device) -> None:
        bits = torch.randint(2, (PERIOD,), generator=generator("sketch", "signs"))
        self._signs = (2 * bits - 1).to(device, torch.float32)
        self._starts: dict[str, tuple[int, int]] = {}

    def add(self, name: str, tensor: Tensor, sums: Float64[Tensor, " n"]) -> None:
        """Add the sketch of one tensor to `sums`; that of several is the sum of theirs."""
        flat = tensor.detach().reshape(-1)
        bucket, sign = self._start(name)
        while len(flat):
            piece, flat = flat[: PERIOD - sign], flat[PERIOD - sign :]
            signed = piece.float() * self._signs[sign : sign + len(piece)]
            if bucket + len(signed) <= BUCKETS:  # most of an adapter's tensors
                sums[bucket : bucket + len(signed)] += signed
            else:
                cut = len(signed) // BUCKETS * BUCKETS
                row = signed[:cut].view(-1, BUCKETS).sum(0)
                row[: len(signed) - cut] += signed[cut:]
                sums += row.roll(bucket)
            bucket, sign = (bucket + len(piece)) % BUCKETS, 0

    def _start(self, name: str) -> tuple[int, int]:
        """The bucket and the sign of a tensor's first element."""
        if name not in self._starts:
            source = generator("sketch", name)
            places = (torch.randint(most, (), generator=source) for most in (BUCKETS, PERIOD))
            bucket, sign = (int(place.item()) for place in places)
            self._starts[name] = bucket, sign
        return self._starts[name]


class Meter:
    """Measures the gradients of one rank's optimizer steps, and the updates of its weights.

    The gradient of a step is a sum over units that are drawn independently: groups, or as many
    micro-batches as end together with one. Nothing is measured where ranks share a group: the
    advantages of its parts add up to 0, they are not independent. From |G|^2 of the whole and the
    |G_u|^2 of the units, with their shares p_u of the images,

        signal = (|G|^2 - sum |G_u|^2) / (1 - sum p_u^2)        noise = |G|^2 - signal

    are the squared norm of the expected gradient, without bias (so that it may be below 0), and
    what the randomness of the units adds to it (arXiv 1812.06162, appendix A, for units of any
    size).
    """

    def __init__(self, policy: Policy, engine: Engine) -> None:
        self._policy = policy
        self._engine = engine
        self._sketch = Sketch(engine.device)
        self._unit = self._zeros(BUCKETS)
        """Of the gradients since the last `end_unit`."""
        self._total = self._zeros(BUCKETS + 2)
        """Of the optimizer step: the sketch, sum |G_u|^2 and sum p_u^2."""
        self._gradients: list[Tensor] = []
        """Of each optimizer step since the last `metrics`, and its signal and noise below."""
        self._measured: list[Tensor] = []
        self._weights = self._sketched()
        self._update: Tensor | None = None
        """The last learner step's change of the weights."""
        for name, weight in policy.trainable().items():
            weight.register_hook(lambda gradient, name=name: self._add(name, gradient))

    def _add(self, name: str, gradient: Tensor) -> None:
        self._sketch.add(name, gradient, self._unit)

    def end_unit(self, share: float) -> None:
        """The gradients since the last call are those of one unit, `share` of the step's images."""
        unit = self._unit / self._engine.scale
        squares = torch.stack([unit.square().sum(), unit.new_tensor(share**2)])
        self._total += torch.cat([unit, squares])
        self._unit = self._zeros(BUCKETS)

    def end_step(self, *, independent: bool) -> None:
        """All ranks have passed through the units of one optimizer step; `independent` is False
        where they share a group. Every rank enters."""
        total = self._engine.all_reduce(self._total, "sum")
        gradient, units, shares = total[:-2], total[-2], total[-1]
        whole = gradient.square().sum()
        self._gradients.append(gradient)
        if independent and shares < 1 - 1e-9:  # one unit has nothing to be compared with
            signal = (whole - units) / (1 - shares)
            self._measured.append(torch.stack([signal, whole - signal]))
        self._total = self._zeros(BUCKETS + 2)

    def metrics(self) -> dict[str, float]:
        """Of one learner step, once its weights are there; every rank enters.

        `signal/gradient` and `signal/noise` are means over its optimizer steps.
        `signal/update_cosine` compares the change of the weights with the last one: of pure noise a
        momentum of 0.9 makes it 0.9 with one optimizer step, 0.86 with two. `signal/descent`
        compares the last change with minus this step's gradient, which is of fresh images: below 0
        the last step has gone too far.
        """
        found: dict[str, float] = {}
        if self._measured:
            signal, noise = torch.stack(self._measured).mean(0).tolist()
            found = {GRADIENT: signal, NOISE: noise}
        gradient = torch.stack(self._gradients).mean(0)
        self._measured, self._gradients = [], []
        before, self._weights = self._weights, self._sketched()
        last, self._update = self._update, self._weights - before
        if last is not None:
            found[DESCENT] = _cosine(last, -gradient)
            found[COSINE] = _cosine(last, self._update)
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
        sums = self._zeros(BUCKETS)
        with self._engine.whole():
            for name, weight in self._policy.trainable().items():
                self._sketch.add(name, weight, sums)
        return sums

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float64, device=self._engine.device)


def _cosine(one: Tensor, other: Tensor) -> float:
    """0 where one of them is."""
    return torch.nn.functional.cosine_similarity(one, other, dim=0).item()
