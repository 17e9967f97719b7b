"""Figures of merit for regions: does the map point at the lesion, and does a box hold it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxr_pipeline.data.geometry import Box


def peak(heatmap: np.ndarray) -> tuple[float, float] | None:
    """Centre of the pixel (x, y) where a map (H, W) is highest; None where it is zero or NaN throughout."""
    if not heatmap.size or not np.nanmax(heatmap, initial=0) > 0:
        return None
    y, x = np.unravel_index(int(np.nanargmax(heatmap)), heatmap.shape)
    return x + 0.5, y + 0.5


def hit(point: tuple[float, float] | None, truths: Sequence[Box]) -> float:
    """1 where the point lies in one of the boxes, else 0 (the hit rate of CheXlocalize, Saporta et al. 2022)."""
    if point is None:
        return 0.0
    x, y = point
    return float(any(b.x <= x < b.x + b.w and b.y <= y < b.y + b.h for b in truths))


def best_iou(found: Sequence[Box], truths: Sequence[Box]) -> float:
    """The highest IoU between any found and any true box; 0 where there is none."""
    return max((f.iou(t) for f in found for t in truths), default=0.0)


def average_precision(
    films: Sequence[tuple[Sequence[tuple[Box, float]], Sequence[Box]]], threshold: float = 0.5
) -> float:
    """Average precision of scored boxes over all films, every point of the curve used (as PASCAL VOC 2010 does).

    Going down the scores, a box is right where its IoU with a true box not yet taken reaches the threshold.

    Args:
        films: for each film its found boxes with scores, and its true boxes.
        threshold: IoU from which a box counts.

    Returns:
        0 to 1; NaN where no film has a true box.
    """
    total = sum(len(truths) for _, truths in films)
    if not total:
        return float("nan")
    claims = sorted(
        ((score, film, box) for film, (found, _) in enumerate(films) for box, score in found), key=lambda c: -c[0]
    )
    taken: set[tuple[int, int]] = set()
    right = np.zeros(len(claims))
    for rank, (_, film, box) in enumerate(claims):
        free = [(box.iou(t), n) for n, t in enumerate(films[film][1]) if (film, n) not in taken]
        overlap, number = max(free, default=(0.0, -1))
        if overlap >= threshold:
            taken.add((film, number))
            right[rank] = 1
    if not len(right):
        return 0.0
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((precision * right).sum() / total)


def share_inside(heatmap: np.ndarray, mask: np.ndarray) -> float:
    """Share of a map's mass (H, W) that lies within a mask (H, W); NaN where the map is zero throughout."""
    total = float(heatmap.sum())
    return float(heatmap[mask > 0].sum()) / total if total > 0 else float("nan")
