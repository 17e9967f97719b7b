"""What films bring to the classifier's training beside pixels: a weight, what their source gives away, lesions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.models.pooling import lung_zones

UNKNOWN = 255  # of a zone: nobody looked, or what was drawn does not say
# Added to each class's share of a source, so that no class is impossible there. AUROC of TB against normal, shenzhen
# (rahman) left out: 0.02 0.850 (0.867), 0.04 0.850 (0.872), 0.08 0.846 (0.876), 0.15 0.839 (0.874).
_LEAST_SHARE = 0.04


def one_hot(rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> np.ndarray:
    """The films' labels as (N, classes) float32, one of each row 1."""
    return np.eye(len(classes), dtype=np.float32)[[classes.index(row["label"]) for row in rows]]


def several_labels(rows: Sequence[dict[str, Any]], classes: Sequence[str], uncertain: str = "ignore") -> np.ndarray:
    """Which classes each film has, (N, classes) float32: 1, 0, or -1 where nobody said.

    A class that a film's `findings` name (joined by a pipe sign), or its `label`, is there. Of the others: where the
    manifest has a column `negative`, those named in it are not there, and of the rest nothing is known; without that
    column the findings are all there is to find, on films that have findings or a label at all.

    Args:
        uncertain: what classes named in a column `uncertain` count as: "ignore" (unknown), "zeros" or "ones" (the
            policies of Irvin et al. 2019, CheXpert).
    """
    targets = np.full((len(rows), len(classes)), -1, np.float32)
    for line, row in enumerate(rows):
        present = {row["label"], *row["findings"].split("|")} - {""}
        known = set(row["negative"].split("|")) if "negative" in row else set(classes) if present else set()
        doubtful = set(row.get("uncertain", "").split("|"))
        for column, name in enumerate(classes):
            if name in doubtful:
                targets[line, column] = {"ignore": -1, "zeros": 0, "ones": 1}[uncertain]
            elif name in present:
                targets[line, column] = 1
            elif name in known:
                targets[line, column] = 0
    return targets


def label_weights(targets: np.ndarray) -> np.ndarray:
    """What a film counts in each label's loss where it has the label, and where not, (classes, 2) float32.

    The share of the other answer among the films where it is known: so both answers contribute equally, however rare
    the label is (Rajpurkar et al. 2017). A label that only ever has one answer counts nothing.
    """
    known = np.maximum((targets >= 0).sum(0), 1)
    positive = (targets == 1).sum(0) / known
    negative = (targets == 0).sum(0) / known
    return np.stack([negative, positive], axis=1).astype(np.float32)


def balance_weights(rows: Sequence[dict[str, Any]], balance: str) -> np.ndarray | None:
    """Weight of each film in the loss, (N,) float32 with mean 1; None where `how` is "none".

    A film weighs by one over the square root of how many share its class ("class") or its class and source
    ("class_source"): between every film alike, and every group alike, which would let a handful of films rule.
    """
    if balance == "none":
        return None
    groups = [row["label"] if balance == "class" else (row["label"], row["source"]) for row in rows]
    counts = {group: groups.count(group) for group in set(groups)}
    weights = np.array([counts[group] ** -0.5 for group in groups], np.float32)
    return weights / weights.mean()


def source_priors(
    rows: Sequence[dict[str, Any]], classes: Sequence[str], weights: np.ndarray | None, strength: float
) -> np.ndarray:
    """What each film's source alone says of its class: log of the classes' shares there, (N, classes) float32.

    Added to the logits in training and left out afterwards (logit adjustment, Menon et al. 2021, by group and not by
    class). Public sets tie class to hospital: a network is rewarded for telling hospitals apart, and fails at the next
    one. With the source's own answer given for free, only what tells films of one source apart is left to learn.

    Args:
        rows: the films' `source` and `label`.
        weights: (N,) of the films in the loss, or None.
        strength: 0 switches it off, 1 takes the source's share out wholly.
    """
    weights = np.ones(len(rows), np.float32) if weights is None else weights
    shares: dict[str, np.ndarray] = {}
    for row, weight in zip(rows, weights, strict=True):
        share = shares.setdefault(row["source"], np.zeros(len(classes)))
        share[classes.index(row["label"])] += weight
    logs = {
        source: strength * np.log((share / share.sum() + _LEAST_SHARE) / (1 + _LEAST_SHARE * len(classes)))
        for source, share in shares.items()
    }
    return np.array([logs[row["source"]] for row in rows], np.float32)


def zones_with_lesions(lungs: np.ndarray, boxes: Sequence[Box], frame: Frame) -> np.ndarray:
    """Which of the six lung zones hold a lesion, (6,) uint8: 1, 0, or 255 for a zone that says neither.

    A zone holds one where boxes cover a quarter of its lung, and none where they cover under 2 %. One with little lung
    (1 % of the crop) says neither, and so do all of a film without boxes: its lesions were not drawn.

    Args:
        lungs: (S, S) uint8, 0 or 1. boxes: in native pixels. frame: from native pixels to the crop.
    """
    known = np.full(6, UNKNOWN, np.uint8)
    if not boxes:
        return known
    size = lungs.shape[0]
    covered = np.zeros(lungs.shape, bool)
    for box in boxes:
        x, y, w, h = frame.box_to_grid(box).rounded().intersect(Box(0, 0, size, size))
        covered[int(y) : int(y + h), int(x) : int(x + w)] = True
    zones = lung_zones(size, size)[0] * lungs[..., None]
    areas, drawn = zones.sum((0, 1)), (zones * covered[..., None]).sum((0, 1))
    share = drawn / np.maximum(areas, 1)
    enough = areas > 0.01 * size * size
    known[enough & (share > 0.25)] = 1
    known[enough & (share < 0.02)] = 0
    return known
