"""Where the classes lie among a network's logits, over several hospitals: what a site without labels is held against.

See `train.unlabelled` for what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_ENOUGH = 10  # films of a class at a hospital whose mean is worth having
_FLOOR = 0.02  # added to variances, logits squared: no class is a point


@dataclass(frozen=True)
class Reference:
    """Where the classes lie, of weights: logits divided by the card's temperature, less the last class's.

    Attributes:
        means: (K, K - 1). covariances: (K, K - 1, K - 1), of films and hospitals together.
        shift: (K - 1, K - 1), covariance of hospitals' own shifts.
    """

    means: np.ndarray
    covariances: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, card: Mapping[str, Any] | None) -> Reference | None:
        """The reference of a card's entry ``reference``; None where it has none."""
        return cls(*(np.array(card[key], float) for key in ("means", "covariances", "shift"))) if card else None

    def to_json(self) -> dict[str, Any]:
        """``{"means", "covariances", "shift"}`` as lists."""
        return {key: np.round(getattr(self, key), 4).tolist() for key in ("means", "covariances", "shift")}


def differences(logits: np.ndarray) -> np.ndarray:
    """(N, K - 1): logits less that of the last class. Probabilities depend on nothing else."""
    logits = np.asarray(logits, float)
    return logits[:, :-1] - logits[:, -1:]


def fit_reference(logits: np.ndarray, labels: np.ndarray, hospitals: Sequence[str]) -> Reference:
    """The reference of labelled films of several hospitals, none of which counts for more than another.

    Args:
        logits: (N, K), divided by the temperature. labels: (N,) int. hospitals: N names.

    Raises:
        ValueError: a class without films.
    """
    x, labels, homes = differences(logits), np.asarray(labels, int), np.asarray(hospitals)
    count = x.shape[1] + 1
    normal = count - 1
    own = {
        name: x[(homes == name) & (labels == normal)].mean(axis=0)
        for name in np.unique(homes)
        if ((homes == name) & (labels == normal)).sum() >= _ENOUGH
    }
    centre = np.mean(list(own.values()), axis=0) if own else np.zeros(count - 1)
    spread = np.cov(np.array(list(own.values())).T).reshape(count - 1, -1) if len(own) > 2 else 0.1 * np.eye(count - 1)
    means, covariances = [], []
    for c in range(count):
        parts = [x[(homes == name) & (labels == c)] - (own.get(name, centre) - centre) for name in np.unique(homes)]
        parts = [part for part in parts if len(part) >= _ENOUGH] or [part for part in parts if len(part)]
        if not parts:
            raise ValueError(f"no film of class number {c}: a reference needs films of every class")
        places = np.array([part.mean(axis=0) for part in parts])
        within = np.mean([np.cov(part.T, bias=True).reshape(count - 1, -1) for part in parts], axis=0)
        between = np.cov(places.T, bias=True).reshape(count - 1, -1) if len(parts) > 1 else 0
        means.append(places.mean(axis=0))
        covariances.append(within + between + _FLOOR * np.eye(count - 1))
    return Reference(np.array(means), np.array(covariances), spread + _FLOOR * np.eye(count - 1))
