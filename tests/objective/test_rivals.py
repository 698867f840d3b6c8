"""The rivals of docs/rivals.md, each against its equation written out."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from percent_ray.flow.sde import transition
from percent_ray.objective import guard
from percent_ray.objective.grpo import Weights, transition_loss
from percent_ray.objective.methods.diverse_grpo import bonus, cluster
from percent_ray.objective.methods.gardo import _ranks
from percent_ray.objective.penalties import reference_kl
from percent_ray.objective.step_weights import step_weight
from percent_ray.recipe.section import METHODS
from tests.objective.signals import G, K, S, normal, signals, unit

STEP = {"sigma_second": 0.9, "noise_level": 0.7, "kind": "flow_sde"}


def group_advantages(rewards: np.ndarray) -> np.ndarray:
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / (rewards.std(1, keepdims=True) + 1e-4)


def bunches(sizes, *, spread=0.05, seed=0):
    """Unit features in bunches of the given sizes, mixed."""
    directions = torch.eye(8)[: len(sizes)]
    rows = torch.cat([directions[i].expand(n, -1) for i, n in enumerate(sizes)])
    features = torch.nn.functional.normalize(rows + spread * normal(seed, *rows.shape), dim=-1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return features[order], labels[order]


@pytest.mark.parametrize("sizes", [(8, 3, 1), (5, 5, 2), (6, 6)])
def test_diverse_grpo_finds_the_bunches_and_pays_for_small_ones(sizes):
    features, labels = bunches(sizes)
    found = cluster(features, len(sizes))
    for one in range(len(features)):
        for other in range(len(features)):
            assert (found[one] == found[other]) == bool(labels[one] == labels[other])
    expected = [math.sqrt(sum(sizes) / sizes[label]) for label in labels]
    np.testing.assert_allclose(bonus(found), expected, rtol=1e-6)


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), (18, 3, 2, 1), (20, 2, 1, 1), (21, 1, 1, 1)])
@pytest.mark.parametrize("spread", [0.01, 0.1, 0.2])
def test_what_is_left_of_a_collapsed_group_is_a_cluster_of_its_own(sizes, spread):
    """One picture many times, which is what the bonus is for."""
    for seed in range(8):
        features, labels = bunches(sizes, spread=spread, seed=seed)
        expected = [math.sqrt(sum(sizes) / sizes[label]) for label in labels]
        np.testing.assert_allclose(bonus(cluster(features, 4)), expected, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_clusters_are_those_of_lapacks_pivots_on_the_largest_eigenvectors(count):
    """L = D^-1/2 A D^-1/2 with A_ii = 1, of draws without clusters: another width of the affinity,
    another diagonal or the smallest eigenvectors part them otherwise."""
    for seed in range(20):
        features = torch.nn.functional.normalize(1 + 0.3 * normal(seed, 12, 4), dim=-1)
        x = features.double().numpy()
        squares = ((x[:, None] - x[None]) ** 2).sum(-1)
        # torch's median, the lower of two in the middle.
        pairs = np.sort(squares[np.triu_indices(len(x), 1)])
        affinity = np.exp(-squares / pairs[(len(pairs) - 1) // 2])
        degree = affinity.sum(1)
        _, vectors = np.linalg.eigh(affinity / np.sqrt(degree[:, None] * degree[None]))
        top = vectors[:, -count:]
        pivots = scipy.linalg.qr(top.T, pivoting=True)[2][:count]
        turned, _ = scipy.linalg.polar(top[pivots])
        labels = np.abs(top @ turned.T).argmax(1)
        found = np.array(cluster(features, count))
        same = found[:, None] == found[None]
        assert (same == (labels[:, None] == labels[None])).all(), seed


def test_diverse_grpo_adds_the_bonus_to_the_reward():
    features = torch.stack([bunches((3, 2, 1), seed=seed)[0] for seed in range(G)])
    s = signals(features={"dino": features})
    plain = METHODS["diverse_grpo"](clusters=3, strength=2.0, relative=False)(s)
    expected = np.zeros((G, K))
    for g in range(G):
        labels = cluster(features[g], 3)
        for k in range(K):
            n = sum(label == labels[k] for label in labels)
            expected[g, k] = s.rewards[g, k] + 2.0 * math.sqrt(K / n)
    np.testing.assert_allclose(plain.rewards, expected, rtol=1e-5)
    np.testing.assert_allclose(plain.weights.advantage[..., 1], group_advantages(expected), 1e-3)
    relative = METHODS["diverse_grpo"](clusters=3, strength=0.5)(s)
    term = (relative.rewards - s.rewards).double().numpy()
    assert np.sqrt((term.std(1) ** 2).mean()) == pytest.approx(
        0.5 * np.sqrt((s.rewards.double().numpy().std(1) ** 2).mean()), rel=1e-4
    )


def test_identical_images_are_one_cluster_and_change_nothing():
    s = signals(features={"dino": unit(0, G, 1, 8).expand(G, K, 8).contiguous()})
    shaped = METHODS["diverse_grpo"]()(s)
    np.testing.assert_allclose(
        shaped.weights.advantage[..., 0], group_advantages(s.rewards.numpy()), 1e-3
    )
    assert shaped.metrics["shaping/clusters"] == 1


def test_uni_tmpo_matches_the_groups_distribution():
    s = signals(rewards=0.1 * normal(0, G, K))
    shaped = METHODS["uni_tmpo"](beta=15.0)(s)
    for g in range(G):
        q = np.exp(15 * s.rewards[g].double().numpy())
        p = np.exp([sum(s.log_prob[g, k, i].item() for i in range(S)) for k in range(K)])
        expected = K * (q / q.sum() - p / p.sum())
        np.testing.assert_allclose(shaped.weights.advantage[g, :, 2], expected, atol=1e-5)
        assert shaped.weights.advantage[g, :, 0].sum().item() == pytest.approx(0, abs=1e-5)


def test_uni_tmpos_advantages_are_the_gradient_of_its_kl():
    """d KL(q || softmax(s)) / d s_i = p_i - q_i, and the loss is a mean over images."""
    s = signals(rewards=0.1 * normal(0, G, K))
    scores = s.log_prob.double().sum(-1).requires_grad_()
    q = torch.softmax(15 * s.rewards.double(), dim=1)
    kl = (q * (q.log() - torch.log_softmax(scores, dim=1))).sum()
    (gradient,) = torch.autograd.grad(kl, scores)
    advantage = METHODS["uni_tmpo"]()(s).weights.advantage[..., 0]
    torch.testing.assert_close(-advantage / K, gradient.float(), atol=1e-6, rtol=1e-4)


def test_uni_tmpos_advantages_sum_to_0_also_where_one_image_alone_is_right():
    rewards = torch.zeros(G, K)
    rewards[:, 2] = 1.0
    advantage = METHODS["uni_tmpo"]()(signals(rewards=rewards, advantage_clip=1.5)).weights
    torch.testing.assert_close(advantage.advantage.sum(1), torch.zeros(G, S), atol=1e-5, rtol=0)
    assert advantage.advantage[:, 2].amax() > 1.5


def test_uni_tmpo_leaves_groups_of_equal_rewards_out():
    rewards = 0.1 * normal(0, G, K)
    rewards[1] = 0.5 + 1e-4 * torch.arange(K)
    weights = METHODS["uni_tmpo"](least_range=1e-3)(signals(rewards=rewards)).weights
    assert weights.teaches(dims=2).tolist() == [True, False, True]
    forward = {"log_prob": torch.zeros(G, K, 0), "scored": ()}
    given = METHODS["uni_tmpo"]()(signals(rewards=rewards, **forward)).weights.advantage
    q = torch.softmax(15 * rewards.double(), dim=1)
    torch.testing.assert_close(given[0, :, 0], (K * (q[0] - 1 / K)).float())


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_gardo_of_identical_images_is_the_reward_alone(noise):
    """Its distances are 0, or float32's rounding of it, and d / mean d says nothing."""
    same = unit(0, G, 1, 8).expand(G, K, 8) + noise * normal(1, G, K, 8)
    s = signals(features={"dino": same.contiguous()})
    advantage = METHODS["gardo"]()(s).weights.advantage[..., 0]
    torch.testing.assert_close(advantage, s.rewards - s.rewards.mean(1, keepdim=True))


