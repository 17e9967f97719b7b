"""Which lung is which: a lung mask as the patient's right and left lung."""

from __future__ import annotations

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Frame, bounding_box

_LONE_LUNG = 0.7  # a single component narrower than this share of its height is one lung, not two that touch


def split_lungs(lungs: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """A lung mask (h, w) bool on the grid, as the patient's right lung (left in the picture) and left lung.

    The two largest components are the lungs, if they lie side by side. Otherwise the mask is cut at its vertical
    midline; but one that is far higher than wide in native pixels is a lone lung, whole on its side of the film's
    midline.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(lungs.astype(np.uint8), connectivity=8)
    order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:2]
    nothing = np.zeros_like(lungs)
    if count < 2:
        return nothing, nothing
    if len(order) == 2:
        first, second = sorted(order, key=lambda k: stats[k, cv2.CC_STAT_LEFT] + stats[k, cv2.CC_STAT_WIDTH] / 2)
        overlap = stats[first, cv2.CC_STAT_LEFT] + stats[first, cv2.CC_STAT_WIDTH] - stats[second, cv2.CC_STAT_LEFT]
        if overlap <= 0.5 * min(stats[first, cv2.CC_STAT_WIDTH], stats[second, cv2.CC_STAT_WIDTH]):
            return labels == first, labels == second
    box = bounding_box(lungs)
    native = frame.box_to_native(box)
    if native.w < _LONE_LUNG * native.h:
        on_left_of_film = native.x + native.w / 2 < frame.native[1] / 2
        return (lungs, nothing) if on_left_of_film else (nothing, lungs)
    right = lungs.copy()
    right[:, round(box.x + box.w / 2) :] = False
    return right, lungs & ~right
