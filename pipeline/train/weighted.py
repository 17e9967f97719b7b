"""Figures and thresholds of films that stand for others: each film counts as much as its weight.

The weights come from a manifest's column `weight`, such as `pipeline read` leaves: the inverse of each film's chance to
be in the sample. Without them, or where all are alike, every function is the plain one of `models.figures.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.models.figures import metrics

COLUMN = "weight"

Weights = np.ndarray | None


class WeightError(CxrError, ValueError):
    """A weight that is no positive number; says which."""


def weights_of(texts: Sequence[Any]) -> Weights:
    """The weights (N,) of films from the cells of a manifest's column; None where there are none, or all are alike.

    They are scaled to sum to the effective number of films, ``(sum w)^2 / sum w^2`` (Kish 1965): unequal weights make
    an estimate as unsure as that many equal ones.

    Raises:
        WeightError: a cell is no positive number, or only some films have one.
    """
    texts = [str(text).strip() for text in texts]
    if not any(texts):
        return None
    out = np.empty(len(texts))
    for place, text in enumerate(texts):
        try:
            out[place] = float(text)
        except ValueError:
            out[place] = np.nan
        if not (np.isfinite(out[place]) and out[place] > 0):
            raise WeightError(
                f"a weight is a number above 0, and every labelled film has one. Received: {text!r}. Mend the column "
                f"{COLUMN!r}, or take it out"
            )
    if np.ptp(out) <= 1e-9 * out.max():
        return None
    return out * (out.sum() / (out**2).sum())


def mean(values: np.ndarray, weights: Weights) -> float:
    """The mean of values (N,); NaN without any."""
    if not len(values):
        return float("nan")
    return float(np.average(np.asarray(values, float), weights=weights))


def sensitivity(y: np.ndarray, called: np.ndarray, weights: Weights) -> float:
    """Share of the positive films, y (N,) bool, that are called positive."""
    y = np.asarray(y, bool)
    return mean(np.asarray(called)[y], None if weights is None else weights[y])


def specificity(y: np.ndarray, called: np.ndarray, weights: Weights) -> float:
    """Share of the negative films that are not called positive."""
    return sensitivity(~np.asarray(y, bool), ~np.asarray(called, bool), weights)


def threshold_for_sensitivity(y: np.ndarray, score: np.ndarray, target: float, weights: Weights) -> float:
    """The highest threshold at which at least `target` of the positive films' weight is called; NaN without any."""
    if weights is None:
        return metrics.threshold_for_sensitivity(y, score, target)
    y = np.asarray(y, bool)
    own, mass = np.asarray(score, float)[y], np.asarray(weights, float)[y]
    if not len(own):
        return float("nan")
    order = np.argsort(-own, kind="stable")
    reached = np.cumsum(mass[order]) / mass.sum()
    return float(own[order][min(int(np.searchsorted(reached, target - 1e-9)), len(own) - 1)])


def auroc(y: np.ndarray, score: np.ndarray, weights: Weights) -> float:
    """How often a positive film scores above a negative one, pairs weighted by both; ties count half."""
    if weights is None:
        return metrics.auroc(y, score)
    y, score = np.asarray(y, bool), np.asarray(score, float)
    if not 0 < y.sum() < len(y):
        return float("nan")
    levels, place = np.unique(score, return_inverse=True)
    negatives = np.bincount(place[~y], weights[~y], len(levels))
    below = np.cumsum(negatives) - negatives / 2
    return float((weights[y] * below[place[y]]).sum() / (weights[y].sum() * negatives.sum()))


def ece(confidence: np.ndarray, correct: np.ndarray, weights: Weights, bins: int = 15) -> float:
    """Expected calibration error, see `metrics.ece`."""
    if weights is None:
        return metrics.ece(confidence, correct, bins)
    confidence = np.asarray(confidence, float)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(which, weights * (confidence - np.asarray(correct, float)), bins))
    return float(gaps.sum() / weights.sum())