def moved(seed: int = 0, *, by: float = 0.05, sigma: float = 0.8, sigma_next: float = 0.7):
    """An old step, one of other weights, and what the old one has drawn."""
    velocity, latents = normal(seed, 6, 500), normal(seed + 1, 6, 500)
    old = transition(velocity, latents, sigma, sigma_next, **STEP)
    drawn = old.draw(normal(seed + 2, 6, 500))
    other = (velocity + by * normal(seed + 3, 6, 500)).requires_grad_()
    return old, transition(other, latents, sigma, sigma_next, **STEP), drawn, other


@pytest.mark.parametrize("sigmas", [(0.95, 0.7), (0.5, 0.45)])
def test_guards_ratio_is_the_change_of_the_mean_along_the_noise(sigmas):
    old, now, drawn, _ = moved(sigma=sigmas[0], sigma_next=sigmas[1])
    found = guard.log_ratio(now, now.log_prob(drawn), old.log_prob(drawn), old.mean)
    eps = (drawn - old.mean) / old.std[:, None]
    expected = ((now.mean - old.mean) * eps).mean(1)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-3)
    assert expected.abs().max() > 1e-4


def test_a_loss_with_guards_ratio_and_step_weights_equals_its_transcription():
    old, now, drawn, other = moved()
    advantage = torch.tensor([1.0, -0.5, 0.3, -2.0, 0.7, 1.5])
    options = {"clip_low": 1e-4, "clip_high": 1e-4, "old_mean": old.mean, "ratio": "guard"}
    sigma, sigma_next = torch.tensor([0.8, 0.7])
    for kind, weight in (("guard", 1 / 0.1), ("tempflow", 2.25 * now.std[0].item())):
        scale = step_weight(kind, now.std, sigma=sigma, sigma_next=sigma_next)
        loss, metrics, _ = transition_loss(
            now, drawn, old.log_prob(drawn), Weights(advantage), scale=scale, **options
        )
        (gradient,) = torch.autograd.grad(loss.sum(), other, retain_graph=True)
        gap = (now.mean - old.mean).square().mean(1) / (2 * now.std**2)
        ratio = (now.std * (now.log_prob(drawn) - old.log_prob(drawn) + gap)).exp()
        whole = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.9999, 1.0001)) * weight
        (expected,) = torch.autograd.grad(whole.sum(), other, retain_graph=True)
        torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)
        assert 0 < metrics.outside_sum < 6
    assert step_weight("uniform", now.std, sigma=sigma, sigma_next=sigma_next) is None


