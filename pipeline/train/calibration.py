"""A site's own calibration: temperature, class offsets and operating threshold from its labelled films.

The file that `pipeline calibrate` leaves and `pipeline run --site` takes is YAML::

    site: Hospital A
    weights: {segment: 0123456789abcdef, classify: ...}    fingerprints; other weights refuse the file
    temperature: 1.31
    offsets: {TB: 0.42, NTB: -1.7, NORM: 0.0}              added to the logits divided by the temperature
    threshold: 0.27                                        on the calibrated probability of the positive class: score 50
    score: {below: 2.1, above: 3.0}                        from it, in logits, to the scores 5 and 95
    sets: {risk: 0.1, positive: 0.2, ...}                  which answers a film leaves possible, see stages.sets
    target_sensitivity: 0.9
    films: {n: 120, TB: 55, NORM: 65}
    figures: {...}                                         by cross-validation, with intervals
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cxr_pipeline import stages
from cxr_pipeline.data.files import write_text
from cxr_pipeline.data.manifest import Manifest, read_manifest
from cxr_pipeline.models.figures import metrics
from cxr_pipeline.models.figures.metrics import bootstrap
from cxr_pipeline.stages.base import Stage
from cxr_pipeline.stages.classify import Classify
from cxr_pipeline.stages.classify_calibration import rounded_down
from cxr_pipeline.stages.films import stream
from cxr_pipeline.stages.scores import fit_scale
from cxr_pipeline.stages.sets import useful_sets
from cxr_pipeline.train import weighted
from cxr_pipeline.train.evaluation import labels_of
from cxr_pipeline.train.site import CalibrationError, apply_site, read_site
from cxr_pipeline.train.weighted import COLUMN, Weights, weights_of

__all__ = ["CalibrationError", "Fit", "apply_site", "calibrate", "fit", "labelled_logits", "read_site"]

log = logging.getLogger("cxr.calibrate")

LEAST = 10  # films with, and without, the positive class: under it, a threshold is a guess
MANY = 100  # films under which a warning says how little they can tell
_FOLDS = 5
_SPREAD = 2.0  # prior standard deviation of an offset: a class that the site's films lack is not ruled out


@dataclass(frozen=True)
class Fit:
    """What is fitted: probabilities are ``softmax(logits / temperature + offsets)``."""

    temperature: float
    offsets: np.ndarray  # (classes,)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(N, classes) of logits (N, classes)."""
        return metrics.softmax(logits / self.temperature + self.offsets)


def fit(logits: np.ndarray, labels: np.ndarray, weights: Weights = None) -> Fit:
    """A further temperature (Guo et al. 2017) and an offset a class, by penalised maximum likelihood.

    A temperature alone cannot follow a site's own mix of classes, and so leaves probabilities off by as much as that
    mix differs from the training's. The offsets are held by a normal prior around 0, the temperature's logarithm around
    0 too: with few films the fit stays near the weights' own answer. A class without films keeps its offset: that
    nobody labelled one here does not say that there are none.

    Args:
        logits: (N, classes), as the weights would turn them into probabilities. labels: (N,) int class numbers.
        weights: (N,) how many films each stands for, see `train.weighted`; None counts them alike.
    """
    from scipy.optimize import minimize

    logits, labels = np.asarray(logits, float), np.asarray(labels, int)
    rows, present = np.arange(len(labels)), np.unique(labels)
    mass = np.ones(len(labels)) if weights is None else np.asarray(weights, float)

    def offsets(x: np.ndarray) -> np.ndarray:
        out = np.zeros(logits.shape[1])
        out[present] = x[1:] - (x[1:].mean() if len(present) else 0)
        return out

    def loss(x: np.ndarray) -> float:
        chosen = metrics.softmax(logits / np.exp(x[0]) + offsets(x))[rows, labels]
        return float(
            -(mass * np.log(np.maximum(chosen, 1e-12))).sum() + x[0] ** 2 / 2 + (x[1:] ** 2).sum() / (2 * _SPREAD**2)
        )

    found = minimize(loss, np.zeros(1 + len(present)), method="L-BFGS-B", bounds=[(-3, 3)] + [(-8, 8)] * len(present))
    return Fit(float(np.exp(found.x[0])), offsets(found.x))


