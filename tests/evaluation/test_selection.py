import math

import pytest
import torch

from percent_ray.evaluation.quality import Judged, measure
from percent_ray.evaluation.selection import STRENGTHS, selection, tilted
from percent_ray.scorers.base import Report


def gumbel(count, seed):
    source = torch.Generator().manual_seed(seed)
    return -(-torch.rand(count, generator=source, dtype=torch.float64).log()).log()


def test_single_choices_have_the_weights_of_the_kl_optimum():
    """exp(reward / beta): the policy that maximises E[reward] - beta KL(pi || base)."""
    rewards, beta = torch.tensor([0.0, 0.5, 1.0]), 0.8
    counts = torch.zeros(3)
    for seed in range(4000):
        counts[tilted(rewards, beta, gumbel(3, seed), 1)] += 1
    expected = torch.softmax(rewards / beta, dim=0)
    torch.testing.assert_close(counts / 4000, expected, atol=0.03, rtol=0)


def test_no_picture_is_chosen_twice_and_a_small_beta_takes_the_best():
    rewards = torch.arange(20.0)
    index = tilted(rewards, math.inf, gumbel(20, 0), 8)
    assert len(set(index.tolist())) == 8
    assert sorted(tilted(rewards, 1e-3, gumbel(20, 0), 8).tolist()) == list(range(12, 20))
    with pytest.raises(ValueError, match="30 pictures cannot be chosen from 20"):
        tilted(rewards, 1.0, gumbel(20, 0), 30)


def groups(spread):
    """Two prompts of 200 pictures; the reward is the first feature, beside it lie `spread`."""
    source = torch.Generator().manual_seed(3)
    for _ in range(2):
        reward = torch.randn(200, generator=source)
        others = spread * torch.randn(200, 6, generator=source)
        features = torch.cat([reward.unsqueeze(1), others], dim=1)
        yield Judged({"pickscore": Report(reward, "")}, {"dino": features, "vae": others})


def test_ever_stricter_choices_gain_reward_and_lose_only_what_it_is_about():
    alone, beside = (
        selection(list(groups(spread)), "pickscore", size=20, seed=1) for spread in (0.1, 1.0)
    )
    assert len(alone) == len(STRENGTHS)
    rewards = [found["quality/pickscore"] for found in alone]
    assert rewards == sorted(rewards)
    assert rewards[-1] > rewards[0] + 1.0
    whole = measure(list(groups(0.1)))
    assert rewards[0] == pytest.approx(whole["quality/pickscore"], abs=0.15)
    kept = [found[-1]["variance/dino"] / found[0]["variance/dino"] for found in (alone, beside)]
    assert kept[0] < 0.4
    assert kept[1] > 0.75
