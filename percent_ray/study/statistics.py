"""Percentages of answers, their intervals, a test of preference, and agreement of annotators.

Answers are not independent: those about one pair share its pictures, those of one annotator share a
taste. So intervals are of the pigeonhole bootstrap (Owen 2007), which draws pairs and annotators
anew, each with replacement, and takes the answers where they cross; and the test of preference is a
sign test over pairs, each with one vote, that of the majority of its annotators. Both treat the
answers as independent only where there is a single annotator.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest

SIDES = ("a", "none", "b")
"""What an answer is once the key is known: row A, no preference, row B."""
MISSING = -1
RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Share:
    """How often one answer was given."""

    answers: int
    percent: float
    low: float
    high: float
    """Of the interval, in percent."""


@dataclass(frozen=True, slots=True)
class Question:
    """What all annotators have said to one question."""

    given: int
    missing: int
    shares: Mapping[str, Share]
    """By `SIDES`."""
    pairs_a: int
    pairs_tied: int
    pairs_b: int
    """Pairs by what most of their annotators prefer."""
    p: float
    """Of the sign test, two-sided, over pairs that are not tied. Not corrected for asking three
    questions."""
    agreed: float | None
    """Share of two annotators' answers about one pair that are the same, 0 to 1; None without two
    annotators of one pair."""
    alpha: float | None
    """Krippendorff's; None where it is not defined."""


def summarize(votes: Int[np.ndarray, "annotators pairs"], question: str) -> Question:
    """Raises ValueError where all of `votes` are missing."""
    given = int((votes != MISSING).sum())
    if not given:
        raise ValueError(f"nobody has answered the question of {question}")
    lows, highs = intervals(votes)
    answers = [int((votes == side).sum()) for side in range(len(SIDES))]
    shares = {
        side: Share(n, 100 * n / given, 100 * float(low), 100 * float(high))
        for side, n, low, high in zip(SIDES, answers, lows, highs, strict=True)
    }
    lead = (votes == SIDES.index("b")).sum(0) - (votes == SIDES.index("a")).sum(0)
    pairs_a, pairs_b = int((lead < 0).sum()), int((lead > 0).sum())
    decided = pairs_a + pairs_b
    agreed, alpha = agreement(votes)
    return Question(
        given=given,
        missing=votes.size - given,
        shares=shares,
        pairs_a=pairs_a,
        pairs_tied=int(((lead == 0) & (votes != MISSING).any(0)).sum()),
        pairs_b=pairs_b,
        p=float(binomtest(pairs_b, decided).pvalue) if decided else 1.0,
        agreed=agreed,
        alpha=alpha,
    )


def intervals(
    votes: Int[np.ndarray, "annotators pairs"],
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Lower and upper bounds of each side's share, 0 to 1: percentiles of the pigeonhole bootstrap.

    None is narrower than Wilson's for as many independent answers: a bootstrap of twenty equal
    answers would claim that a twenty-first cannot differ.
    """
    annotators, pairs = votes.shape
    source = np.random.default_rng(0)
    drawn_annotators = source.multinomial(annotators, [1 / annotators] * annotators, RESAMPLES)
    drawn_pairs = source.multinomial(pairs, [1 / pairs] * pairs, RESAMPLES)
    answers = np.stack([votes == side for side in range(len(SIDES))]).astype(float)
    weights = "ra,sap,rp->rs"
    hits = np.einsum(weights, drawn_annotators, answers, drawn_pairs, optimize=True)
    given = hits.sum(1, keepdims=True)
    drawn = (hits / np.maximum(given, 1))[given[:, 0] > 0]  # one without answers has no share
    tail = (1 - CONFIDENCE) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=0)
    totals = answers.sum((1, 2)).astype(int)
    for side, n in enumerate(totals):
        wilson = binomtest(int(n), int(totals.sum())).proportion_ci(CONFIDENCE, "wilson")
        lows[side], highs[side] = min(lows[side], wilson.low), max(highs[side], wilson.high)
    return lows, highs


def agreement(
    votes: Int[np.ndarray, "annotators pairs"],
) -> tuple[float | None, float | None]:
    """Observed agreement, and Krippendorff's alpha for unordered categories with answers missing
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability", C): 1 where annotators always
    agree, 0 where as often as by chance.

    Pairs of one answer say nothing and are left out. Without others both are None; alpha is None
    also where all answers are the same, for then there is nothing to agree about.
    """
    values = np.stack([(votes == side).sum(0) for side in range(votes.max() + 1)], axis=1)
    raters = values.sum(1)
    values, raters = values[raters > 1], raters[raters > 1]
    if not len(values):
        return None, None
    total = raters.sum()
    same = (values * (values - 1)).sum(1) / (raters - 1)
    agreed = float(same.sum() / total)
    by_value = values.sum(0)
    by_chance = float((by_value * (by_value - 1)).sum() / (total * (total - 1)))
    return agreed, None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
