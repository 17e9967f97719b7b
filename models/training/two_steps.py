"""The last layer in two steps: is a film abnormal, and if so, of which class.

Public sets tie class to hospital: none has all classes. A softmax solved on all at once learns to tell hospitals apart.
Even with each source's share of the classes taken out (`stages.classify_targets.source_priors`), what it makes of a
class with few hospitals is weak: it said "another abnormality" of 1 % of the films that had one. Two
questions that each have an answer within hospitals are asked instead:

1. *abnormal or normal?* Every source has an intercept of its own, held near 0: only what varies within a hospital, and
   what all share, is learned.
2. *which kind?* On abnormal films alone, from few features, those that were learned from lesions pasted into films of
   other hospitals first among them.

Both are linear, so together they are one dense layer. Each source is then left out in turn, and the others' answer to
its films is what calibration sees: a threshold fitted on films of a hospital that took part does not hold at the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.models.gradcam import LOGITS
from cxr_pipeline.models.heads import STANDARDIZE
from cxr_pipeline.models.training.errors import TrainingError

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.data.batches import Batches
    from cxr_pipeline.models.training.features import FeatureCache

# How far the second answer counts. Features of stage b, sources left out: 1 gives AUROC of TB against normal, by the
# probability of TB, of 0.890 (shenzhen) and 0.935 (rahman), TB against other disease 0.929 and a balanced accuracy of
# 0.728; 0.7 gives 0.894, 0.948, 0.918 and 0.722; 0.5 gives 0.897, 0.956, 0.903 and 0.709.
_KIND = 0.7
_ABNORMAL_L2, _INTERCEPT_L2, _KIND_L2 = 0.003, 0.009, 0.01  # penalties on squared weights of standardized features


@dataclass(frozen=True)
class TwoSteps:
    """What the two questions are about.

    Attributes:
        classes: names, in the order of the logits.
        normal: the class that the first question is about.
        sources: of the films of the training, (N,) text.
        kind_features: how many features, the first ones, answer the second question.
    """

    classes: Sequence[str]
    normal: str
    sources: np.ndarray
    kind_features: int = 3

    def fit(self, x: np.ndarray, y: np.ndarray, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kernel (channels, classes) and bias (classes,) of a dense layer on standardized features.

        Args:
            x: (N, channels). y: (N,) class numbers. sources: (N,) text.

        Raises:
            TrainingError: no normal film, or no abnormal one.
        """
        normal = list(self.classes).index(self.normal)
        abnormal = y != normal
        if abnormal.all() or not abnormal.any():
            raise TrainingError(
                f"{int(abnormal.sum())} of {len(y)} films are abnormal: films of {self.normal} and of another class "
                "are needed for a head in two steps"
            )
        groups = [f"{source}|{label}" for source, label in zip(sources, y, strict=True)]
        names = sorted(set(sources.tolist()))
        own = np.stack([sources == name for name in names], axis=1).astype(float)
        penalty = np.r_[np.full(x.shape[1], _ABNORMAL_L2), np.full(len(names), _INTERCEPT_L2)]
        found, first_bias = _logistic(np.hstack([x, own]), abnormal, _rarity(groups), penalty)
        kernel, bias = np.zeros((x.shape[1], len(self.classes))), np.zeros(len(self.classes))
        others = [c for c in range(len(self.classes)) if c != normal and (y == c).any()]
        for c in others:
            kernel[:, c], bias[c] = found[: x.shape[1]], first_bias
        few = min(self.kind_features, x.shape[1])
        for c in others if len(others) > 1 else ():  # each against the other abnormal classes
            rows = abnormal
            weights = _rarity(sources[rows].tolist())
            here = y[rows] == c
            weights = weights * np.where(here, 0.5 / weights[here].sum(), 0.5 / weights[~here].sum())
            kind, kind_bias = _logistic(x[rows][:, :few], here, weights, np.full(few, _KIND_L2))
            kernel[:few, c] += _KIND * kind / 2
            bias[c] += _KIND * kind_bias / 2
        for c in range(len(self.classes)):
            if c != normal and c not in others:
                bias[c] = -20.0  # a class without films is never the answer
        return kernel, bias

    def left_out(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Logits (N, classes) of each film by a fit on the other sources; NaN where these lack one of its classes."""
        logits = np.full((len(y), len(self.classes)), np.nan)
        for source in sorted(set(self.sources.tolist())):
            here = self.sources == source
            if here.all() or not set(y[here].tolist()) <= set(y[~here].tolist()):
                continue
            try:
                kernel, bias = self.fit(x[~here], y[~here], self.sources[~here])
            except TrainingError:
                continue
            logits[here] = x[here] @ kernel + bias
        return logits


def solve_in_two_steps(
    model: K.Model,
    batches: Batches,
    cache: FeatureCache,
    task: TwoSteps,
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[float, np.ndarray]:
    """Set the layers "standardize" and "logits" of `model`; the films pass through the network once.

    Args:
        model: a classifier of `models.classifier` with a linear head; changed in place.
        batches: of the train split, with one-hot targets.
        cache: where the features are kept.
        on_batch: called with (batches done, batches in all).

    Returns:
        The mean cross-entropy of the films left out with their source, and their logits (N, classes), NaN where none.

    Raises:
        TrainingError: a question has no films.
    """
    features, film = cache.features(model, batches, 0, on_batch)
    targets: Any = batches.targets
    order = np.argsort(film, kind="stable")
    film, first = np.unique(film[order], return_index=True)
    x = features[order][first].astype(np.float64)
    y = targets[film].argmax(axis=1)
    part = TwoSteps(task.classes, task.normal, task.sources[film], task.kind_features)
    mean, variance = x.mean(axis=0), x.var(axis=0)
    layer = model.get_layer(STANDARDIZE)
    x = (x - mean) / np.sqrt(variance + layer.epsilon)
    kernel, bias = part.fit(x, y, part.sources)
    layer.set_weights([mean, variance])
    model.get_layer(LOGITS).set_weights([kernel, bias])
    logits = np.full((len(targets), len(task.classes)), np.nan)
    logits[film] = part.left_out(x, y)
    known = np.isfinite(logits).all(axis=1)
    return _cross_entropy(logits[known], targets[known].argmax(axis=1)), logits


def _rarity(groups: Sequence[str]) -> np.ndarray:
    """Weights (N,) with a sum of 1: one over the square root of the size of each film's group."""
    _, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights = counts[which] ** -0.5
    return weights / weights.sum()


def _logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray, l2: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (channels,) and bias of a logistic regression with a penalty for each channel."""
    from scipy.optimize import minimize

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ p[:-1] + p[-1]
        wrong = weights * (1 / (1 + np.exp(-np.clip(z, -60, 60))) - y)
        value = float((weights * (np.logaddexp(0, z) - y * z)).sum() + (l2 * p[:-1] ** 2).sum())
        return value, np.append(x.T @ wrong + 2 * l2 * p[:-1], wrong.sum())

    found = minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return found[:-1], float(found[-1])


def _cross_entropy(logits: np.ndarray, y: np.ndarray) -> float:
    if not len(y):
        return float("nan")
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]).mean())
