"""The methods of the paper's table 1, and ours. One function is one method:

    method(signals, *, parameters of its own) -> Shaped

Its name is the recipe's `method.name`, its keyword-only parameters are the keys beside it, with
their types, bounds and defaults. What has to be measured for it is told by the parameters' names:
`spaces` (perceptual log-probs of transitions), `image_spaces` (features of finished images) and
`judges` (scores that are not part of the reward). KL to the reference and clip ranges are those of
the recipe's `objective`, whatever the method: Flow-GRPO with `objective.kl` is table 1's
"w/ KL", with `objective.clip_high` above `clip_low` it is "Clip-Higher".

Everything is decided here, on old-policy rollouts; the learner applies the weights and no more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from jaxtyping import Float32, Int64
from torch import Tensor

from percent_ray.flow.noise import generator
from percent_ray.objective import advantage, covariance, entropy, shaping
from percent_ray.objective.advantage import StdScope
from percent_ray.objective.grpo import Weights
from percent_ray.objective.shaping import Omega
from percent_ray.objective.strength import State, calibrated, held

Spaces = Annotated[tuple[str, ...], "scorers whose perceptual log-prob is used"]
ImageSpaces = Annotated[tuple[str, ...], "scorers whose features of finished images are used"]
Judges = Annotated[tuple[str, ...], "scorers whose score is used beside the reward"]
Strength = Annotated[float, Gt(0), "weight of the term: lambda in a reward, else alpha or beta"]
Relative = Annotated[bool, "strength x std(reward) / std(term), measured over the first steps"]
Native = Annotated[bool, "a term of the loss by itself in place of one of the reward"]
Omegas = Annotated[Omega, "weights of the scored steps: equal, or by the step's variance"]
Shuffled = Annotated[bool, "control: the term shuffled among the images of its group"]
Fraction = Annotated[float, Gt(0), Lt(1), "share of the transitions that is acted on"]
Keep = Annotated[float, Gt(0), "with strength auto: effective number to hold, share of the base's"]


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of the G groups of one step. All on the CPU."""

    group_ids: Int64[Tensor, " G"]
    rewards: Float32[Tensor, "G K"]
    """The weighted sum of the scores."""
    scores: Mapping[str, Float32[Tensor, "G K"]]
    """Every score by scorer."""
    log_prob: Float32[Tensor, "G K S"]
    """log pi_old of the trained steps."""
    log_p_perc: Mapping[str, Float32[Tensor, "G K N"]]
    """Perceptual log-prob (PAPER 12) of the scored steps, by space."""
    scored: Int64[Tensor, "G N"]
    """Which of the S trained steps they are; all images of a group have the same."""
    std: Float32[Tensor, " S"]
    features: Mapping[str, Float32[Tensor, "G K D"]]
    """Unit-norm features of the finished images, by space."""
    probe: Mapping[str, Float32[Tensor, "P K D"]] | None
    """The same of the fixed prompts with fixed noise, at steps that have measured them."""
    state: State
    advantage_std: StdScope
    advantage_clip: float
    seed: int


@dataclass(frozen=True, slots=True)
class Shaped:
    """What a method makes of a step."""

    rewards: Float32[Tensor, "G K"]
    """With what the method adds to them."""
    weights: Weights
    """Every weight [G, K, S]."""
    state: State
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


def flow_grpo(s: Signals) -> Shaped:
    """Flow-GRPO: the reward alone (PAPER eqs. 1-6)."""
    return _shaped(s, s.rewards)


def pec(
    s: Signals,
    *,
    spaces: Spaces = ("pickscore",),
    strength: Strength = 0.05,
    relative: Relative = False,
    native: Native = False,
    omega: Omegas = "uniform",
    shuffled: Shuffled = False,
) -> Shaped:
    """PEC: perceptual entropy is part of the reward (PAPER eqs. 16-21)."""
    weights = _omega(s, omega)
    values = [shaping.pec_values(s.log_p_perc[space], weights) for space in spaces]
    return _entropic(s, values, strength, relative, native, shuffled)


