"""The share of each class among films without labels, and probabilities for other shares."""

from __future__ import annotations

import numpy as np


def shares_by_em(
    probabilities: np.ndarray, prior: np.ndarray, *, steps: int = 1000, tolerance: float = 1e-8
) -> np.ndarray:
    """The share of each class among films without labels, by EM (Saerens et al. 2002).

    It assumes that films of a class look the same here as where the probabilities were calibrated, and that only the
    shares of the classes differ.

    Args:
        probabilities: (N, K) calibrated for films with the shares `prior` (K,), which sum to 1.

    Returns:
        (K,) shares that sum to 1.
    """
    p = np.asarray(probabilities, float)
    prior = np.asarray(prior, float)
    shares = prior.copy()
    for _ in range(steps):
        turned = p * (shares / prior)
        turned /= turned.sum(axis=1, keepdims=True)
        new = turned.mean(axis=0)
        done = np.abs(new - shares).max() < tolerance
        shares = new
        if done:
            break
    return shares


def shares_by_moments(means: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The share of each class among films without labels, from means of probabilities (Lipton et al. 2018).

    Args:
        means: (K, K): row c is the mean probability vector of films of class c, where labels are known.
        mean: (K,) mean probability vector of the films without labels.

    Returns:
        (K,) shares of at least 0 that sum to 1 whose mixture of `means` comes nearest to `mean`.
    """
    from scipy.optimize import nnls

    means, mean = np.asarray(means, float), np.asarray(mean, float)
    heavy = 1e3  # the equation that shares sum to 1, held far more tightly than the others
    shares, _ = nnls(np.vstack([means.T, heavy * np.ones(len(means))]), np.append(mean, heavy))
    return shares / shares.sum()


def reweighted(probabilities: np.ndarray, prior: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) that hold for films with the class shares `shares` in place of `prior` (K,)."""
    turned = np.asarray(probabilities, float) * (np.asarray(shares, float) / np.asarray(prior, float))
    return turned / turned.sum(axis=-1, keepdims=True)
