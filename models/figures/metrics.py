"""Figures of merit, and the interval beside each.

Undefined figures (one class only, nothing to count) are NaN, never an exception. Masks are (H, W), any dtype,
non-zero inside. Binary classification takes `y` (N,) bool or 0/1 and `score` (N,) float, higher = more positive; a
film is called positive where ``score >= threshold``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % bootstrap interval and the number of films behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """``{"value", "ci95": [low, high], "n"}``; what is not finite becomes null."""
        value, low, high = (round(float(v), 6) if np.isfinite(v) else None for v in (self.value, self.low, self.high))
        return {"value": value, "ci95": [low, high], "n": self.n}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n={self.n})"


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[Any] | np.ndarray,
    *,
    repeats: int = 1000,
    seed: int = 0,
    centred: bool = False,
) -> Figure:
    """A statistic with its percentile interval, resampling patients and not films (Efron and Tibshirani 1993).

    Args:
        statistic: takes the chosen films' indices (M,) int and returns the figure.
        groups: (N,) the patient of each film.
        repeats: bootstrap samples; those where the statistic is undefined are left out.
        centred: shift the interval by the bootstrap's estimate of bias, the mean over samples less the figure itself
            (Efron and Tibshirani 1993, chapter 10). For a statistic that resampling moves one way, such as a mean of
            absolute gaps: its plain percentiles can lie wholly above the figure.
    """
    groups = np.asarray(groups)
    if len(groups) == 0:
        return Figure(np.nan, np.nan, np.nan, 0)
    _, codes = np.unique(groups, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    draw = np.random.default_rng(seed)
    values = np.array(
        [
            statistic(np.concatenate([members[i] for i in draw.integers(len(members), size=len(members))]))
            for _ in range(repeats)
        ]
    )
    value = float(statistic(np.arange(len(groups))))
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    if centred and len(values):
        bias = values.mean() - value
        low, high = low - bias, high - bias
    return Figure(value, float(low), float(high), len(groups))


def bootstrap_mean(
    values: np.ndarray, groups: Sequence[Any] | np.ndarray, *, repeats: int = 1000, seed: int = 0
) -> Figure:
    """The mean of `values` (N,), NaN left out, with its interval over patients."""
    values, groups = np.asarray(values, float), np.asarray(groups)
    keep = ~np.isnan(values)
    values, groups = values[keep], groups[keep]
    return bootstrap(lambda chosen: float(values[chosen].mean()), groups, repeats=repeats, seed=seed)


def wilson(hits: Any, n: Any) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a share (Wilson 1927): its lower and its upper end, in [0, 1].

    Args:
        hits: how often, a number or an array; n: of how many, more than 0.
    """
    hits, n, z = np.asarray(hits, float), np.asarray(n, float), 1.959964
    share = hits / n
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    widened = 1 + z**2 / n
    return np.maximum(0.0, (middle - half) / widened), np.minimum(1.0, (middle + half) / widened)


