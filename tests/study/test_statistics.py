"""Numbers of a study against published examples, scipy, and loops that read like the definition."""

import itertools

import numpy as np
import pytest
from scipy import stats

from percent_ray.study import statistics
from percent_ray.study.statistics import MISSING, agreement, intervals, summarize

A, NONE, B = 0, 1, 2


def votes_of(*rows):
    return np.array(rows)


def test_alpha_is_that_of_krippendorffs_worked_example():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability", C: four observers, twelve
    units, five nominal categories, missing data; alpha is 0.743."""
    rows = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    data = np.array([[MISSING if v == "." else int(v) - 1 for v in row.split()] for row in rows])
    _, alpha = agreement(data)
    assert alpha == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_observers_is_that_of_the_binary_example():
    """The same paper, A: two observers, ten units, binary data; alpha is 0.095."""
    data = votes_of([0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    _, alpha = agreement(data)
    assert alpha == pytest.approx(0.095, abs=5e-4)


def test_agreement_is_the_share_of_equal_answers_among_all_two_annotators():
    votes = np.random.default_rng(0).integers(0, 3, (5, 20))
    same = [
        votes[one, pair] == votes[two, pair]
        for pair in range(20)
        for one, two in itertools.combinations(range(5), 2)
    ]
    agreed, _ = agreement(votes)
    assert agreed == pytest.approx(np.mean(same))


def test_agreement_without_a_second_annotator_is_unknown_and_alpha_without_a_second_answer():
    assert agreement(votes_of([A, B, NONE])) == (None, None)
    assert agreement(votes_of([A, MISSING], [MISSING, B])) == (None, None)
    assert agreement(votes_of([A, A], [A, A])) == (1.0, None)


def test_of_one_annotator_the_interval_is_scipys_bootstrap_over_pairs():
    """Seven, eight and fifteen of thirty: far from the ends Wilson's interval is much the same, so
    bounds agree to the bootstrap's grain, a pair of thirty."""
    votes = votes_of([A] * 7 + [NONE] * 8 + [B] * 15)
    lows, highs = intervals(votes)
    for side in (A, NONE, B):
        hits = (votes[0] == side).astype(float)
        reference = stats.bootstrap(
            (hits,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(1)
        ).confidence_interval
        assert lows[side] == pytest.approx(reference.low, abs=1.01 / 30)
        assert highs[side] == pytest.approx(reference.high, abs=1.01 / 30)


def test_the_spread_is_that_of_drawing_pairs_and_annotators_one_by_one(monkeypatch):
    """Against a loop over draws, with missing answers, annotators of different taste and pairs of
    different difficulty, where the interval is much wider than that of independent answers."""
    source = np.random.default_rng(2)
    taste, ease = source.normal(0, 1.5, (6, 1)), source.normal(0, 1.5, (1, 24))
    votes = np.where(taste + ease + source.normal(0, 0.5, (6, 24)) > 0, B, A)
    votes[source.random(votes.shape) < 0.1] = MISSING
    draws = []
    for _ in range(4000):
        chosen = votes[source.integers(0, 6, 6)][:, source.integers(0, 24, 24)]
        draws.append(np.mean(chosen[chosen != MISSING] == B))
    lows, highs = intervals(votes)
    assert lows[B] == pytest.approx(np.quantile(draws, 0.025), abs=0.02)
    assert highs[B] == pytest.approx(np.quantile(draws, 0.975), abs=0.02)
    k, n = int((votes == B).sum()), int((votes != MISSING).sum())
    wilson = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert highs[B] - lows[B] > 1.8 * (wilson.high - wilson.low)


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch):
    """Independent answers, a share of 0.3 of B: 200 studies of 4 annotators and 15 pairs. A
    pigeonhole bootstrap errs to the wide side."""
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    source = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        lows, highs = intervals(source.choice([A, NONE, B], (4, 15), p=[0.5, 0.2, 0.3]))
        covered += lows[B] <= 0.3 <= highs[B]
    assert covered >= 188


def test_equal_answers_do_not_claim_certainty():
    """All twenty: Wilson's lower bound is n / (n + z²)."""
    of = summarize(np.full((1, 20), B), "overall")
    z = stats.norm.ppf(0.975)
    assert of.shares["b"].low == pytest.approx(100 * 20 / (20 + z**2))
    assert of.shares["b"].high == pytest.approx(100)
    assert of.shares["a"].high == pytest.approx(100 * z**2 / (20 + z**2))


def test_shares_votes_of_pairs_and_the_sign_test():
    """Five pairs: majorities B, B, B, A, and a tie, in which one annotator of two says nothing."""
    votes = votes_of(
        [B, B, B, A, A],
        [B, B, NONE, A, B],
        [A, NONE, NONE, NONE, MISSING],
    )
    of = summarize(votes, "overall")
    assert (of.given, of.missing) == (14, 1)
    assert {side: share.answers for side, share in of.shares.items()} == {"a": 4, "none": 4, "b": 6}
    assert sum(share.percent for share in of.shares.values()) == pytest.approx(100)
    assert of.shares["b"].percent == pytest.approx(100 * 6 / 14)
    assert (of.pairs_a, of.pairs_tied, of.pairs_b) == (1, 1, 3)
    assert of.p == pytest.approx(2 * (1 + 4) / 2**4)


def test_a_pair_that_nobody_has_answered_is_not_tied():
    of = summarize(votes_of([B, A, MISSING, MISSING], [B, B, MISSING, NONE]), "overall")
    assert (of.pairs_a, of.pairs_tied, of.pairs_b) == (0, 2, 1)


def test_without_a_decided_pair_there_is_no_evidence():
    assert summarize(np.full((2, 6), NONE), "overall").p == 1.0


def test_a_question_without_answers_is_refused():
    with pytest.raises(ValueError, match="nobody has answered the question of quality"):
        summarize(np.full((2, 6), MISSING), "quality")
