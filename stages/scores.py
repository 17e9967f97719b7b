"""The score of a film: its probability of the positive class, on a scale that people can compare.

Odds are compared with the odds at the threshold: ``logit(score / 100) = k (logit(p) - logit(threshold))``. So a score
is monotone in the probability, and 50 *is* the threshold. Under the threshold, k is such that the score is 5 at
``below`` (in logits) from it; over it, such that it is 95 at ``above`` from it. The card holds both spreads. They are
quantiles of fixed reference films: of the validation films, one in twenty without the positive class has a score of at
most 5, and one in twenty with it has at least 95. New weights have other logits and the same anchors: 5, 50 and 95 keep
their meaning, whatever a network does to its probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

AT_THRESHOLD = 50.0  # the score of a film at the operating threshold
_ANCHOR = math.log(0.95 / 0.05)  # logit of the scores 5 and 95, without its sign
_LEAST_SPREAD = 0.1  # logits; a spread of none would make a step of the score


@dataclass(frozen=True)
class Scale:
    """How far, in logits of the probability, the scores 5 and 95 lie from the threshold.

    The default is the plain ratio of odds: the score is the probability as it would be, were the threshold one half.
    """

    below: float = _ANCHOR
    above: float = _ANCHOR

    @classmethod
    def of(cls, card: Mapping[str, Any] | None) -> Scale:
        """The scale of a card's entry ``score``, as `to_json` wrote it; the default where it has none."""
        return cls(float(card["below"]), float(card["above"])) if card else cls()

    def to_json(self) -> dict[str, float]:
        """``{"below", "above"}``, logits."""
        return {"below": round(self.below, 4), "above": round(self.above, 4)}


def fit_scale(
    probabilities: np.ndarray, is_positive: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> Scale:
    """The scale whose 5 and 95 are the outer twentieths of reference films.

    Args:
        probabilities: (N,) float of the positive class. is_positive: (N,) bool. threshold: 0 to 1.
        weights: (N,) how many films each stands for; None counts them alike.
    """
    x = logit(np.asarray(probabilities, float)) - float(logit(threshold))
    y = np.asarray(is_positive, bool)
    default = Scale()
    w = None if weights is None else np.asarray(weights, float)
    below = -_quantile(x[~y], 0.05, None if w is None else w[~y]) if (~y).any() else default.below
    above = _quantile(x[y], 0.95, None if w is None else w[y]) if y.any() else default.above
    return Scale(max(_LEAST_SPREAD, float(below)), max(_LEAST_SPREAD, float(above)))


def _quantile(values: np.ndarray, share: float, weights: np.ndarray | None) -> float:
    """The value that a share of the films lies under, between two films as `numpy.quantile` does it."""
    if weights is None:
        return float(np.quantile(values, share))
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weights[order])
    middle = (mass - weights[order][0]) / max(mass[-1] - weights[order][0], 1e-12)  # 0 at the first, 1 at the last
    return float(np.interp(share, middle, values[order]))


def logit(p: Any) -> Any:
    """``log(p / (1 - p))``, finite: 0 and 1 count as the nearest numbers that have one."""
    p = np.clip(np.asarray(p, float), 1e-300, 1 - 2**-53)
    return np.log(p) - np.log1p(-p)


def score_of(p: float, threshold: float, scale: Scale | None = None) -> float:
    """The score, 0 to 100, of a probability: at least 50 exactly where it reaches the threshold.

    Args:
        p, threshold: probabilities of the positive class, 0 to 1.
    """
    scale = scale or Scale()
    x = float(logit(p) - logit(threshold))
    z = x * _ANCHOR / (scale.above if x > 0 else scale.below)
    score = 100 / (1 + math.exp(-z)) if z >= 0 else 100 * math.exp(z) / (1 + math.exp(z))
    if p >= threshold:
        return max(score, AT_THRESHOLD)
    return min(score, math.nextafter(AT_THRESHOLD, 0))


def probability_of(score: float, threshold: float, scale: Scale | None = None) -> float:
    """The probability that has a score: the inverse of `score_of`.

    Raises:
        ValueError: a score that is not within 0 to 100.
    """
    if not 0 <= score <= 100:
        raise ValueError(f"a score lies between 0 and 100. Received: {score}")
    if score == AT_THRESHOLD:
        return float(threshold)
    scale = scale or Scale()
    z = float(logit(score / 100)) / _ANCHOR
    x = z * (scale.above if z > 0 else scale.below) + float(logit(threshold))
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def shown(score: float) -> float:
    """A score as results.csv has it, to one digit; one under 50 never shows as 50.

    Decisions are made on this number, so that a person who sorts or filters the table finds the same films.
    """
    rounded = round(float(score), 1)
    return 49.9 if score < AT_THRESHOLD <= rounded else rounded


def probability_at(cutoff: float, threshold: float, scale: Scale | None = None) -> float:
    """The lowest probability of films whose shown score reaches `cutoff`, to rounding."""
    if cutoff == AT_THRESHOLD or cutoff <= 0:
        return float(threshold) if cutoff else 0.0
    return probability_of(max(0.0, cutoff - 0.05), threshold, scale)
