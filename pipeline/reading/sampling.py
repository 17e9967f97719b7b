"""Which films are read, so that few teach much and estimates stay honest.

Every film has a known chance to be drawn, never 0: half of the films asked for go by nearness to the threshold, a
quarter evenly over the scores, a quarter to any film. What a film stands for is the inverse of its chance (Horvitz and
Thompson 1952): with these weights, figures hold for all films of the run and not for the sample.

Films are drawn systematically along the scores (Madow 1949), which keeps every chance exact, and shown in an order that
goes back and forth over the scores from a random start. A film's place in that order does not depend on its score, so
that a reading that ends early has the same weights, up to a common factor.
"""

from __future__ import annotations

import numpy as np

NEAR, SPREAD = 0.5, 0.25  # shares of the films; the rest goes to any film
WIDTH = 12.0  # scores from the threshold, at which nearness has fallen to 0.6
_STEPS = 10  # of the scores, over which a quarter is spread
_SHUFFLED = 8  # films whose order among each other says nothing of their scores


def chances(scores: np.ndarray, cutoff: float, count: int) -> np.ndarray:
    """The chance (N,) of each film to be among `count`; they sum to `count`, or to N where there are fewer films.

    Args:
        scores: (N,) 0 to 100. cutoff: score from which a film is positive.
    """
    scores = np.asarray(scores, float)
    n = len(scores)
    if count >= n:
        return np.ones(n)
    near = np.exp(-0.5 * ((scores - cutoff) / WIDTH) ** 2) + 1e-12
    step = np.minimum((scores / 100 * _STEPS).astype(int), _STEPS - 1)
    films = np.bincount(step, minlength=_STEPS)
    spread = 1 / films[step] / (films > 0).sum()
    size = NEAR * near / near.sum() + SPREAD * spread + (1 - NEAR - SPREAD) / n
    out, sure = count * size, np.zeros(n, bool)
    while (out > 1 + 1e-12).any():  # what would be drawn more than once is drawn surely; the others share the rest
        sure |= out > 1
        out = np.where(sure, 1.0, size / size[~sure].sum() * (count - sure.sum()))
    return np.minimum(out, 1.0)


def draw(chance: np.ndarray, scores: np.ndarray, seed: int) -> np.ndarray:
    """The places of the films drawn, in the order in which they are shown.

    Args:
        chance: (N,), of `chances`. scores: (N,).
    """
    random = np.random.default_rng(seed)
    along = np.lexsort((random.random(len(scores)), scores))
    ends = np.cumsum(chance[along])
    start = random.random()
    marks = np.floor(ends - start + 1e-9)
    drawn = along[np.diff(marks, prepend=np.floor(-start + 1e-9)) > 0]
    return drawn[_back_and_forth(len(drawn), random)]


def _back_and_forth(n: int, random: np.random.Generator) -> np.ndarray:
    """0 to n - 1 so that every beginning is spread over all of them (van der Corput 1935), from a random start on.

    That order by itself takes turns between the lower and the upper half, which a blind reader would soon notice: so
    each few that follow each other are shuffled.
    """
    bits = max(1, int(n - 1).bit_length())
    turned = (int(f"{k:0{bits}b}"[::-1], 2) for k in range(1 << bits))
    places = (np.array([k for k in turned if k < n], int) + random.integers(max(1, n))) % max(1, n)
    return np.concatenate(
        [random.permutation(places[at : at + _SHUFFLED]) for at in range(0, n, _SHUFFLED)] or [places]
    )