def pcvae(
    s: Signals,
    *,
    spaces: Spaces = ("pickscore",),
    strength: Strength = 0.05,
    relative: Relative = False,
    native: Native = False,
    omega: Omegas = "uniform",
    shuffled: Shuffled = False,
) -> Shaped:
    """PCVAE: so is the KL of perceptual and VAE space, which is to stay low (PAPER eqs. 16-21)."""
    weights, old = _omega(s, omega), s.log_prob.gather(2, _columns(s))
    values = [shaping.pcvae_values(s.log_p_perc[space], old, weights) for space in spaces]
    shaped = _entropic(s, values, strength, relative, native, shuffled)
    perceptual = torch.stack([shaping.pec_values(s.log_p_perc[k], weights) for k in spaces]).sum(0)
    terms = torch.stack(values).sum(0).mean(-1), perceptual.mean(-1), old.mean(-1)
    metrics = {
        "shaping/correlation_with_pec": _correlation(terms[0], terms[1]),
        "shaping/pec_std_in_group": terms[1].std(1, correction=0).mean().item(),
        "shaping/log_prob_std_in_group": terms[2].std(1, correction=0).mean().item(),
    }
    return replace(shaped, metrics={**shaped.metrics, **metrics})


def marginal_pec(
    s: Signals,
    *,
    image_spaces: ImageSpaces = ("pickscore",),
    strength: Strength | Literal["auto"] = 0.3,
    relative: Relative = True,
    keep: Keep = 0.9,
    shuffled: Shuffled = False,
) -> Shaped:
    """PEC with the marginal entropy of the group's finished images (PAPER section 6).

    `strength: auto` holds the fixed prompts' log Vendi in each space, by a strength of its own,
    where Vendi is `keep` of the base model's. The entropy of the term itself will not do for that:
    with the median bandwidth its range is one nat, and it hardly falls while half of Vendi is lost.
    """
    state, bandwidth = _bandwidths(s, image_spaces)
    rewards, metrics = s.rewards, dict[str, float]()
    for space in image_spaces:
        term = entropy.marginal_terms(s.features[space], bandwidth[space])
        if shuffled:
            term = _shuffle(s, term)
        weight = 0.5 if strength == "auto" else strength  # where the ascent begins
        if relative or strength == "auto":
            weight, state = calibrated(state, s.rewards, term, weight, name=space)
        if strength == "auto":
            sets = () if s.probe is None else s.probe[space]
            found = [entropy.kernel_entropy(images) for images in sets]
            now = sum(found) / len(found) if found else None
            weight, state = held(state, now, weight, keep, name=space)
        rewards = shaping.shape(rewards, term, weight)
        metrics |= _term_metrics(term, weight, f"_{space}")
    return replace(_shaped(s, rewards), state=state, metrics=metrics)


def entropy_reg(s: Signals, *, spaces: Spaces = (), strength: Strength = 1e-3) -> Shaped:
    """Entropy regularisation: loss - alpha H. Without spaces H is the policy's own, -log pi; with
    spaces it is perceptual, which is PEC's native form (PAPER section 4)."""
    if spaces:
        return pec(s, spaces=spaces, strength=strength, native=True)
    plain = _shaped(s, s.rewards)
    alpha = torch.full_like(s.log_prob, strength)
    return replace(plain, weights=replace(plain.weights, log_prob=alpha))


def clip_cov(s: Signals, *, spaces: Spaces = (), fraction: Fraction = 0.25) -> Shaped:
    """Clip-Cov: the transitions of the largest covariance are left out of the loss. Without spaces
    of the policy's log-prob and the advantage, else of the perceptual one (PAPER section 4)."""
    plain = _shaped(s, s.rewards)
    kept = plain.weights.advantage.masked_fill(_covarying(s, spaces, fraction), 0.0)
    return replace(plain, weights=replace(plain.weights, advantage=kept))


