"""A classifier's last layer, solved: the linear probe that fine-tuning starts from.

Fine-tuning from a random last layer first tears the encoder's features to fit its noise; from a solved one it moves
them little, and what it learns carries over better to films of another origin (LP-FT, Kumar et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxr_pipeline.models.gradcam import LOGITS
from cxr_pipeline.models.heads import STANDARDIZE
from cxr_pipeline.models.training.features import FeatureCache

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.data.batches import Batches

_Loss = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
_BASE_RATE = 0.5  # how far the share of lesions in a zone is taken out of what is learned there


@dataclass(frozen=True)
class Lesions:
    """Where lesions are known to lie, and where not, on films of the training.

    A film's class is tied to its hospital; which of its zones are diseased is not. AUROC of TB against normal, shenzhen
    (rahman) left out: weight 0 0.851 (0.866), 0.3 0.857 (0.927); of zones with a lesion against others: 0.70, 0.80.

    Attributes:
        zones: (films, Z) float32: 1 where a zone holds a lesion, 0 where it is free of any, NaN where nobody looked.
        positive, normal: class numbers of the lesions' disease and of health.
        weight: of the zones' mean cross-entropy, beside that of the films.
    """

    zones: np.ndarray
    positive: int
    normal: int
    weight: float


def solve_head(
    model: K.Model,
    batches: Batches,
    cache: FeatureCache,
    *,
    passes: int,
    l2: float,
    label_smoothing: float,
    lesions: Lesions | None = None,
    several: np.ndarray | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> float:
    """Set the layers "standardize" and "logits" of `model` to the best that the encoder's features allow.

    The films pass through the encoder `passes` times, each time augmented anew; the weighted cross-entropy plus
    `l2` times the squared weights is then minimized by L-BFGS.

    Args:
        model: a classifier of `models.classifier`; changed in place.
        batches: of the train split, with the log prior of each film's source as the input "prior".
        cache: keeps the features of finished passes: started again, or with other labels, it reads them.
        passes: at least 1.
        l2: penalty on the squared weights.
        label_smoothing: share of the target spread evenly over the classes.
        lesions: of the films in `batches`; for a model that pools by as many zones.
        several: for films with several labels each (targets 1, 0, and -1 where unknown): what a film counts in each
            label's loss where it has it, and where not, (classes, 2). None where every film has one class.
        on_batch: called with (batches done, batches in all).

    Returns:
        The weighted mean cross-entropy reached; of several labels, the mean over them.
    """
    from scipy.optimize import minimize

    x, film = _passes(model, batches, cache, passes, on_batch)
    prior, y, weight = _beside(batches, film)
    mean, variance = x.mean(0), x.var(0)
    layer = model.get_layer(STANDARDIZE)
    x = (x - mean) / np.sqrt(variance + layer.epsilon)
    weight = weight[:, None] / weight.sum()
    shape = (x.shape[1] + 1, y.shape[1])
    zones = [] if lesions is None else list(_by_zone(x, film, lesions, label_smoothing))

    loss = _softmax_loss(y, label_smoothing) if several is None else _sigmoid_loss(y, several, label_smoothing)

    def entropy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        values, wrong = loss(x @ parameters[:-1] + parameters[-1] + prior)
        wrong = weight * wrong
        return float((weight * values).sum()), np.vstack([x.T @ wrong, wrong.sum(0)])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(shape)
        value, gradient = entropy(parameters)
        for zone in zones:
            value += zone.add(parameters, gradient)
        gradient[:-1] += 2 * l2 * parameters[:-1]
        return value + l2 * float((parameters[:-1] ** 2).sum()), gradient.ravel()

    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    best = found.x.reshape(shape)
    layer.set_weights([mean, variance])
    model.get_layer(LOGITS).set_weights([best[:-1], best[-1]])
    return entropy(best)[0] / (1 if several is None else y.shape[1])


def _passes(
    model: K.Model, batches: Batches, cache: FeatureCache, passes: int, on_batch: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, channels) float64 of all passes over the films, and the numbers of their films (n,)."""

    def counted(before: int) -> Callable[[int, int], None] | None:
        return None if on_batch is None else lambda done, total: on_batch(before * total + done, passes * total)

    found = [cache.features(model, batches, number, counted(number)) for number in range(passes)]
    return np.concatenate([x for x, _ in found]).astype(np.float64), np.concatenate([film for _, film in found])


def _beside(batches: Batches, film: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prior (n, classes), target (n, classes) and weight (n,) of films by number, float64."""
    if batches.targets is None or batches.beside is None:
        raise ValueError("the batches of a head need targets, and the input 'prior' beside the film")
    weight = np.ones(len(film)) if batches.weights is None else batches.weights[film]
    prior, target = batches.beside["prior"][film], batches.targets[film]
    return prior.astype(np.float64), target.astype(np.float64), weight.astype(np.float64)


def _softmax_loss(y: np.ndarray, smoothing: float) -> _Loss:
    """Cross-entropy and its gradient by the logits, (N, classes) each: one class per film; y (N, classes) one-hot."""
    y = y * (1 - smoothing) + smoothing / y.shape[1]

    def loss(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = z - z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -y * log_p, np.exp(log_p) - y

    return loss


def _sigmoid_loss(y: np.ndarray, weights: np.ndarray, smoothing: float) -> _Loss:
    """As `_softmax_loss` for several labels per film; y (N, classes) 1, 0 or -1 for unknown, weights (classes, 2)."""
    count = np.where(y > 0, weights[:, 0], weights[:, 1]) * (y >= 0)
    smooth = np.maximum(y, 0) * (1 - smoothing) + smoothing / 2

    def loss(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return count * (np.logaddexp(0, z) - smooth * z), count * (1 / (1 + np.exp(-z)) - smooth)

    return loss


@dataclass(frozen=True)
class _Zone:
    """One zone's films: its share of the features, whether it holds a lesion, and what that adds to the objective."""

    x: np.ndarray  # (n, channels)
    y: np.ndarray  # (n,)
    rows: slice  # of the parameters
    base: float
    count: int  # zones of a film: the logit is that of a film all of whose zones look like this one
    share: float  # of the objective, a film
    lesions: Lesions

    def add(self, parameters: np.ndarray, gradient: np.ndarray) -> float:
        """The zone's part of the objective; its gradient is added to `gradient`."""
        positive, normal = self.lesions.positive, self.lesions.normal
        weights = parameters[self.rows, positive] - parameters[self.rows, normal]
        logit = self.count * (self.x @ weights) + self.base
        wrong = self.share * self.count * (self.x.T @ (1 / (1 + np.exp(-logit)) - self.y))
        gradient[self.rows, positive] += wrong
        gradient[self.rows, normal] -= wrong
        return self.share * float((np.logaddexp(0, logit) - self.y * logit).sum())


def _by_zone(x: np.ndarray, film: np.ndarray, lesions: Lesions, label_smoothing: float) -> Iterator[_Zone]:
    """The zones of which some are known to hold a lesion and some not."""
    answers = lesions.zones[film]
    known, count = np.isfinite(answers), answers.shape[1]
    channels = x.shape[1] // count
    for zone in range(count):
        rows = slice(zone * channels, (zone + 1) * channels)
        y = answers[known[:, zone], zone].astype(float)
        if 0 < y.sum() < len(y):
            odds = np.log(y.mean() / (1 - y.mean()))
            smooth = y * (1 - label_smoothing) + label_smoothing / 2
            share = lesions.weight / known.sum()
            yield _Zone(x[known[:, zone], rows], smooth, rows, _BASE_RATE * odds, count, share, lesions)
