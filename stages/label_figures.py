"""The figures and pictures of a classify evaluation where a film may have several labels, from one row per film."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline.models.figures import metrics, plots
from cxr_pipeline.models.figures.metrics import Figure, bootstrap


def figures_of_labels(
    films: list[dict[str, Any]], classes: Sequence[str], thresholds: dict[str, float], out: Path
) -> dict[str, Any]:
    """All that `metrics.json` says of a classifier of several labels.

    Args:
        films: image, patient, source, status, and for judged films p_<label>, and true_<label> where it is known.
        classes: the labels. thresholds: of each, as in the stage's card.
        out: folder for the plots.

    Returns:
        Means over labels: `auc` and `average_precision` over those that have both answers, `precision` (0 where a label
        is never answered), `recall` and `f1` over those that some film has, `accuracy` over all. `per_class`: for each
        label AUROC, average precision, accuracy, sensitivity (which is its recall), specificity, precision, F1, ECE,
        prevalence and threshold. `confusion_matrices`, and `by_source`.
    """
    judged = [film for film in films if film["status"] == "ok"]
    out.mkdir(parents=True, exist_ok=True)
    result = {"classes": list(classes), "multi_label": True, **_pooled(judged, classes, thresholds)}
    sources = sorted({film["source"] for film in judged})
    result["by_source"] = {
        source: _pooled([film for film in judged if film["source"] == source], classes, thresholds)
        for source in sources
    }
    if judged:
        plots.per_label(result["per_class"], out / "labels.png")
        counts = result["confusion_matrices"]["counts"]
        plots.confusion_of_labels({name: np.array(counts[name]) for name in classes}, out / "confusion.png")
        plots.several_roc({name: _known(judged, name) for name in classes}, out / "roc.png")
    return {**result, "films": films}


def _known(films: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Truth (bool) and probability of one label, on the films where it is known."""
    films = [film for film in films if f"true_{name}" in film]
    return np.array([film[f"true_{name}"] == 1 for film in films], bool), np.array(
        [film[f"p_{name}"] for film in films]
    )


def _pooled(films: list[dict[str, Any]], classes: Sequence[str], thresholds: dict[str, float]) -> dict[str, Any]:
    patients = np.array([film["patient"] for film in films])
    truth = np.array([[film.get(f"true_{name}", -1) for name in classes] for film in films]).reshape(-1, len(classes))
    p = np.array([[film[f"p_{name}"] for name in classes] for film in films], float).reshape(-1, len(classes))
    limits = np.array([thresholds[name] for name in classes])

    def figure(k: int, statistic: Callable[[np.ndarray, np.ndarray], float]) -> Figure:
        where = np.flatnonzero(truth[:, k] >= 0)
        return bootstrap(lambda i: statistic(truth[where[i], k] == 1, p[where[i], k]), patients[where])

    def at_limit(k: int, statistic: Callable[[np.ndarray, np.ndarray, float], float]) -> Figure:
        return figure(k, lambda y, s: statistic(y, s, limits[k]))

    def mean(statistic: Callable[[np.ndarray, np.ndarray, float], float]) -> Figure:
        def over(i: np.ndarray) -> float:
            values = []
            for k in range(len(classes)):
                rows = i[truth[i, k] >= 0]
                values.append(statistic(truth[rows, k] == 1, p[rows, k], limits[k]) if len(rows) else np.nan)
            finite = [value for value in values if np.isfinite(value)]
            return float(np.mean(finite)) if finite else float("nan")

        return bootstrap(over, patients, repeats=500)

    per_class, counts = {}, {}
    for k, name in enumerate(classes):
        limit, known = limits[k], truth[:, k] >= 0
        per_class[name] = {
            "auc": figure(k, metrics.auroc),
            "average_precision": figure(k, metrics.average_precision),
            "accuracy": at_limit(k, _accuracy),
            "sensitivity": at_limit(k, metrics.sensitivity),
            "specificity": at_limit(k, metrics.specificity),
            "precision": at_limit(k, _precision),
            "f1": at_limit(k, _f1),
            "ece": metrics.bootstrap_ece(p[known, k], truth[known, k] == 1, patients[known]),
            "prevalence": figure(k, lambda y, s: float(y.mean()) if len(y) else float("nan")),
            "threshold": float(limit),
            "support": int((truth[:, k] == 1).sum()),
        }
        counts[name] = metrics.confusion_matrix(truth[known, k], p[known, k] >= limit, 2).tolist()
    return {
        "n": len(films),
        "auc": mean(lambda y, s, t: metrics.auroc(y, s)),
        "average_precision": mean(lambda y, s, t: metrics.average_precision(y, s) if not y.all() else float("nan")),
        "precision": mean(lambda y, s, t: float(np.nan_to_num(_precision(y, s, t))) if y.any() else float("nan")),
        "recall": mean(metrics.sensitivity),
        "f1": mean(lambda y, s, t: _f1(y, s, t) if y.any() else float("nan")),
        "accuracy": mean(_accuracy),
        "confusion_matrices": {"classes": ["absent", "present"], "counts": counts},
        "per_class": per_class,
    }


def _accuracy(y: np.ndarray, score: np.ndarray, threshold: float) -> float:
    return float(((score >= threshold) == y).mean()) if len(y) else float("nan")


def _precision(y: np.ndarray, score: np.ndarray, threshold: float) -> float:
    called = score >= threshold
    return float(y[called].mean()) if called.any() else float("nan")


def _f1(y: np.ndarray, score: np.ndarray, threshold: float) -> float:
    called = score >= threshold
    both = int(called.sum()) + int(y.sum())
    return 2 * int((called & y).sum()) / both if both else float("nan")
