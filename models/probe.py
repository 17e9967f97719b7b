"""A classifier's last layer, solved: the linear probe that fine-tuning starts from.

Fine-tuning from a random last layer first tears the encoder's features to fit its noise; from a solved one it moves
them little, and what it learns carries over better to films of another origin (LP-FT, Kumar et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.backend import keras
from models.gradcam import LOGITS, POOL

if TYPE_CHECKING:
    import keras as K

    from data.batches import Batches

STANDARDIZE = "standardize"  # the layer between pool and logits that brings every channel to mean 0, variance 1


def solve_head(
    model: K.Model,
    batches: Batches,
    folder: Path,
    *,
    passes: int,
    l2: float,
    label_smoothing: float,
    on_batch: Callable[[int, int], None] | None = None,
) -> float:
    """Set the layers "standardize" and "logits" of `model` to the best that the encoder's features allow.

    The films pass through the encoder `passes` times, each time augmented anew; the weighted cross-entropy plus
    `l2` times the squared weights is then minimized by L-BFGS.

    Args:
        model: a classifier of `models.classifiers`; changed in place.
        batches: of the train split, with the log prior of each film's source as the input "prior".
        folder: features of finished passes are kept here, and used when the training is started again.
        passes: at least 1.
        l2: penalty on the squared weights.
        label_smoothing: share of the target spread evenly over the classes.
        on_batch: told (batches done, batches in all).

    Returns:
        The weighted mean cross-entropy reached.
    """
    from scipy.optimize import minimize

    parts = [_features(model, batches, number, passes, folder, on_batch) for number in range(passes)]
    x, prior, y, weight = (np.concatenate([part[name] for part in parts]) for name in ("x", "prior", "y", "weight"))
    mean, variance = x.mean(0), x.var(0)
    layer = model.get_layer(STANDARDIZE)
    x = (x - mean) / np.sqrt(variance + layer.epsilon)
    y = y * (1 - label_smoothing) + label_smoothing / y.shape[1]
    weight = weight[:, None] / weight.sum()
    shape = (x.shape[1] + 1, y.shape[1])

    def entropy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ parameters[:-1] + parameters[-1] + prior
        z -= z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        wrong = weight * (np.exp(log_p) - y)
        return float(-(weight * y * log_p).sum()), np.vstack([x.T @ wrong, wrong.sum(0)])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(shape)
        value, gradient = entropy(parameters)
        gradient[:-1] += 2 * l2 * parameters[:-1]
        return value + l2 * float((parameters[:-1] ** 2).sum()), gradient.ravel()

    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    best = found.x.reshape(shape)
    layer.set_weights([mean, variance])
    model.get_layer(LOGITS).set_weights([best[:-1], best[-1]])
    return entropy(best)[0]


def _features(
    model: K.Model,
    batches: Batches,
    number: int,
    passes: int,
    folder: Path,
    on_batch: Callable[[int, int], None] | None,
) -> dict[str, np.ndarray]:
    """Pooled features `x` (N, channels) float64 of one pass over the films, with their prior, target and weight."""
    kept = folder / f"pass-{number}.npz"
    if not kept.is_file():
        k = keras()
        network = k.Model(model.input, model.get_layer(POOL).output)
        batches.epoch = number
        rows: dict[str, list[np.ndarray]] = {"x": [], "prior": [], "y": [], "weight": []}
        with ThreadPoolExecutor(3) as pool:
            for done, (inputs, y, *weight) in enumerate(pool.map(batches.__getitem__, range(len(batches))), start=1):
                # fixed shapes and a direct call: predict() in a loop builds a new pipeline each time
                rows["x"].append(np.asarray(network(inputs["crop"], training=False)))
                rows["prior"].append(inputs["prior"])
                rows["y"].append(y)
                rows["weight"].append(weight[0] if weight else np.ones(len(y), np.float32))
                if on_batch is not None:
                    on_batch(number * len(batches) + done, passes * len(batches))
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"part-{number}.npz"
        np.savez(part, **{name: np.concatenate(arrays) for name, arrays in rows.items()})
        part.replace(kept)
    with np.load(kept) as stored:
        return {name: stored[name].astype(np.float64) for name in stored.files}