def test_guard_gives_steps_of_any_noise_one_spread_and_no_drift():
    """The same change of the mean, at two stds: the plain log-ratio's spread grows as 1 / s."""
    spreads, plain, means = [], [], []
    for std in (0.7, 0.1):
        mean, change = torch.zeros(4000, 64), 0.02 * normal(5, 4000, 64)
        drawn = mean + std * normal(6, 4000, 64)
        step = transition(mean, mean, 0.8, 0.7, **STEP)
        at = {"std": torch.full((4000,), std), "diffusion": step.diffusion, "kind": step.kind}
        old, now = type(step)(mean, **at), type(step)(change, **at)
        ratio = now.log_prob(drawn) - old.log_prob(drawn)
        guarded = guard.log_ratio(now, now.log_prob(drawn), old.log_prob(drawn), old.mean)
        spreads.append(guarded.std().item())
        plain.append(ratio.std().item())
        means.append((guarded.mean() / guarded.std() * math.sqrt(4000)).item())
    assert spreads[0] == pytest.approx(spreads[1], rel=0.02)
    assert plain[1] == pytest.approx(7 * plain[0], rel=0.05)
    assert all(abs(z) < 4 for z in means)


def test_the_penalty_of_means_has_no_variance_in_it():
    old, now, _, _ = moved(by=0.5)
    expected = [(now.mean[i] - old.mean[i]).square().mean().item() for i in range(6)]
    np.testing.assert_allclose(reference_kl(now, old, form="mean").detach(), expected, rtol=1e-5)