def calibrate(
    data: Path,
    out: Path,
    *,
    target_sensitivity: float = 0.90,
    site: str | None = None,
    split: str | None = None,
    source: str | None = None,
    weights: str = "tb",
    runtime: str = "onnx",
) -> dict[str, Any]:
    """Fit on a site's labelled films and write the site file.

    Args:
        data: a manifest, or a class-per-folder tree. With a column `weight`, such as `pipeline read` leaves, each film
            counts as much as its weight says.
        out: the file to write.
        split, source: of these films only; None takes all.

    Returns:
        What the file holds.

    Raises:
        CalibrationError: fewer than 10 films with, or without, the positive class.
        ManifestError: the manifest has faults.
        WeightError: a film's weight is no positive number.
        WeightsError: the weights cannot be loaded.
    """
    chain = stages.load_chain(weights, "classify", runtime)
    classify = classifier_of(chain)
    positive_class = classify.rules.positive
    logits, labels, patients, mass = _labelled(data, chain, split=split, source=source)
    raw = logits
    # From here on as the weights answer, which the fit then stays near where films are few.
    logits = logits / classify.temperature + classify.offsets
    positive = classify.classes.index(positive_class)
    count = int((labels == positive).sum()) if len(labels) else 0
    if count < LEAST or len(labels) - count < LEAST:
        raise CalibrationError(
            f"{count} films with {positive_class} and {len(labels) - count} without could be judged; at least "
            f"{LEAST} of each are needed, and {MANY} together for an interval worth having"
        )
    lacking = [name for c, name in enumerate(classify.classes) if c not in labels]
    if lacking:
        log.warning("No film is labelled %s: its offset stays as the weights have it", " or ".join(lacking))
    whole = fit(logits, labels, mass)
    temperature = round(classify.temperature * whole.temperature, 4)
    offsets = [round(float(v), 4) for v in classify.offsets / whole.temperature + whole.offsets]
    # Of the numbers as they are stored: the threshold is between films that they judge.
    scores = metrics.softmax(raw / temperature + offsets)[:, positive]
    is_positive = labels == positive
    threshold = weighted.threshold_for_sensitivity(is_positive, scores, target_sensitivity, mass)
    spread = bootstrap(
        lambda i: weighted.threshold_for_sensitivity(is_positive[i], scores[i], target_sensitivity, _of(mass, i)),
        patients,
    )
    held, unseen = _cross_validated(logits, labels, patients, positive, target_sensitivity, mass)
    seen = ~np.isnan(unseen).any(axis=1)
    sets = useful_sets(unseen[seen], labels[seen], classify.classes, positive_class, _of(mass, seen))
    counts = Counter(classify.classes[label] for label in labels)
    facts = {
        "site": site or out.stem,
        "weights": {stage.name: stage.fingerprint for stage in chain},
        "temperature": temperature,
        "offsets": dict(zip(classify.classes, offsets, strict=True)),
        "threshold": rounded_down(float(threshold)),
        "threshold_ci95": [round(spread.low, 4), round(spread.high, 4)],
        "target_sensitivity": target_sensitivity,
        "score": fit_scale(scores, is_positive, threshold, mass).to_json(),
        "sets": sets.to_json(),
        "films": {"n": len(labels), **{name: counts[name] for name in classify.classes if counts[name]}},
        **({} if mass is None else {"weighted": {"effective_films": round(float(mass.sum()), 1)}}),
        "figures": {name: figure.to_json() for name, figure in held.items()},
        "date": date.today().isoformat(),
    }
    write_text(out, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    return facts


def classifier_of(chain: Sequence[Stage]) -> Classify:
    """The classifier at the end of a chain, which a site can be fitted to.

    Raises:
        CalibrationError: there is none, or it gives a film several labels.
    """
    last = chain[-1]
    if not isinstance(last, Classify):
        raise CalibrationError(f"a site is fitted to the stage classify, and these weights end with {last.name}")
    if last.multi_label:
        raise CalibrationError("these weights give a film several labels; a site can be fitted to weights of one class")
    return last


def labelled_logits(
    data: Path, chain: Sequence[Stage], *, split: str | None = None, source: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (N, classes), labels (N,) and patients (N,) of a manifest's films with a class that could be judged.

    Raises:
        CalibrationError: the weights give a film several labels.
        ManifestError: the manifest has faults.
    """
    return _labelled(data, chain, split=split, source=source)[:3]


def _of(weights: Weights, chosen: np.ndarray) -> Weights:
    return None if weights is None else weights[chosen]


def _labelled(
    data: Path, chain: Sequence[Stage], *, split: str | None = None, source: str | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Weights]:
    """See `labelled_logits`; and how many films each stands for, see `train.weighted`."""
    classify = classifier_of(chain)
    manifest = read_manifest(data, classes=labels_of([classify])).relabelled(classify.class_of)
    chosen = manifest.select(split=split, source=source, labels=classify.classes)
    weights_of(list(chosen.table.get(COLUMN, ())))  # its faults are found sooner than films are judged
    masses: list[str] = []
    return *_judge(chosen, chain, masses), weights_of(masses)


def _judge(
    data: Manifest, chain: Sequence[Stage], masses: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (N, classes), labels (N,) and patients (N,) of the films that the chain could judge.

    Args:
        masses: takes the cell of the column `weight` of each.
    """
    classes = chain[-1].classes
    logits, labels, patients = [], [], []
    for row, record in stream(data, chain, description="calibrate"):
        if record.ok:
            logits.append(record.extra["logits"])
            labels.append(classes.index(row["label"]))
            patients.append(row["patient"])
            if masses is not None:
                masses.append(str(row.get(COLUMN, "")))
    return np.array(logits, float).reshape(-1, len(classes)), np.array(labels, int), np.array(patients)


def _cross_validated(
    logits: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    positive: int,
    target: float,
    weights: Weights = None,
) -> tuple[dict[str, metrics.Figure], np.ndarray]:
    """Figures, and probabilities (N, classes), on films that the fit did not see: five folds, by patient, threshold and
    all. Probabilities are NaN where no fit could be made without the film.

    Films of a fold whose rest lacks the positive class, or all others, cannot be judged by another fit: they are in no
    figure. The AUROC is a mean over folds: scores of two fits are on two scales, and do not rank together.
    """
    is_positive = labels == positive
    fold = _folds(is_positive, patients)
    judged = np.zeros(len(labels), bool)
    unseen = np.full(logits.shape, np.nan)
    score, called = np.zeros(len(labels)), np.zeros(len(labels), bool)
    for number in range(_FOLDS):
        test, rest = fold == number, fold != number
        if not test.any() or not is_positive[rest].any() or is_positive[rest].all():
            continue
        fitted = fit(logits[rest], labels[rest], _of(weights, rest))
        own = fitted.probabilities(logits[rest])[:, positive]
        threshold = weighted.threshold_for_sensitivity(is_positive[rest], own, target, _of(weights, rest))
        unseen[test] = fitted.probabilities(logits[test])
        score[test] = unseen[test, positive]
        called[test] = score[test] >= threshold
        judged |= test
    y, score, called, fold, patients = (values[judged] for values in (is_positive, score, called, fold, patients))
    w = _of(weights, judged)
    ece = bootstrap(lambda i: weighted.ece(score[i], y[i], _of(w, i)), patients, centred=True)  # see `bootstrap_ece`
    figures = {
        "auroc": bootstrap(lambda i: _auroc_within(y[i], score[i], fold[i], _of(w, i)), patients),
        "sensitivity": bootstrap(lambda i: weighted.sensitivity(y[i], called[i], _of(w, i)), patients),
        "specificity": bootstrap(lambda i: weighted.specificity(y[i], called[i], _of(w, i)), patients),
        "ece": replace(ece, low=float(np.maximum(ece.low, 0))),
    }
    return figures, unseen


def _folds(is_positive: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The fold (N,) of each film: one a patient, those with and those without a positive film spread over all folds."""
    names, codes = np.unique(patients, return_inverse=True)
    has = np.bincount(codes, is_positive, len(names)) > 0
    draw = np.random.default_rng(0)
    order = np.concatenate([draw.permutation(np.flatnonzero(has)), draw.permutation(np.flatnonzero(~has))])
    fold_of = np.empty(len(names), int)
    fold_of[order] = np.arange(len(names)) % _FOLDS
    return fold_of[codes]


def _auroc_within(y: np.ndarray, score: np.ndarray, fold: np.ndarray, weights: Weights = None) -> float:
    """The mean AUROC of the folds, each weighted by its pairs of a positive and a negative film; NaN without any."""
    areas, pairs = [], []
    for number in np.unique(fold):
        own = fold == number
        positives = int(y[own].sum())
        if 0 < positives < own.sum():
            areas.append(weighted.auroc(y[own], score[own], _of(weights, own)))
            pairs.append(positives * (int(own.sum()) - positives))
    return float(np.average(areas, weights=pairs)) if pairs else float("nan")
