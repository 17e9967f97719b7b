"""A site's calibration from films without labels: how its logits lie beside those that the weights were judged on.

The model. Logits of a class, as distances from the normal class, lie about a normal distribution (a component). Where
a class lies, and how wide, was learned from several hospitals and stands in the weights' card (`Reference`). At a site
all components may be moved by the same vector and stretched by the same factor, for its machines and its crops, and the
shares of the classes are its own. Shift, stretch and shares are found together, by EM with a prior: the shift is held
by how far the hospitals of the reference differ from each other, so that a site with few films stays near the weights'
own answer, and one group of films is not explained by a long way.

Without any label the shift is half the way from the reference's normal films to the site's densest place, where its
normal films are (`by_normal_mode`), and the shares follow by EM: of the ways compared it is the one that holds both
sensitivity and specificity. With labels as well, shift and stretch come from the components themselves (`align`).

What it assumes: the films are as they come, frontal films of adults, not chosen by disease; each class looks here as it
did elsewhere but for shift and stretch. What it cannot see: that the sick of a site are sicker, or less so, than
elsewhere. Labelled films can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_pipeline.models.figures.metrics import softmax
from cxr_pipeline.stages.reference import Reference, differences
from cxr_pipeline.stages.scores import Scale, fit_scale
from cxr_pipeline.stages.sets import Sets, fit_sets
from cxr_pipeline.stages.shares import shares_by_em

LEAST = 50  # films; under it, shift and shares cannot be told apart
WANTED = 100
_LEAST_OF_A_GROUP = 8  # films expected in the normal group, and in the others together; else there is one mode
_WIDE = 2.0  # logits; a shift less certain than this decides nothing
_STRETCH = 0.15  # prior standard deviation of the stretch's logarithm
_STRETCHES = np.exp(np.linspace(-0.3, 0.3, 7))
_SHARES = 1.5  # Dirichlet prior of the shares: half a film of each class
# How tightly the shift is held, as a share of the hospitals' own variance; with the features of stage b. Lowest
# sensitivity over shares of TB, mean specificity, ECE at shenzhen and rahman left out: 1: 0.86, 0.63, 0.14; 0.25: 0.89,
# 0.63, 0.13; without a shift: 0.95, 0.57, 0.10. See docs/experiments/unlabelled.py.
_HELD = 0.25
# How far a site goes towards its own densest place; with the features of stage b. Sensitivity, specificity and ECE at
# shenzhen and rahman, left out, and the lowest sensitivity over shares of TB from 0.1 to 0.6: as shipped 0.93, 0.52,
# 0.17, 0.83; 0.3: 0.92, 0.65, 0.18, 0.88; 0.45: 0.91, 0.74, 0.11, 0.87; 0.6: 0.88, 0.80, 0.07, 0.82; 1: 0.83, 0.87,
# 0.12, 0.71.
_TOWARDS = 0.5
_DRAWS = 4000  # films drawn of each component, for thresholds
_FITTED = 1000  # of them, those that probabilities are fitted on
_REPEATS = 40  # bootstrap samples


@dataclass(frozen=True)
class Alignment:
    """How a site lies beside the reference: ``x_site = centre + stretch (x_reference - centre) + shift``.

    Attributes:
        shift: (K - 1,). stretch: above 0. shares: (K,) of the classes. evidence: log posterior, for comparing fits.
    """

    shift: np.ndarray
    stretch: float
    shares: np.ndarray
    evidence: float


def align(x: np.ndarray, reference: Reference, known: np.ndarray | None = None) -> Alignment:
    """The likeliest shift, stretch and shares of a site's films.

    Args:
        x: (N, K - 1), see `differences`. known: (N,) int class number of films with a label, -1 without; or None.
    """
    found = [_em(x, reference, float(stretch), start, known) for stretch in _STRETCHES for start in (0.15, 0.5)]
    return max(found, key=lambda alignment: alignment.evidence)


def by_normal_mode(x: np.ndarray, reference: Reference, towards: float = _TOWARDS) -> Alignment:
    """An alignment whose shift leads from the reference's normal films towards the densest place of the site's.

    Args:
        x: (N, K - 1), see `differences`. towards: share of that way; not all of it, for where films with disease are
            many the densest place is not a normal one.
    """
    return with_shares(x, reference, towards * (densest(x) - reference.means[-1]))


def densest(x: np.ndarray) -> np.ndarray:
    """The densest place (D,) of films (N, D): the half-sample mode along the first axis (Robertson and Cryer 1974), and
    the mean of the fifth of the films that is nearest to it."""
    v = np.sort(x[:, 0])
    while len(v) > 3:
        half = (len(v) + 1) // 2
        start = int((v[half - 1 :] - v[: len(v) - half + 1]).argmin())
        v = v[start : start + half]
    near = np.argsort(np.abs(x[:, 0] - v.mean()))[: max(10, len(x) // 5)]
    return x[near].mean(axis=0)


def with_shares(x: np.ndarray, reference: Reference, shift: np.ndarray, stretch: float = 1.0) -> Alignment:
    """The alignment of a known shift and stretch, with the shares of the classes by EM (Saerens et al. 2002)."""
    even = np.full(len(reference.means), 1 / len(reference.means))
    slope, offsets, *_ = calibrated(Alignment(shift, stretch, even, 0.0), reference, 0, 0.9, _FITTED)
    shares = np.maximum(shares_by_em(_probabilities(x, slope, offsets), even), 1e-4)
    return Alignment(shift, stretch, shares / shares.sum(), 0.0)


def _em(
    x: np.ndarray, reference: Reference, stretch: float, abnormal: float, known: np.ndarray | None, steps: int = 60
) -> Alignment:
    count = len(reference.means)
    centre = reference.means[-1]
    places = centre + stretch * (reference.means - centre)
    precisions = np.linalg.inv(reference.covariances) / stretch**2
    logdets = np.array([np.linalg.slogdet(p)[1] for p in precisions])
    prior = np.linalg.inv(_HELD * reference.shift)
    shares = np.append(np.full(count - 1, abnormal / (count - 1)), 1 - abnormal)
    shift = np.zeros(x.shape[1])
    own = None if known is None else np.where(known[:, None] < 0, 0.0, np.where(np.eye(count)[known] > 0, 0.0, -np.inf))
    evidence = -np.inf
    for _ in range(steps):
        away = x[:, None] - shift - places  # (N, K, K - 1)
        log = 0.5 * logdets - 0.5 * np.einsum("nki,kij,nkj->nk", away, precisions, away) + np.log(shares)
        if own is not None:
            log = log + own
        total = np.logaddexp.reduce(log, axis=1)
        before, evidence = (
            evidence,
            float(total.sum() - 0.5 * shift @ prior @ shift + (_SHARES - 1) * np.log(shares).sum()),
        )
        part = np.exp(log - total[:, None])
        if evidence - before < 1e-3:
            break
        mass = part.sum(axis=0)
        left = prior + np.einsum("k,kij->ij", mass, precisions)
        right = np.einsum("kij,nkj,nk->i", precisions, x[:, None] - places, part)
        shift = np.linalg.solve(left, right)
        shares = (mass + _SHARES - 1) / (mass + _SHARES - 1).sum()
    return Alignment(shift, stretch, shares, evidence - 0.5 * (np.log(stretch) / _STRETCH) ** 2)


@dataclass(frozen=True)
class SiteFit:
    """What a site file says, from films without labels.

    Attributes:
        temperature, offsets: ``softmax(logits / temperature + offsets)`` holds for the site's own shares.
        threshold: with its 95 % interval.
        shares: (K,) with their 95 % intervals (K, 2).
        certainty: half the width of the shift's interval along the positive class, in logits.
        against: why nothing should be decided by it; empty where nothing speaks against it.
    """

    temperature: float
    offsets: np.ndarray
    threshold: float
    threshold_ci95: tuple[float, float]
    scale: Scale
    sets: Sets
    shares: np.ndarray
    shares_ci95: np.ndarray
    shift: np.ndarray
    stretch: float
    certainty: float
    n: int
    against: str = ""


def fit_unlabelled(
    logits: np.ndarray,
    decisions: Mapping[str, Any],
    *,
    target_sensitivity: float = 0.90,
    known: np.ndarray | None = None,
    risk: float = 0.10,
    seed: int = 0,
) -> SiteFit:
    """Temperature, offsets, threshold and sets of a site, from its films as they come.

    Args:
        logits: (N, K) as the network gives them.
        decisions: of the card: classes, positive, temperature, offsets and reference; the last class is the normal one.
        known: (N,) int class number of films that have a label, -1 for those without.

    Raises:
        ValueError: the card has no reference.
    """
    reference = Reference.of(decisions.get("reference"))
    if reference is None:
        raise ValueError("the card has no reference")
    classes, k = decisions["classes"], decisions["classes"].index(decisions["positive"])
    x = differences(logits) / decisions["temperature"]
    labelled = known is not None and bool((known >= 0).any())
    found = align(x, reference, known) if labelled else by_normal_mode(x, reference)
    slope, offsets, threshold, drawn, labels = calibrated(found, reference, k, target_sensitivity)
    p = _probabilities(drawn, slope, offsets)
    sets = fit_sets(p, labels, classes, decisions["positive"], risk, found.shares[labels] * len(classes))
    draw = np.random.default_rng(seed)
    thresholds, shares, shifts = [], [], []
    for _ in range(_REPEATS):
        chosen = draw.integers(len(x), size=len(x))
        again = (
            _em(x[chosen], reference, found.stretch, 0.3, known[chosen])
            if labelled and known is not None
            else by_normal_mode(x[chosen], reference)
        )
        films = _drawn(again, reference, _DRAWS // 8, k)
        thresholds.append(np.quantile(_probabilities(films, slope, offsets)[:, k], 1 - target_sensitivity))
        shares.append(again.shares)
        shifts.append(again.shift[k])
    low, high = np.percentile(thresholds, [2.5, 97.5])
    certainty = float(np.ptp(np.percentile(shifts, [2.5, 97.5])) / 2)
    return SiteFit(
        decisions["temperature"] / slope,
        offsets,
        threshold,
        (float(low), float(high)),
        fit_scale(p[:, k], labels == k, threshold),
        sets,
        found.shares,
        np.percentile(shares, [2.5, 97.5], axis=0).T,
        found.shift,
        found.stretch,
        certainty,
        len(x),
        _against(len(x), found.shares, certainty, classes),
    )


def calibrated(
    found: Alignment, reference: Reference, k: int, target: float, count: int = _DRAWS
) -> tuple[float, np.ndarray, float, np.ndarray, np.ndarray]:
    """What an alignment means, on films drawn from its components, `count` of each class.

    Args:
        k: number of the positive class. target: sensitivity that the threshold is set for.

    Returns:
        Slope and offsets (K,), with which probabilities are ``softmax(slope * logits + offsets)``; the threshold; the
        films drawn (K count, K - 1) and their classes.
    """
    classes = range(len(reference.means))
    drawn = np.concatenate([_drawn(found, reference, count, c) for c in classes])
    labels = np.repeat(np.array(classes), count)
    few = np.concatenate([np.flatnonzero(labels == c)[:_FITTED] for c in classes])
    slope, offsets = _calibrated(drawn[few], labels[few], found.shares[labels[few]])
    threshold = float(np.quantile(_probabilities(drawn[labels == k], slope, offsets)[:, k], 1 - target))
    return slope, offsets, threshold, drawn, labels


def _drawn(found: Alignment, reference: Reference, count: int, c: int) -> np.ndarray:
    """Films of class number `c` as the site would have them, (count, K - 1); the same at each call."""
    centre = reference.means[-1]
    draw = np.random.default_rng(c)
    sample = draw.multivariate_normal(reference.means[c], reference.covariances[c], count)
    return centre + found.stretch * (sample - centre) + found.shift


def _probabilities(x: np.ndarray, slope: float, offsets: np.ndarray) -> np.ndarray:
    return softmax(np.hstack([slope * x, np.zeros((len(x), 1))]) + offsets)


def _calibrated(x: np.ndarray, labels: np.ndarray, mass: np.ndarray) -> tuple[float, np.ndarray]:
    """Slope and offsets whose probabilities fit films (N, K - 1) of known class, each counted by its mass."""
    from scipy.optimize import minimize

    count = x.shape[1] + 1
    truth, mass = np.eye(count)[labels], mass / mass.sum()

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        p = _probabilities(x, np.exp(v[0]), v[1:])
        value = -float((mass * np.log(np.maximum(p[np.arange(len(x)), labels], 1e-12))).sum())
        gap = mass[:, None] * (p - truth)
        return value, np.append(np.exp(v[0]) * (gap[:, :-1] * x).sum(), gap.sum(axis=0))

    found = minimize(loss, np.zeros(1 + count), jac=True, method="L-BFGS-B", bounds=[(-3, 3)] + [(-12, 12)] * count)
    return float(np.exp(found.x[0])), found.x[1:] - found.x[1:].mean()


def _against(n: int, shares: np.ndarray, certainty: float, classes: Sequence[str]) -> str:
    if n < LEAST:
        return f"{n} films are too few: at least {LEAST} are needed, and {WANTED} to 300 are better"
    normal, others = n * shares[-1], n * (1 - shares[-1])
    if min(normal, others) < _LEAST_OF_A_GROUP:
        missing = classes[-1] if normal < others else f"any class but {classes[-1]}"
        return (
            f"the films form one group: about {min(normal, others):.0f} of {n} would be of {missing}, too few to tell "
            "where it ends. Give more films, as they come, or labelled ones"
        )
    if certainty > _WIDE / 2:
        return f"the films do not say where the groups lie (give or take {certainty:.1f} logits). Give more films"
    return ""