def test_a_relative_bonus_waits_for_rewards_that_differ():
    """Of a verdict alone every group of the first step may be all wrong."""
    features = torch.stack([bunches((3, 2, 1), seed=seed)[0] for seed in range(G)])
    same = signals(features={"dino": features}, rewards=torch.zeros(G, K))
    first = METHODS["diverse_grpo"](clusters=3)(same)
    assert not first.weights.advantage.any()
    later = signals(features={"dino": features}, state=first.state)
    assert METHODS["diverse_grpo"](clusters=3)(later).metrics["shaping/strength"] > 0


def test_gardo_learns_nothing_from_equal_rewards():
    """In float32 the mean of equal numbers is another number half of the time."""
    forward = {"log_prob": torch.zeros(G, K, 0), "scored": ()}
    for value in (0.1, 0.7, 23.3):
        for way in ({}, forward):
            weights = METHODS["gardo"]()(signals(rewards=torch.full((G, K), value), **way)).weights
            assert not weights.advantage.any()
            assert not weights.kl_reference.any(), "and nothing of it is held"


def test_gardo_holds_more_where_reward_and_judge_part_more_than_they_did():
    """Ranks of six: equal, then opposite (mean |difference| 0.6), then equal again."""
    order = torch.arange(K).float().expand(G, K)
    shares, apart, state = [], [], {}
    for sign in (1, -1, 1, 1):
        s = signals(rewards=sign * order, scores={"clip": order}, state=state)
        state = METHODS["gardo"](fraction=0.2)(s).state
        shares.append(state["gardo/share"])
        apart.append(state["gardo/apart"])
    assert shares == pytest.approx([0.2, 0.22, 0.2, 0.2 / 1.1])
    assert apart == pytest.approx([0, 0.06, 0.054, 0.0486])


def test_gardo_holds_no_image_for_its_place():
    """Images of one reward have one rank; a group whose rewards are equal holds none."""
    values = torch.tensor([[1.0, 0, 1, 0, 0, 0], [0.5] * K, [0.0, 0, 0, 0, 1, 1]])
    assert _ranks(values)[0].tolist() == pytest.approx([0.9, 0.3, 0.9, 0.3, 0.3, 0.3])
    s = signals(rewards=values, scores={"clip": torch.zeros(G, K)})
    held = METHODS["gardo"](fraction=0.35)(s).weights.kl_reference[..., 0] > 0
    assert held.any(1).tolist() == [True, False, True]
    assert not (held & (values == 0)).any()


def test_uni_tmpo_is_not_cut_in_the_forward_process():
    """One image of six is right: A is up to 5, and q = A / (2 clip) + 1/2 would cut it alone."""
    rewards = torch.zeros(G, K)
    rewards[:, 2] = 1.0
    forward = {"log_prob": torch.zeros(G, K, 0), "scored": ()}
    given = METHODS["uni_tmpo"]()(signals(rewards=rewards, advantage_clip=1.5, **forward))
    advantage = given.weights.advantage
    assert advantage.abs().max().item() == pytest.approx(1.5)
    torch.testing.assert_close(advantage.sum(1), torch.zeros(G, 1), atol=1e-5, rtol=0)
