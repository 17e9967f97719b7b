"""From what readers clicked to a manifest with weights, and how far two readers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

UNSURE, BAD = "unsure", "bad"


def label_of(answers: Sequence[str], classes: Sequence[str]) -> str:
    """The class that most readers gave a film; empty where none did, or where two classes have as many."""
    counted = Counter(answer for answer in answers if answer in classes).most_common(2)
    if not counted or (len(counted) > 1 and counted[0][1] == counted[1][1]):
        return ""
    return counted[0][0]


def kappa(first: Sequence[str] | np.ndarray, second: Sequence[str] | np.ndarray) -> float:
    """Cohen's kappa of two readers' answers to the same films; NaN where chance alone would make them agree."""
    one, two = np.asarray(first), np.asarray(second)
    if not len(one):
        return float("nan")
    names = sorted({*first, *second})
    agreed = float((one == two).mean())
    chance = float(sum((one == name).mean() * (two == name).mean() for name in names))
    return (agreed - chance) / (1 - chance) if chance < 1 else float("nan")


def agreement(answers: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """How far each two readers agree on the films that both answered.

    Args:
        answers: by reader, the answer by film.

    Returns:
        A dict per pair: `readers`, `films`, `agreed` (share), `kappa` with `low` and `high` (95 %, by bootstrap over
        films); null where there are too few films to say.
    """
    out = []
    for one, two in combinations(sorted(answers), 2):
        films = sorted(set(answers[one]) & set(answers[two]))
        first = np.array([answers[one][film] for film in films])
        second = np.array([answers[two][film] for film in films])
        spread = []
        draw = np.random.default_rng(0)
        for _ in range(500 if films else 0):
            own = draw.integers(len(films), size=len(films))
            spread.append(kappa(first[own], second[own]))
        value = kappa(first, second)
        low, high = np.nanquantile(spread, [0.025, 0.975]) if not np.isnan(spread).all() else (np.nan, np.nan)
        agreed = float((first == second).mean()) if films else float("nan")
        numbers = {"agreed": agreed, "kappa": value, "low": float(low), "high": float(high)}
        known = {name: None if np.isnan(v) else round(v, 4) for name, v in numbers.items()}
        out.append({"readers": [one, two], "films": len(films), **known})
    return out


def agreement_said(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each pair of readers."""
    lines = []
    for pair in pairs:
        one, two = pair["readers"]
        if pair["kappa"] is None:
            lines.append(f"{one} and {two}: {pair['films']} films read by both, too few or too alike for a kappa.")
            continue
        share, bounds = 100 * pair["agreed"], f"{pair['low']:.2f} to {pair['high']:.2f}"
        lines.append(
            f"{one} and {two}: the same answer to {share:.0f} % of {pair['films']} films, Cohen's kappa "
            f"{pair['kappa']:.2f} ({bounds})."
        )
    return lines
