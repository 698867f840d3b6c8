"""Each method against its equation, written out image by image, and what it must do to a batch."""

import math

import numpy as np
import pytest
import torch

from percent_ray.flow.sde import transition
from percent_ray.objective.diversity import vendi
from percent_ray.objective.grpo import Weights, stack, transition_loss
from percent_ray.objective.methods.base import Shaped, Signals
from percent_ray.recipe.section import METHODS
from tests.objective.signals import G, K, S, normal, signals, unit


def run(name: str, s: Signals, **parameters) -> Shaped:
    return METHODS[name](**parameters)(s)


def group_advantages(rewards: np.ndarray) -> np.ndarray:
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / (rewards.std(1, keepdims=True) + 1e-4)


def check_advantages(shaped: Shaped, rewards: np.ndarray) -> None:
    np.testing.assert_allclose(shaped.rewards, rewards, atol=1e-5)
    for i in range(S):
        found = shaped.weights.advantage[..., i]
        np.testing.assert_allclose(found, group_advantages(rewards), atol=1e-4)


def only(weights: Weights, *names: str) -> None:
    """No other weight is set."""
    for name in ("score", "log_prob", "kl_old", "kl_reference"):
        assert (getattr(weights, name) is not None) == (name in names), name


def test_flow_grpo_is_the_reward_alone():
    s = signals()
    shaped = run("flow_grpo", s)
    check_advantages(shaped, s.rewards.numpy())
    only(shaped.weights)


@pytest.mark.parametrize("spaces", [("pickscore",), ("pickscore", "dino")])
@pytest.mark.parametrize("omega", ["uniform", "variance"])
@pytest.mark.parametrize("name", ["pec", "pcvae"])
def test_shaped_rewards_are_equations_16_to_21(name, omega, spaces):
    s = signals(scored=(0, 2, 3))
    shaped = run(name, s, spaces=spaces, strength=0.07, omega=omega)
    variance = s.std.numpy().astype(np.float64) ** 2
    weight = np.ones(3) if omega == "uniform" else (variance / variance.mean())[[0, 2, 3]]
    expected = s.rewards.numpy().astype(np.float64).copy()
    for g in range(G):
        for k in range(K):
            for n, i in enumerate((0, 2, 3)):
                for space in spaces:
                    inside = s.log_p_perc[space][g, k, n].item()
                    if name == "pcvae":
                        inside -= s.log_prob[g, k, i].item()
                    expected[g, k] -= 0.07 / 3 * weight[n] * inside
    check_advantages(shaped, expected)
    only(shaped.weights)


@pytest.mark.parametrize("name", ["pec", "pcvae"])
def test_native_forms_are_a_score_function_beside_the_reward(name):
    """- alpha rho_i value_i, averaged over the transitions, unscored ones worth nothing."""
    s = signals(scored=(1, 3))
    shaped = run(name, s, spaces=("dino",), strength=0.2, native=True)
    check_advantages(shaped, s.rewards.numpy())
    only(shaped.weights, "score")
    assert (shaped.weights.score[..., [0, 2]] == 0).all()
    for n, i in enumerate((1, 3)):
        value = -s.log_p_perc["dino"][..., n]
        if name == "pcvae":
            value = value + s.log_prob[..., i]
        torch.testing.assert_close(shaped.weights.score[..., i], 0.2 * value * S / 2)


def test_pcvae_says_how_much_of_its_term_is_pecs():
    """PCVAE's term is PEC's plus the policy's log-prob, which hardly varies in a group."""
    s = signals()
    found = run("pcvae", s).metrics
    mine = (s.log_prob - s.log_p_perc["pickscore"]).mean(-1).double()
    pecs = -s.log_p_perc["pickscore"].mean(-1).double()
    a, b = (x - x.mean(1, keepdim=True) for x in (mine, pecs))
    expected = (a * b).sum() / (a.norm() * b.norm())
    assert found["shaping/correlation_with_pec"] == pytest.approx(expected.item(), rel=1e-5)
    quiet = signals(log_prob=0.001 * s.log_prob)
    assert run("pcvae", quiet).metrics["shaping/correlation_with_pec"] > 0.999


