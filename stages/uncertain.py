"""Films whose score lies where the operating threshold itself is uncertain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxr_pipeline.models.figures.metrics import bootstrap, threshold_for_sensitivity


def threshold_interval(
    is_positive: np.ndarray, scores: np.ndarray, target_sensitivity: float, patients: Sequence[str]
) -> list[float]:
    """The 95 % interval of the operating threshold, by bootstrap over patients.

    Args:
        is_positive: (N,) bool. scores: (N,) probability of the positive class. patients: N names.
    """
    spread = bootstrap(
        lambda i: threshold_for_sensitivity(is_positive[i], scores[i], target_sensitivity), np.array(patients)
    )
    return [round(float(spread.low), 4), round(float(spread.high), 4)]


def uncertain(probability: float, threshold: float, interval: Sequence[float] | None) -> list[str]:
    """The warning of a film whose probability lies in the threshold's interval: as many films would have set it on the
    other side. None without an interval (a fit that had too few films gives one that is not finite).
    """
    if interval is None or not interval[0] <= probability <= interval[1]:
        return []
    low, high = interval
    digits = 2 if f"{low:.2f}" != f"{high:.2f}" else 4  # so that the sentence shows an interval
    p, least, most, where = (f"{value:.{digits}f}" for value in (probability, low, high, threshold))
    return [
        f"uncertain: the probability {p} lies between {least} and {most}, where the operating "
        f"threshold ({where}) would lie had other films of the same kind set it. Read the film"
    ]
