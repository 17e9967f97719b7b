"""Which answers a film leaves possible: split-conformal prediction by class (Vovk 2012; Sadinle et al. 2019).

An answer is possible for a film unless fewer than a share `risk` of that class's calibration films were as unlike the
class as it is. Of new films of the same kind with the positive class, at most `risk` are then decided as negative, and
of those without it at most `risk` as positive. A film where both answers are possible, or neither, is unsure. The
screening question has two answers (the positive class, or any other), and its set is made for these two; a set of the
classes themselves says which kinds are possible. Asked of three classes at once, most films with another disease would
leave TB open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POSITIVE, NEGATIVE, UNSURE = "positive", "negative", "unsure"
RISK = 0.10
RISKS = (0.05, 0.06, 0.07, 0.08, 0.09, 0.10, 0.15, 0.20, 0.25)  # a step from 0.05 to 0.10 at once halves what is unsure
_MOST_UNSURE = 1 / 3


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
        has_mass = mass > 0
        return conformal_bound(values[has_mass], risk, mass[has_mass], otherwise=-widest)

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


def undecided(screens: Sequence[str]) -> float:
    """Share of the films that are unsure; NaN without films."""
    return float(np.mean([screen == UNSURE for screen in screens])) if len(screens) else float("nan")


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