def test_entropy_reg_is_native_pec_or_the_policys_own_likelihood():
    s = signals()
    perceptual = run("entropy_reg", s, spaces=("dino",), strength=0.2)
    native = run("pec", s, spaces=("dino",), strength=0.2, native=True)
    assert torch.equal(perceptual.weights.score, native.weights.score)
    own = run("entropy_reg", s, strength=0.2)
    only(own.weights, "log_prob")
    assert (own.weights.log_prob == 0.2).all()


def loss_and_gradient(weights: Weights, step: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one step for all images, and its gradient in each one's velocity; the weights
    of the policy are those that drew the batch."""
    velocity, latents = normal(8, G * K, 5).requires_grad_(), normal(9, G * K, 5)
    policy = transition(
        velocity, latents, 0.8, 0.7, sigma_second=0.9, noise_level=0.7, kind="flow_sde"
    )
    next_latents = policy.draw(normal(10, G * K, 5)).detach()
    loss, _, _ = transition_loss(
        policy,
        next_latents,
        policy.log_prob(next_latents).detach(),
        weights.map(lambda weight: weight[..., step].flatten()),
        clip_low=1e-4,
        clip_high=1e-4,
        old_mean=policy.mean.detach() + 0.1,
        reference=policy,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    return loss, gradient


def test_entropy_reg_pushes_the_likelihood_of_old_samples_down():
    s = signals(rewards=normal(0, G, 1).expand(G, K).contiguous())
    _, gradient = loss_and_gradient(run("entropy_reg", s, strength=0.3).weights)
    _, towards = loss_and_gradient(Weights(-0.3 * torch.ones(G, K, S)))
    torch.testing.assert_close(gradient, towards, msg="as a negative advantage of 0.3 would")


@pytest.mark.parametrize("spaces", [(), ("pickscore",)])
def test_clip_cov_detaches_the_quarter_of_largest_covariance(spaces):
    s = signals()
    shaped = run("clip_cov", s, spaces=spaces, fraction=0.25)
    advantages = group_advantages(s.rewards.numpy())
    log_p = (s.log_p_perc["pickscore"] if spaces else s.log_prob).double().numpy()
    c = np.zeros((G, K, S))
    for i in range(S):
        for g in range(G):
            for k in range(K):
                c[g, k, i] = (log_p[g, k, i] - log_p[:, :, i].mean()) * (
                    advantages[g, k] - advantages.mean()
                )
    detached = c >= np.sort(c.flatten())[-round(0.25 * c.size)]
    assert detached.sum() == round(0.25 * c.size)
    assert ((shaped.weights.advantage == 0).numpy() == detached).all()
    for step in range(S):
        _, gradient = loss_and_gradient(shaped.weights, step)
        still = (gradient == 0).all(dim=1).reshape(G, K).numpy()
        assert (still == detached[..., step]).all(), "exactly these have no gradient"
        _, plain = loss_and_gradient(run("flow_grpo", s).weights, step)
        torch.testing.assert_close(gradient[~still.flatten()], plain[~still.flatten()])


def test_covariances_are_centred_for_each_step():
    """A step whose log-probs are all larger by nats is not over-represented."""
    s = signals()
    shifted = signals(log_prob=s.log_prob + torch.tensor([0.0, 50.0, 0.0, -50.0]))
    one, two = run("clip_cov", s), run("clip_cov", shifted)
    assert torch.equal(one.weights.advantage == 0, two.weights.advantage == 0)


@pytest.mark.parametrize("spaces", [(), ("dino",)])
def test_kl_cov_holds_the_same_transitions_to_the_old_policy(spaces):
    s = signals()
    shaped = run("kl_cov", s, spaces=spaces, fraction=0.25, strength=0.5)
    detached = run("clip_cov", s, spaces=spaces, fraction=0.25).weights.advantage == 0
    assert torch.equal(shaped.weights.kl_old, 0.5 * detached)
    check_advantages(shaped, s.rewards.numpy())
    loss, _ = loss_and_gradient(shaped.weights)
    plain, _ = loss_and_gradient(run("flow_grpo", s).weights)
    std = 0.7 * math.sqrt(0.8 / 0.2) * math.sqrt(0.1)
    gap = 0.5 * detached[..., 1].flatten() * 0.1**2 / (2 * std**2)
    torch.testing.assert_close(loss - plain, gap.float(), rtol=1e-4, atol=1e-6)


def marginal(features: np.ndarray, bandwidth_sq: float) -> np.ndarray:
    terms = np.zeros(features.shape[:2])
    for g, group in enumerate(features.astype(np.float64)):
        for k in range(len(group)):
            near = [
                math.exp(-((group[k] - group[j]) ** 2).sum() / (2 * bandwidth_sq))
                for j in range(len(group))
                if j != k
            ]
            terms[g, k] = -math.log(sum(near) / len(near))
    return terms


def half_median(features: np.ndarray) -> float:
    pairs = [
        ((group[i] - group[j]) ** 2).sum()
        for group in features.astype(np.float64)
        for i in range(K)
        for j in range(i)
    ]
    return float(np.median(pairs)) / 2


def test_marginal_pec_is_the_leave_one_out_density_in_each_space():
    s = signals()
    shaped = run(
        "marginal_pec", s, image_spaces=("pickscore", "dino"), strength=0.1, relative=False
    )
    expected = s.rewards.numpy().astype(np.float64)
    for space in ("pickscore", "dino"):
        features = s.features[space].numpy()
        expected = expected + 0.1 * marginal(features, half_median(features))
        assert shaped.state[f"bandwidth/{space}"] == pytest.approx(half_median(features))
    check_advantages(shaped, expected)
    later = signals(seed=50, state=shaped.state)
    kept = run("marginal_pec", later, image_spaces=("dino",), strength=0.1, relative=False)
    assert kept.state["bandwidth/dino"] == shaped.state["bandwidth/dino"]


def test_marginal_pec_rewards_the_odd_one_out():
    same = unit(0, 1, 1, 8).expand(1, K, 8) + 0.01 * normal(1, 1, K, 8)
    same[0, 2] = -same[0, 2]
    s = signals(
        groups=1,
        group_ids=torch.arange(1),
        rewards=torch.zeros(1, K),
        log_prob=torch.zeros(1, K, S),
        features={"dino": torch.nn.functional.normalize(same, dim=-1)},
    )
    advantage = run("marginal_pec", s, image_spaces=("dino",), relative=False).weights.advantage[0]
    assert (advantage[2] > 0).all()
    assert (advantage[[0, 1, 3, 4, 5]] < 0).all()


def test_relative_strength_pools_variances_over_the_first_steps_and_keeps_them():
    def pooled(parts: list[torch.Tensor]) -> float:
        return np.mean([part.double().var(1, correction=0).mean().item() for part in parts])

    state, rewards, terms = {}, [], []
    for step in range(10):
        s = signals(seed=10 * step, state=state)
        if step < 8:
            rewards.append(s.rewards)
            terms.append(-s.log_p_perc["pickscore"].mean(-1))
        shaped = run("pec", s, strength=0.5, relative=True)
        state = shaped.state
        expected = 0.5 * math.sqrt(pooled(rewards) / pooled(terms))
        assert shaped.metrics["shaping/strength"] == pytest.approx(expected, rel=1e-5)


def test_the_shuffled_control_has_the_same_terms_in_another_order():
    s = signals()
    for chosen in (
        run("pec", s, strength=0.1, shuffled=True),
        run("marginal_pec", s, strength=0.1, relative=False, shuffled=True),
    ):
        name = "pec" if "shaping/strength" in chosen.metrics else "marginal_pec"
        options = {} if name == "pec" else {"relative": False}
        plain = run(name, s, strength=0.1, **options)
        term, true = chosen.rewards - s.rewards, plain.rewards - s.rewards
        torch.testing.assert_close(term.sort(1).values, true.sort(1).values)
        assert (term - true).abs().min() > 1e-6, "no image keeps its own"
    again = run("pec", s, strength=0.1, shuffled=True)
    assert torch.equal(again.rewards, run("pec", s, strength=0.1, shuffled=True).rewards)


def test_strength_auto_rises_while_the_probes_lack_entropy_and_falls_when_they_have_it():
    options = {"image_spaces": ("dino",), "strength": "auto", "keep": 0.9}
    diverse, alike = unit(0, 2, K, 8), unit(1, 2, 1, 8) + 0.02 * normal(2, 2, K, 8)
    alike = torch.nn.functional.normalize(alike, dim=-1)

    def step(state: dict, probe: torch.Tensor | None, seed: int) -> Shaped:
        seen = None if probe is None else {"dino": probe}
        return run("marginal_pec", signals(seed=seed, state=state, probe=seen), **options)

    first = step({}, diverse, 0)
    base = np.mean([math.log(vendi(images)) for images in diverse])
    assert first.state["dino/held/target"] == pytest.approx(base + math.log(0.9))
    between = step(first.state, None, 10)
    strength = "shaping/strength_dino"
    assert between.metrics[strength] == pytest.approx(first.metrics[strength])
    lacking = step(between.state, alike, 20)
    more = step(lacking.state, alike, 30)
    assert first.metrics[strength] < lacking.metrics[strength] < more.metrics[strength]
    back = step(more.state, diverse, 40)
    assert back.metrics[strength] < more.metrics[strength]
    with pytest.raises(ValueError, match=r"set monitor\.probe_every above 0"):
        step({}, None, 0)


def test_gardo_amplifies_unlike_good_images_and_holds_what_the_judges_do_not_share():
    s = signals()
    shaped = run("gardo", s, image_spaces=("dino",), judges=("clip",), strength=0.3)
    only(shaped.weights, "kl_reference")
    features, rewards = s.features["dino"].double().numpy(), s.rewards.double().numpy()
    expected, excess = np.zeros((G, K)), np.zeros((G, K))
    for g in range(G):
        nearest = [
            min(1 - features[g, k] @ features[g, j] for j in range(K) if j != k) for k in range(K)
        ]
        for k in range(K):
            centred = rewards[g, k] - rewards[g].mean()
            expected[g, k] = centred * (nearest[k] / np.mean(nearest) if centred > 0 else 1)
            rank = (rewards[g] < rewards[g, k]).sum() / (K - 1)
            judged = s.scores["clip"][g].numpy()
            excess[g, k] = rank - (judged < judged[k]).sum() / (K - 1)
    np.testing.assert_allclose(shaped.weights.advantage[..., 2], expected, atol=1e-5)
    share = shaped.state["gardo/share"]
    held = shaped.weights.kl_reference[..., 0].numpy()
    assert set(np.unique(held)) == {0, np.float32(0.3)}
    assert (held > 0).sum() == round(share * G * K)
    assert excess[held > 0].min() >= excess[held == 0].max()


def test_every_method_gives_weights_of_every_transition():
    for name, method in METHODS.items():
        probe = {space: unit(70, 2, K, 8) for space in ("pickscore", "dino")}
        shaped = method()(signals(probe=probe))
        assert shaped.weights.advantage.shape == (G, K, S), name
        assert shaped.weights.map(lambda w: w[0]).teaches(dims=2)
        assert all(isinstance(value, float | int) for value in shaped.state.values())


def test_a_group_teaches_where_anything_but_a_kl_pulls():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert not Weights(zero, kl_old=one, kl_reference=one).teaches(dims=2)
    for weights in (Weights(one), Weights(zero, score=one), Weights(zero, log_prob=one)):
        assert weights.teaches(dims=2)
    rows = stack([Weights(zero, score=one), Weights(one, score=zero)])
    assert rows.teaches(dims=2).tolist() == [True, True]
    assert stack([Weights(zero), Weights(one)]).teaches(dims=2).tolist() == [False, True]


def test_gardo_has_unit_advantages_in_the_forward_process_whatever_the_rewards_scale():
    """NFT's pull grows with the advantage; GRPO's, under Adam, does not."""
    forward = {"log_prob": torch.zeros(G, K, 0), "scored": ()}
    gardo = METHODS["gardo"]()
    for scale in (1.0, 0.01):
        s = signals(rewards=scale * normal(0, G, K), **forward)
        weights = gardo(s).weights
        assert weights.advantage.shape == weights.kl_reference.shape == (G, K, 1)
        assert weights.advantage.std(correction=0).item() == pytest.approx(1, abs=0.05)
    plain = gardo(signals(rewards=0.01 * normal(0, G, K))).weights.advantage
    assert plain.abs().max() < 0.1
