"""From calibrated probabilities to what a person reads: label, score, screening answer, and what stays open.

Two answers are kept apart. The *label* is the likeliest class. The *screen* is a decision at an operating threshold
that was chosen for its sensitivity: positive, negative, or unsure. Both come from the same probabilities, and may
differ: at a threshold of 0.14 a film with a probability of TB of 0.30 is most likely normal, and should be looked at
all the same.

The score
    Odds are compared with the odds at the threshold: ``logit(score / 100) = k (logit(p) - logit(threshold))``. So a
    score is monotone in the probability, and 50 *is* the threshold. Under the threshold, k is such that the score is 5
    at ``below`` (in logits) from it; over it, such that it is 95 at ``above`` from it. Both spreads stand in the card.
    They are quantiles of fixed reference films: of the validation films, one in twenty without the positive class has a
    score of at most 5, and one in twenty with it has at least 95. New weights have other logits and the same anchors:
    5, 50 and 95 keep their meaning, whatever a network does to its probabilities.

The sets
    Split-conformal prediction by class (Vovk 2012; Sadinle et al. 2019). An answer is possible for a film unless fewer
    than a share `risk` of that class's calibration films were as unlike the class as it is. Of new films of the same
    kind with the positive class, at most `risk` are then decided as negative, and of those without it at most `risk` as
    positive. A film where both answers are possible, or neither, is unsure. The screening question has two answers
    (the positive class, or any other), and its set is made for these two; a set of the classes themselves says which
    kinds are possible. Asked of three classes at once, most films with another disease would leave TB open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POSITIVE, NEGATIVE, UNSURE = "positive", "negative", "unsure"
DOUBTS = ("unsure: ", "abnormal, kind unsure", "uncertain: ")  # how warnings begin that a decision makes
AT_THRESHOLD = 50.0  # the score of a film at the operating threshold
RISK = 0.10
RISKS = (0.05, 0.10, 0.15, 0.20, 0.25)
_MOST_UNSURE = 1 / 3
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


@dataclass(frozen=True)
class Sets:
    """Which answers a film leaves possible; see the module's text.

    Attributes:
        risk: share of the films of a class whose own answer may be missing from their set.
        positive: the positive class is possible from this probability of it on.
        negative: another class is possible up to this probability of the positive one.
        classes: a class is possible from this probability of it on; a class that is not here is always possible.
    """

    risk: float
    positive: float
    negative: float
    classes: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, card: Mapping[str, Any] | None) -> Sets | None:
        """The sets of a card's entry ``sets``; None where it has none."""
        if not card:
            return None
        classes = {str(name): float(value) for name, value in card["classes"].items()}
        return cls(float(card["risk"]), float(card["positive"]), float(card["negative"]), classes)

    def to_json(self) -> dict[str, Any]:
        """``{"risk", "positive", "negative", "classes"}``, to six digits, each a little wider for it."""
        return {
            "risk": self.risk,
            "positive": _down(self.positive),
            "negative": round(1 - _down(1 - self.negative), 6),
            "classes": {name: _down(value) for name, value in self.classes.items()},
        }

    def answer(self, p: float) -> str:
        """What the set of the screening question says of a probability of the positive class."""
        may_be, may_not = p >= self.positive, p <= self.negative
        return UNSURE if may_be == may_not else POSITIVE if may_be else NEGATIVE

    def kinds(self, probabilities: Mapping[str, float]) -> list[str]:
        """The classes that are possible, in their order."""
        return [name for name, p in probabilities.items() if p >= self.classes.get(name, 0.0)]


def _down(value: float) -> float:
    return math.floor(value * 1e6) / 1e6


def conformal_bound(
    own: np.ndarray, risk: float, weights: np.ndarray | None = None, *, otherwise: float = 0.0
) -> float:
    """The number that a class's own films fall under with a probability of at most `risk`.

    Without weights it is the ``floor(risk (n + 1))``-th smallest of `own`: exact for a new film exchangeable with them
    (Vovk 2012). With weights, films count as parts of one, for films whose class is only probable.

    Args:
        own: (n,) numbers of films of the class, higher = more like the class.
        risk: 0 to 1. weights: (n,), at least 0, or None.
        otherwise: what is returned where the films are too few to tell, such as the lowest number there is.
    """
    own = np.asarray(own, float)
    order = np.argsort(own, kind="stable")
    mass = np.ones(len(own)) if weights is None else np.asarray(weights, float)[order]
    reached = np.cumsum(mass)
    allowed = risk * ((reached[-1] if len(reached) else 0) + 1)
    rank = int(np.searchsorted(reached, allowed + 1e-9, side="right"))  # films under the bound, with their mass
    return float(own[order][rank - 1]) if rank else otherwise