# --- masks -----------------------------------------------------------------------------------------------------------


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Twice the overlap over the sum of both areas, 0 to 1; 1 where both masks are empty."""
    a, b = np.asarray(a) > 0, np.asarray(b) > 0
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union, 0 to 1; 1 where both masks are empty."""
    a, b = np.asarray(a) > 0, np.asarray(b) > 0
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def hd95(a: np.ndarray, b: np.ndarray) -> float:
    """95th percentile of the distances between two masks' outlines, in pixels, both directions pooled.

    Distances are between pixel centres of the outlines (the masks' inner border). 0 where both masks are empty,
    infinite where one is.
    """
    a, b = ((np.asarray(m) > 0).astype(np.uint8) for m in (a, b))
    if not a.any() or not b.any():
        return 0.0 if a.any() == b.any() else float("inf")
    edges = [m - cv2.erode(m, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) for m in (a, b)]
    away = [cv2.distanceTransform(1 - edge, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for edge in edges]
    return float(np.percentile(np.concatenate([away[1][edges[0] > 0], away[0][edges[1] > 0]]), 95))


# --- two classes -----------------------------------------------------------------------------------------------------


def auroc(y: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive film scores above a negative one (ties count half).

    NaN where a score is NaN.
    """
    y, score = np.asarray(y, bool), np.asarray(score, float)
    positives, negatives = score[y], np.sort(score[~y])
    if not len(positives) or not len(negatives) or np.isnan(score).any():
        return float("nan")
    below, reached = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    return float((below.sum() + reached.sum()) / (2 * len(positives) * len(negatives)))


def average_precision(y: np.ndarray, score: np.ndarray) -> float:
    """Area under the precision-recall curve, as a step function; films with the same score make one step.

    NaN where a score is NaN.
    """
    # As scikit-learn has it, which looks at its arguments for a millisecond: the interval asks for it 1000 times.
    order = np.argsort(-np.asarray(score, float), kind="stable")
    y, score = np.asarray(y, bool)[order], np.asarray(score, float)[order]
    if not y.any() or np.isnan(score).any():
        return float("nan")
    last = np.append(np.flatnonzero(score[1:] != score[:-1]), len(score) - 1)  # of each score
    found = np.cumsum(y)[last]
    return float((np.diff(found, prepend=0) * (found / (last + 1))).sum() / found[-1])


def sensitivity(y: np.ndarray, score: np.ndarray, threshold: float) -> float:
    """Share of the positive films that are called positive."""
    y = np.asarray(y, bool)
    return float((np.asarray(score)[y] >= threshold).mean()) if y.any() else float("nan")


def specificity(y: np.ndarray, score: np.ndarray, threshold: float) -> float:
    """Share of the negative films that are called negative."""
    y = np.asarray(y, bool)
    return float((np.asarray(score)[~y] < threshold).mean()) if (~y).any() else float("nan")


def threshold_for_sensitivity(y: np.ndarray, score: np.ndarray, target: float) -> float:
    """The highest threshold at which at least `target` of the positive films are called positive; NaN without any."""
    positives = np.sort(np.asarray(score, float)[np.asarray(y, bool)])
    if not len(positives):
        return float("nan")
    return float(positives[len(positives) - int(np.ceil(target * len(positives) - 1e-9))])


def specificity_at_sensitivity(y: np.ndarray, score: np.ndarray, target: float = 0.90) -> float:
    """Specificity at the highest threshold that reaches the target sensitivity on these very films."""
    threshold = threshold_for_sensitivity(y, score, target)
    return float("nan") if np.isnan(threshold) else specificity(y, score, threshold)


# --- several classes -------------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) float64 of logits (N, K)."""
    logits = np.asarray(logits, float)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the log-loss of ``softmax(logits / t)`` (Guo et al. 2017), 0.05 to 20.

    Args:
        logits: (N, K). labels: (N,) int class numbers.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = np.asarray(logits, float), np.asarray(labels, int)

    def log_loss(exponent: float) -> float:
        chosen = softmax(logits / np.exp(exponent))[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins, weighted by count.

    Args:
        confidence: (N,) in [0, 1], of the predicted class, or of the positive one.
        correct: (N,) bool, whether that class is true.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if not len(confidence):
        return float("nan")
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(which, confidence - correct, bins))
    return float(gaps.sum() / len(confidence))


def bootstrap_ece(
    confidence: np.ndarray, correct: np.ndarray, groups: Sequence[Any] | np.ndarray, *, seed: int = 0
) -> Figure:
    """The `ece` with its interval over patients, centred and cut at 0; see `bootstrap`.

    A sample with replacement holds some films twice and others never, so its bins stray further from their mean than
    those of the films themselves: its ECE is higher by nature.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    figure = bootstrap(lambda i: ece(confidence[i], correct[i]), groups, seed=seed, centred=True)
    return replace(figure, low=float(np.maximum(figure.low, 0)))


def confusion_matrix(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int counts: rows are the truth, columns the answer."""
    matrix = np.zeros((classes, classes), int)
    np.add.at(matrix, (np.asarray(truth, int), np.asarray(guess, int)), 1)
    return matrix


def accuracy(truth: np.ndarray, guess: np.ndarray) -> float:
    """Share of the films with the right answer."""
    return float((np.asarray(truth) == np.asarray(guess)).mean()) if len(truth) else float("nan")


def balanced_accuracy(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean recall over the classes that occur."""
    truth, guess = np.asarray(truth), np.asarray(guess)
    recalls = [(guess[truth == c] == c).mean() for c in np.unique(truth)]
    return float(np.mean(recalls)) if recalls else float("nan")


def per_class(truth: np.ndarray, guess: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Accuracy (one class against the rest), precision, recall, F1 and support of each class.

    Precision is NaN where the class is never answered, recall where it never occurs.
    """
    matrix = confusion_matrix(truth, guess, len(names))
    total = int(matrix.sum())
    out = {}
    for number, name in enumerate(names):
        hit, support, answered = matrix[number, number], matrix[number].sum(), matrix[:, number].sum()
        precision = hit / answered if answered else float("nan")
        recall = hit / support if support else float("nan")
        both = support + answered
        out[name] = {
            "accuracy": float(1 - (both - 2 * hit) / total) if total else float("nan"),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(2 * hit / both) if both else float("nan"),
            "support": int(support),
        }
    return out


def macro(truth: np.ndarray, guess: np.ndarray, classes: int, name: str) -> float:
    """The mean of a figure of `per_class` ("precision", "recall" or "f1") over the classes that occur in `truth`.

    A class that occurs and is never answered has no precision, and counts as 0, as scikit-learn has it.
    """
    rows = [
        row for row in per_class(truth, guess, [str(number) for number in range(classes)]).values() if row["support"]
    ]
    return float(np.mean(np.nan_to_num([row[name] for row in rows]))) if rows else float("nan")