def kl_cov(
    s: Signals, *, spaces: Spaces = (), fraction: Fraction = 0.25, strength: Strength = 1.0
) -> Shaped:
    """KL-Cov: the transitions of the largest covariance are held where the old policy had them, by
    a KL of weight `strength` (PAPER section 4)."""
    plain = _shaped(s, s.rewards)
    holding = _covarying(s, spaces, fraction) * strength
    return replace(plain, weights=replace(plain.weights, kl_old=holding))


def gardo(
    s: Signals,
    *,
    image_spaces: ImageSpaces = ("dino",),
    judges: Judges = ("clip",),
    strength: Strength = 0.04,
    fraction: Annotated[Fraction, "share of the images that the KL holds, at first"] = 0.1,
) -> Shaped:
    """GARDO: unlike images that are better than their group are worth more, and only images whose
    reward the judges do not share are held to the reference.

    For A > 0, A = (r - mean) d / mean d, with d an image's least cosine distance to the rest of its
    group; no std divides. The KL holds the `fraction` of images whose rank by the reward is most
    above their mean rank by the judges. That share follows how far reward and judges are apart,
    a tenth up or down a step: the published rule of "dynamic percentile" is not specified further.
    `objective.reference_every` and `reference_kl` renew the reference.
    """
    centred = s.rewards - s.rewards.mean(dim=1, keepdim=True)
    distance = torch.stack([_nearest(s.features[space]) for space in image_spaces]).mean(0)
    unlike = distance / distance.mean(dim=1, keepdim=True).clamp_min(1e-8)
    pull = torch.where(centred > 0, centred * unlike, centred)
    pull = pull.clamp(-s.advantage_clip, s.advantage_clip)
    excess = _ranks(s.rewards) - torch.stack([_ranks(s.scores[judge]) for judge in judges]).mean(0)
    apart = excess.abs().mean().item()
    usual = s.state.get("gardo/apart", apart)
    share = s.state.get("gardo/share", fraction) * (1.1 if apart > usual else 1 / 1.1)
    share = min(0.5, max(0.5 * fraction, share, 1 / excess.numel()))
    holding = covariance.largest(excess, share) * strength
    weights = Weights(_over_steps(s, pull), kl_reference=_over_steps(s, holding))
    state = {"gardo/apart": 0.9 * usual + 0.1 * apart, "gardo/share": share}
    return Shaped(s.rewards, weights, {**s.state, **state}, {"gardo/held": share})


def _shaped(s: Signals, rewards: Float32[Tensor, "G K"]) -> Shaped:
    """GRPO's advantages of shaped rewards, the same for every step of an image."""
    pull = advantage.advantages(rewards, std=s.advantage_std, clip=s.advantage_clip)
    return Shaped(rewards, Weights(_over_steps(s, pull)), s.state)


def _over_steps(s: Signals, values: Float32[Tensor, "G K"]) -> Float32[Tensor, "G K S"]:
    return values.unsqueeze(-1).expand_as(s.log_prob).float()


def _entropic(
    s: Signals,
    values: Sequence[Float32[Tensor, "G K N"]],
    strength: float,
    relative: bool,
    native: bool,
    shuffled: bool,
) -> Shaped:
    """What PEC and PCVAE share: the values of the scored transitions, summed over spaces, go into
    the reward as their mean, or natively into the loss as - alpha rho value."""
    value = torch.stack(list(values)).sum(0)
    if shuffled:
        value = _shuffle(s, value)
    term = value.mean(dim=-1)
    if native:
        if relative:
            raise ValueError("method.relative is about shaped rewards; set it to false with native")
        # The mean is over all S steps; with N of them scored it is an unbiased estimate.
        scale = strength * s.log_prob.shape[-1] / value.shape[-1]
        score = torch.zeros_like(s.log_prob).scatter(2, _columns(s), scale * value)
        plain = _shaped(s, s.rewards)
        weights = replace(plain.weights, score=score)
        return replace(plain, weights=weights, metrics=_term_metrics(term, strength))
    state = s.state
    if relative:
        strength, state = calibrated(state, s.rewards, term, strength, name="term")
    shaped = _shaped(s, shaping.shape(s.rewards, term, strength))
    return replace(shaped, state=state, metrics=_term_metrics(term, strength))


