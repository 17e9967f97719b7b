"""Whether two classifiers differ on the same films: paired tests.

Both take every film as independent of the others; with several films of one patient the p-values come out too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairedTest:
    """Two figures on the same films, the two-sided p-value of their difference, and the number of films."""

    first: float
    second: float
    p: float
    n: int


def delong_covariance(y: np.ndarray, scores: Sequence[np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of several scores on the same films, and the covariance of these AUROCs (DeLong et al. 1988).

    By the algorithm of Sun and Xu (2014): placement values from mid-ranks, in O(N log N).

    Args:
        y: (N,) bool or 0/1.
        scores: (K, N) float, higher = more positive.

    Returns:
        AUROCs (K,) and covariance (K, K), float64; NaN with fewer than two films of a kind.
    """
    from scipy.stats import rankdata

    y, scores = np.asarray(y, bool), np.atleast_2d(np.asarray(scores, float))
    positives, negatives = int(y.sum()), int((~y).sum())
    kinds = len(scores)
    if min(positives, negatives) < 2:
        return np.full(kinds, np.nan), np.full((kinds, kinds), np.nan)
    among_all = rankdata(scores, axis=1)
    # share of the negatives below each positive, and of the positives above each negative; ties count half
    below = (among_all[:, y] - rankdata(scores[:, y], axis=1)) / negatives
    above = 1 - (among_all[:, ~y] - rankdata(scores[:, ~y], axis=1)) / positives
    covariance = np.atleast_2d(np.cov(below)) / positives + np.atleast_2d(np.cov(above)) / negatives
    return below.mean(axis=1), covariance


def delong(y: np.ndarray, first: np.ndarray, second: np.ndarray) -> PairedTest:
    """DeLong's test of two AUROCs on the same films.

    Args:
        y: (N,) bool or 0/1. first, second: (N,) float, higher = more positive.

    Returns:
        The AUROCs and p; p is NaN where the variance cannot be told: fewer than two films of a kind, or a difference
        of which the films show no variance.
    """
    from scipy.stats import norm

    y = np.asarray(y, bool)
    areas, covariance = delong_covariance(y, [first, second])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = float(areas[0] - areas[1])
    if np.isnan(variance):
        p = float("nan")
    elif abs(difference) < 1e-12:
        p = 1.0
    elif variance < 1e-15:  # rounding alone
        p = float("nan")
    else:
        p = float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
    return PairedTest(float(areas[0]), float(areas[1]), p, len(y))


def mcnemar(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """McNemar's exact test of two accuracies on the same films: a binomial test of those that one alone gets right.

    Args:
        first, second: (N,) bool, whether the answer is right.

    Returns:
        The accuracies and p; p is 1 where both are right on the same films, NaN without films.
    """
    from scipy.stats import binom

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if not len(first):
        return PairedTest(float("nan"), float("nan"), float("nan"), 0)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    p = min(1.0, 2 * float(binom.cdf(min(gained, lost), gained + lost, 0.5)))
    return PairedTest(float(first.mean()), float(second.mean()), p, len(first))