def fit_sets(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    positive: str,
    risk: float = RISK,
    weights: np.ndarray | None = None,
) -> Sets:
    """Sets from calibration films, which must be others than those that the network learned from.

    Args:
        probabilities: (N, classes). labels: (N,) int class numbers, or (N, classes) shares of each class in a film
            where labels are only probable.
        weights: (N,), such as what gives each class its share of the films to come; None counts films alike.
    """
    p = np.asarray(probabilities, float)
    labels = np.asarray(labels)
    share = np.eye(len(classes))[labels.astype(int)] if labels.ndim == 1 else labels.astype(float)
    if weights is not None:
        share = share * np.asarray(weights, float)[:, None]
    k = classes.index(positive)

    def bound(values: np.ndarray, mass: np.ndarray, widest: float = 0.0) -> float:
        there = mass > 0
        return conformal_bound(values[there], risk, mass[there], otherwise=-widest)

    return Sets(
        risk,
        bound(p[:, k], share[:, k]),
        -bound(-p[:, k], share.sum(axis=1) - share[:, k], 1.0),
        {name: bound(p[:, c], share[:, c]) for c, name in enumerate(classes)},
    )


def useful_sets(
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    positive: str,
    weights: np.ndarray | None = None,
) -> Sets:
    """The sets of the smallest of `RISKS` that leave at most a third of the calibration films undecided, else the last.

    A risk that leaves most films to a reader decides nothing: what a network cannot tell apart is paid for in risk.
    """
    k = list(classes).index(positive)
    for risk in RISKS:
        sets = fit_sets(probabilities, labels, classes, positive, risk, weights)
        open_ = [sets.answer(p) == UNSURE for p in np.asarray(probabilities)[:, k]]
        if open_ and np.average(open_, weights=weights) <= _MOST_UNSURE:
            break
    return sets


@dataclass(frozen=True)
class Answer:
    """What is said of one film. `score` 0 to 100; `abnormal` 0 to 1, None without a normal class."""

    label: str
    screen: str
    score: float
    abnormal: float | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """Everything that decides, from probabilities on: of weights or a site, with a person's own cut-off.

    Attributes:
        threshold: probability of the positive class that has the score 50.
        cutoff: score from which a film is positive, to one digit.
        sets: None never says unsure.
    """

    positive: str
    threshold: float
    normal: str | None = None
    scale: Scale = field(default_factory=Scale)
    sets: Sets | None = None
    cutoff: float = AT_THRESHOLD

    @classmethod
    def of(cls, decisions: Mapping[str, Any], cutoff: float | None = None) -> Rules:
        """The rules of a card's ``decisions``. Cards of before, without ``score`` and ``sets``, decide by threshold."""
        return cls(
            decisions["positive"],
            float(decisions["threshold"]),
            decisions.get("normal"),
            Scale.of(decisions.get("score")),
            Sets.of(decisions.get("sets")),
            float(decisions.get("cutoff", AT_THRESHOLD) if cutoff is None else cutoff),
        )

    def score(self, probabilities: Mapping[str, float]) -> float:
        """The score of a film, 0 to 100."""
        return score_of(probabilities[self.positive], self.threshold, self.scale)

    def screen(self, probabilities: Mapping[str, float]) -> str:
        """Positive, negative or unsure."""
        p = probabilities[self.positive]
        if self.sets is not None and self.sets.answer(p) == UNSURE:
            return UNSURE
        return POSITIVE if shown(self.score(probabilities)) >= self.cutoff else NEGATIVE

    def decide(self, probabilities: Mapping[str, float]) -> Answer:
        """Label, screen, score and doubts of a film, from its calibrated probability of each class."""
        label = max(probabilities, key=probabilities.__getitem__)
        screen, score = self.screen(probabilities), self.score(probabilities)
        abnormal = 1 - probabilities[self.normal] if self.normal in probabilities else None
        return Answer(label, screen, score, abnormal, tuple(self._doubts(probabilities, screen, shown(score))))

    def _doubts(self, probabilities: Mapping[str, float], screen: str, score: float) -> list[str]:
        if self.sets is None:
            return []
        out = []
        if screen == UNSURE:
            out.append(
                f"unsure: with a score of {score:.1f}, films with and without {self.positive} are both common, or both "
                f"rare, among those that the weights were calibrated on (risk {self.sets.risk:g}). Read the film"
            )
        kinds = self.sets.kinds(probabilities)
        if self.normal is not None and self.normal not in kinds and len(kinds) > 1 and self.positive in kinds:
            out.append(f"abnormal, kind unsure: it may be {' or '.join(kinds)}")
        return out


