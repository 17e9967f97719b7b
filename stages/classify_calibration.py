"""From a trained network's logits to probabilities that mean something, and the thresholds it operates at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr_pipeline.stages.scores import fit_scale
from cxr_pipeline.stages.sets import useful_sets
from cxr_pipeline.stages.uncertain import threshold_interval

log = logging.getLogger("cxr.classify")


NEVER = 2.0  # a label's threshold that no probability reaches


def rounded_down(threshold: float) -> float:
    """A threshold with six digits, a millionth or more below what it was.

    Films at the threshold stay on their side of it, whatever runtime judges them.
    """
    if not np.isfinite(threshold):
        return float(threshold)
    if threshold <= 1e-300:  # where digits end
        return 0.0
    unit = 10.0 ** (np.floor(np.log10(threshold)) - 5)
    return float(f"{np.floor(threshold * (1 - 1e-6) / unit) * unit:.6g}")


def mix_offsets(classes: Sequence[str], mix: dict[str, float] | None) -> dict[str, float]:
    """What to add to each class's logit so that probabilities hold for a mix of classes in place of an even one."""
    shares = np.array([mix[name] if mix else 1.0 for name in classes], float)
    return {
        name: round(float(v), 4) for name, v in zip(classes, np.log(shares / shares.sum() * len(shares)), strict=True)
    }


def weight_offsets(classes: Sequence[str], weights: np.ndarray) -> dict[str, float]:
    """What to add to each label's logit to undo the weights that it was trained with, (classes, 2).

    Weights that make a label's two answers contribute equally train a probability for a film of which as many have the
    label as not; taking their ratio out gives that for the films as they come.
    """
    ratio = np.maximum(weights[:, 1], 1e-6) / np.maximum(weights[:, 0], 1e-6)
    return {name: round(float(v), 4) for name, v in zip(classes, np.log(ratio), strict=True)}


def one_class(
    logits: np.ndarray,
    labels: np.ndarray,
    offsets: np.ndarray,
    classes: Sequence[str],
    positive: int,
    target_sensitivity: float,
    patients: Sequence[str],
) -> dict[str, Any]:
    """Temperature, operating threshold for the target sensitivity with its 95 % interval, scale and sets, one class a
    film; see `stages.decisions`.

    Args:
        logits: (N, classes). labels: (N,) int class numbers. offsets: (classes,), added to the divided logits.
        positive: number of the class to screen for. patients: N names.

    Raises:
        TrainingError: no film of the positive class, or none without it.
    """
    from cxr_pipeline.models.figures.metrics import fit_temperature, softmax, threshold_for_sensitivity
    from cxr_pipeline.models.training.fit import TrainingError

    count = int((labels == positive).sum())
    if not 0 < count < len(labels):
        raise TrainingError(
            f"{count} of {len(labels)} films of val that could be judged have the positive class: the operating "
            "threshold needs films with it, and films without. Put more films into val"
        )
    temperature = round(float(fit_temperature(logits, labels)), 4)
    p = softmax(logits / temperature + offsets)
    scores = p[:, positive]
    threshold = rounded_down(threshold_for_sensitivity(labels == positive, scores, target_sensitivity))
    log.info(
        "temperature %.3f, threshold %.3f at sensitivity %.2f on %d val films",
        temperature,
        threshold,
        target_sensitivity,
        len(labels),
    )
    interval = threshold_interval(labels == positive, scores, target_sensitivity, patients)
    decided = {"temperature": temperature, "threshold": threshold, "threshold_ci95": interval}
    decided["score"] = fit_scale(scores, labels == positive, threshold).to_json()
    decided["sets"] = useful_sets(p, labels, classes, classes[positive]).to_json()
    return decided


def several_labels(
    logits: np.ndarray, targets: np.ndarray, offsets: np.ndarray, classes: Sequence[str], learned: np.ndarray
) -> dict[str, float | dict[str, float]]:
    """One temperature for all labels, and for each the threshold of the highest F1, on films with several labels.

    A label that no film, or every film, has cannot be fitted and gets 0.5; one that was not learned is never given.

    Args:
        logits, targets: (N, classes); targets are 1, 0, or -1 where unknown.
        learned: (classes,) bool, whether the training had films with the label, and films without.
    """
    from scipy.optimize import minimize_scalar

    known, present = targets >= 0, targets == 1

    def log_loss(exponent: float) -> float:
        z = logits / np.exp(exponent) + offsets
        return float((np.logaddexp(0, z) - present * z)[known].mean()) if known.any() else 0.0

    found = minimize_scalar(log_loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    temperature = round(float(np.exp(found.x)), 4)
    scores = 1 / (1 + np.exp(-(logits / temperature + offsets)))
    thresholds = dict.fromkeys(classes, NEVER)
    for k, name in enumerate(classes):
        if learned[k]:
            thresholds[name] = float(f"{best_f1_threshold(present[known[:, k], k], scores[known[:, k], k]):.9g}")
    if not all(learned):
        names = ", ".join(name for name, is_learned in zip(classes, learned, strict=True) if not is_learned)
        log.warning("train has no films with, or none without: %s. These labels are never given", names)
    log.info("temperature %.3f, thresholds %s on %d val films", temperature, thresholds, len(targets))
    return {"temperature": temperature, "threshold": 0.5, "thresholds": thresholds}


def best_f1_threshold(y: np.ndarray, score: np.ndarray) -> float:
    """The threshold with the highest F1, between the scores of two films; 0.5 where `y` has one value only."""
    if y.all() or not y.any():
        return 0.5
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(y[order])
    f1 = 2 * hits / (np.arange(1, len(y) + 1) + y.sum())
    f1[:-1][np.diff(score[order]) == 0] = -1  # no threshold lies between equal scores
    best = int(f1.argmax())
    below = score[order][best + 1] if best + 1 < len(y) else 0.0
    return float((score[order][best] + below) / 2)