def _term_metrics(
    term: Float32[Tensor, "G K"], strength: float, suffix: str = ""
) -> dict[str, float]:
    return {
        f"shaping/strength{suffix}": strength,
        f"shaping/term_std_in_group{suffix}": term.std(1, correction=0).mean().item(),
    }


def _correlation(x: Float32[Tensor, "G K"], y: Float32[Tensor, "G K"]) -> float:
    """Within groups, pooled; 0 where one of the two does not vary."""
    a, b = (v.double() - v.double().mean(dim=1, keepdim=True) for v in (x, y))
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return ((a * b).sum() / scale).item() if scale > 0 else 0.0


def _omega(s: Signals, omega: Omega) -> Float32[Tensor, "G 1 N"]:
    rows = [shaping.step_weights(s.std[columns], omega) for columns in s.scored]
    return torch.stack(rows).unsqueeze(1)


def _columns(s: Signals) -> Int64[Tensor, "G K N"]:
    """The scored steps as an index into [G, K, S]."""
    return s.scored.unsqueeze(1).expand(-1, s.rewards.shape[1], -1)


def _covarying(s: Signals, spaces: tuple[str, ...], fraction: float) -> Tensor:
    """The transitions, bool [G, K, S], of the largest covariance. Steps that are not scored have
    no perceptual log-prob and are never among them."""
    pull = advantage.advantages(s.rewards, std=s.advantage_std, clip=s.advantage_clip)
    if not spaces:
        return covariance.largest(covariance.covariance(s.log_prob, pull), fraction)
    log_p = torch.stack([s.log_p_perc[space] for space in spaces]).sum(0)
    if s.scored.ne(s.scored[0]).any():
        raise ValueError(
            "covariances are centred for each step, so every group must score the same ones; "
            "set perceptual.steps to 0"
        )
    chosen = covariance.largest(covariance.covariance(log_p, pull), fraction)
    everywhere = torch.zeros_like(s.log_prob, dtype=torch.bool)
    return everywhere.scatter(2, _columns(s), chosen)


def _shuffle(s: Signals, values: Float32[Tensor, "G K *n"]) -> Float32[Tensor, "G K *n"]:
    """Each group's images in a random order, a function of (seed, group id)."""
    rows: list[Tensor] = []
    for group_id, row in zip(s.group_ids, values, strict=True):
        source = generator("shuffled", s.seed, int(group_id.item()))
        order = torch.randperm(len(row), generator=source)
        rows.append(row[order])
    return torch.stack(rows)


def _bandwidths(s: Signals, spaces: tuple[str, ...]) -> tuple[State, dict[str, float]]:
    """Squared bandwidths h^2 by space: from the first images that are seen, then kept."""
    state = dict(s.state)
    seen = s.features if s.probe is None else s.probe
    for space in spaces:
        if f"bandwidth/{space}" not in state:
            state[f"bandwidth/{space}"] = entropy.median_bandwidth(seen[space])
    return state, {space: state[f"bandwidth/{space}"] for space in spaces}


def _nearest(features: Float32[Tensor, "G K D"]) -> Float32[Tensor, "G K"]:
    """Each image's least cosine distance to another one of its group; features are unit-norm."""
    count = features.shape[1]
    distance = 1 - features @ features.transpose(1, 2)
    return distance.masked_fill(torch.eye(count, dtype=torch.bool), torch.inf).amin(dim=2)


def _ranks(values: Float32[Tensor, "G K"]) -> Float32[Tensor, "G K"]:
    """Rank of each value in its group, 0 (least) to 1; ties by their place."""
    order = values.argsort(dim=1, stable=True).argsort(dim=1)
    return order.float() / (values.shape[1] - 1)