def shares_by_em(
    probabilities: np.ndarray, prior: np.ndarray, *, steps: int = 1000, tolerance: float = 1e-8
) -> np.ndarray:
    """The share of each class among films without labels, by EM (Saerens et al. 2002).

    It assumes that films of a class look the same here as where the probabilities were calibrated, and that only the
    shares of the classes differ.

    Args:
        probabilities: (N, K) calibrated for films with the shares `prior` (K,), which sum to 1.

    Returns:
        (K,) shares that sum to 1.
    """
    p = np.asarray(probabilities, float)
    prior = np.asarray(prior, float)
    shares = prior.copy()
    for _ in range(steps):
        turned = p * (shares / prior)
        turned /= turned.sum(axis=1, keepdims=True)
        new = turned.mean(axis=0)
        done = np.abs(new - shares).max() < tolerance
        shares = new
        if done:
            break
    return shares


def shares_by_moments(means: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The share of each class among films without labels, from means of probabilities (Lipton et al. 2018).

    Args:
        means: (K, K): row c is the mean probability vector of films of class c, where labels are known.
        mean: (K,) mean probability vector of the films without labels.

    Returns:
        (K,) shares of at least 0 that sum to 1 whose mixture of `means` comes nearest to `mean`.
    """
    from scipy.optimize import nnls

    means, mean = np.asarray(means, float), np.asarray(mean, float)
    heavy = 1e3  # the equation that shares sum to 1, held far more tightly than the others
    shares, _ = nnls(np.vstack([means.T, heavy * np.ones(len(means))]), np.append(mean, heavy))
    return shares / shares.sum()


def probabilities_of(
    logits: np.ndarray, temperature: float, offsets: np.ndarray, *, several: bool = False
) -> np.ndarray:
    """Calibrated probabilities (..., K) of logits (..., K): ``softmax(logits / temperature + offsets)``.

    Args:
        offsets: (K,). several: a film may have several classes, so each has a probability of its own.
    """
    scaled = np.asarray(logits, float) / temperature + np.asarray(offsets, float)
    if several:
        return 1 / (1 + np.exp(-scaled))
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def reweighted(probabilities: np.ndarray, prior: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) that hold for films with the class shares `shares` in place of `prior` (K,)."""
    turned = np.asarray(probabilities, float) * (np.asarray(shares, float) / np.asarray(prior, float))
    return turned / turned.sum(axis=-1, keepdims=True)


def undecided(screens: Sequence[str]) -> float:
    """Share of the films that are unsure; NaN without films."""
    return float(np.mean([one == UNSURE for one in screens])) if len(screens) else float("nan")


def decided_error(screens: Sequence[str], is_positive: np.ndarray) -> float:
    """Share of wrong answers among the films that are not unsure; NaN where all are."""
    screens, y = np.asarray(screens), np.asarray(is_positive, bool)
    decided = screens != UNSURE
    return float(((screens == POSITIVE) != y)[decided].mean()) if decided.any() else float("nan")


def coverage(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], sets: Sets) -> dict[str, float]:
    """By class, the share of its films whose set of kinds holds it; NaN for a class without films.

    Args:
        probabilities: (N, classes). labels: (N,) int.
    """
    p, labels = np.asarray(probabilities, float), np.asarray(labels, int)
    return {
        name: float((p[labels == c, c] >= sets.classes.get(name, 0.0)).mean()) if (labels == c).any() else float("nan")
        for c, name in enumerate(classes)
    }
