"""Text that is burnt into a film: lines of letters near its border, such as plates with a patient's name.

Letters are strokes of one brightness, far brighter or darker than what is around them, of one height, side by side.
Ribs, wires and markers of one or two letters are not. What is found is found by shape alone; nothing is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Box

_SIDE = 1400  # long side at which films are searched
_STROKE = 31  # pixels: what is wider is no stroke of a letter
_CONTRAST = 0.16  # of the film's range, between a stroke and what is around it
_HEIGHTS = (9, 120)  # pixels of letters
_BORDER = 0.18  # share of the film's width and height that its border takes on each side
_LETTERS = 3  # in a line, at least: a side marker has one or two
_UNEVEN = 0.10  # the most that grey levels of a letter's core spread
_TOUCHING = 4.0  # letters that touch are at most so much wider than high
_WASTE = 1.6  # a box around two is at most so much larger than both
_FURTHER = 8  # letters by which a line may go on beyond those that are plain
_ALIKE = 1.7  # the heights of neighbours in a line differ by less than this factor


class _Strokes(NamedTuple):
    """Components of strokes: boxes (n, 4) of x, y, w, h; stroke width in pixels; how many letters each may be."""

    boxes: np.ndarray
    widths: np.ndarray
    letters: np.ndarray


def find_text(film: np.ndarray) -> list[Box]:
    """Lines of burnt-in text near the film's border.

    Args:
        film: (H, W) of any numbers.

    Returns:
        Boxes in pixels of the film, with a margin; none where nothing was found.
    """
    height, width = film.shape
    low, high = float(film.min()), float(film.max())
    if high <= low or min(film.shape) < 32:
        return []
    grey = (film.astype(np.float32) - low) / (high - low)
    scale = _SIDE / max(height, width)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = np.clip(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=how), 0, 1)
    uneven = _UNEVEN * (1 if scale <= 1 else min(1.6, scale**0.5))  # small letters have no even core
    found: list[Box] = []
    for turned in (False, True):
        picture = np.ascontiguousarray(small.T) if turned else small
        for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
            for x, y, w, h in _lines(_strokes(picture, kind, uneven)):
                found.append(Box(y, x, h, w) if turned else Box(x, y, w, h))
    size = small.shape
    near = [box for box in found if _at_border(box, size)]
    down, across = height / size[0], width / size[1]
    out = []
    for box in _joined(near):
        margin = 0.35 * min(box.w, box.h)
        wide = Box(
            (box.x - margin) * across,
            (box.y - margin) * down,
            (box.w + 2 * margin) * across,
            (box.h + 2 * margin) * down,
        )
        out.append(wide.rounded().intersect(Box(0, 0, width, height)))
    return out


def blanked(values: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """A copy of pixels (H, W) or (H, W, 3) with each box filled by the middle of what surrounds it.

    Not with black or white: a box that stands out is a mark that a network can learn.
    """
    out = values.copy()
    height, width = values.shape[:2]
    for box in boxes:
        x0, y0 = max(0, int(box.x)), max(0, int(box.y))
        x1, y1 = min(width, int(np.ceil(box.x + box.w))), min(height, int(np.ceil(box.y + box.h)))
        ring = max(2, min(height, width) // 200)
        around = np.s_[max(0, y0 - ring) : y1 + ring, max(0, x0 - ring) : x1 + ring]
        outside = np.ones(values[around].shape[:2], bool)
        outside[y0 - max(0, y0 - ring) :, x0 - max(0, x0 - ring) :][: y1 - y0, : x1 - x0] = False
        some = values[around][outside]
        out[y0:y1, x0:x1] = np.median(some, axis=0).astype(values.dtype) if len(some) else values.min()
    return out


def _strokes(picture: np.ndarray, kind: int, uneven: float) -> _Strokes:
    """The components of bright (top hat) or dark (black hat) strokes that are no larger than a word."""
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (_STROKE, _STROKE))
    strokes = (cv2.morphologyEx(picture, kind, kernel) > _CONTRAST).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(strokes, connectivity=8)
    inside = cv2.distanceTransform(strokes, cv2.DIST_L2, 3)
    w, h, area = stats[:, 2], stats[:, 3], stats[:, 4]
    small = (h >= 3) & (h <= _HEIGHTS[1]) & (w <= 8 * _HEIGHTS[1]) & (area >= 6)
    small[0] = False
    boxes, widths, letters = [], [], []
    for number in np.nonzero(small)[0]:
        box = tuple(int(value) for value in stats[number, :4])
        width, letter = _letter(picture, labels, inside, int(number), box, uneven)
        boxes.append(box)
        widths.append(width)
        letters.append(letter)
    return _Strokes(np.array(boxes, float).reshape(-1, 4), np.array(widths, float), np.array(letters, int))


def _letter(
    picture: np.ndarray, labels: np.ndarray, inside: np.ndarray, number: int, box: tuple[int, ...], uneven: float
) -> tuple[float, int]:
    """The stroke width of a component, and how many letters it may be: 0, or more than one where some touch."""
    x, y, w, h = box
    if not (h >= _HEIGHTS[0] and 2 <= w <= _TOUCHING * h):
        return 0.0, 0
    place = np.s_[y : y + h, x : x + w]
    own = labels[place] == number
    depth = inside[place] * own
    core = own & (depth >= 0.6 * depth.max())
    stroke = 2 * float(depth.max())
    if stroke > 0.6 * h or own.mean() < 0.12 or float(picture[place][core].std()) > uneven:
        return stroke, 0
    if w <= 1.4 * h:
        return stroke, 1
    rows = own[[h // 4, h // 2, 3 * h // 4]].astype(np.int8)  # letters that touch are many strokes across; a rib is one
    crossed = (np.diff(rows, axis=1, prepend=0) > 0).sum(axis=1)
    return stroke, int(np.median(crossed) // 1.5) if np.median(crossed) >= w / h else 0


def _lines(strokes: _Strokes) -> list[tuple[float, float, float, float]]:
    """Boxes around rows of neighbours of one height and one stroke, with what else stands in the row."""
    some = strokes.letters > 0
    boxes, widths, letters = strokes.boxes[some], strokes.widths[some], strokes.letters[some]
    chains: list[list[int]] = []
    for place in np.argsort(boxes[:, 0], kind="stable"):
        x, y, _, h = boxes[place]
        for chain in reversed(chains):
            px, py, pw, ph = boxes[chain[-1]]
            gap, common = x - (px + pw), min(y + h, py + ph) - max(y, py)
            alike = 1 / _ALIKE < h / ph < _ALIKE and 0.5 < (widths[place] + 1) / (widths[chain[-1]] + 1) < 2
            if -0.3 * ph < gap < 1.3 * max(h, ph) and common > 0.6 * min(h, ph) and alike:
                chain.append(int(place))
                break
        else:
            chains.append([int(place)])
    out = []
    for chain in chains:
        own = boxes[chain]
        level = np.ptp(own[:, 1] + own[:, 3]) <= 0.7 * np.median(own[:, 3])
        if letters[chain].sum() >= _LETTERS and level:
            out.append(_whole_line(own, strokes.boxes))
    return out


def _whole_line(letters: np.ndarray, others: np.ndarray) -> tuple[float, float, float, float]:
    """The box of a row, grown by all strokes that go on with it: dots, and letters that looked like none alone."""
    x0, y0 = letters[:, :2].min(axis=0)
    x1, y1 = (letters[:, :2] + letters[:, 2:]).max(axis=0)
    height = float(np.median(letters[:, 3]))
    middle = others[:, 1] + others[:, 3] / 2
    row = others[(middle > y0 - 0.3 * height) & (middle < y1 + 0.3 * height) & (others[:, 3] < 1.8 * height)]
    least, most = x0 - _FURTHER * height, x1 + _FURTHER * height
    row = row[(row[:, 0] > least) & (row[:, 0] + row[:, 2] < most)]
    for _ in range(len(row)):
        reach = 1.2 * height
        near = row[(row[:, 0] < x1 + reach) & (row[:, 0] + row[:, 2] > x0 - reach)]
        if not len(near):
            break
        left, right = min(x0, near[:, 0].min()), max(x1, (near[:, 0] + near[:, 2]).max())
        if (left, right) == (x0, x1):
            break
        x0, x1 = left, right
    return x0, y0, x1 - x0, y1 - y0


def _at_border(box: Box, size: tuple[int, int]) -> bool:
    x, y = (box.x + box.w / 2) / size[1], (box.y + box.h / 2) / size[0]
    return min(x, 1 - x, y, 1 - y) < _BORDER


def _joined(boxes: list[Box]) -> list[Box]:
    """Boxes that touch as one, so that a plate of several lines is blanked whole: where little else lies in it."""
    out: list[Box] = []
    for box in boxes:
        merged = True
        while merged:
            merged = False
            for place, other in enumerate(out):
                both = _around(box, other)
                reach = 0.6 * min(box.w, box.h, other.w, other.h)
                near = Box(box.x - reach, box.y - reach, box.w + 2 * reach, box.h + 2 * reach)
                if near.intersect(other).area > 0 and both.area < _WASTE * (box.area + other.area):
                    box = both
                    del out[place]
                    merged = True
                    break
        out.append(box)
    return out


def _around(one: Box, other: Box) -> Box:
    x0, y0 = min(one.x, other.x), min(one.y, other.y)
    x1, y1 = max(one.x + one.w, other.x + other.w), max(one.y + one.h, other.y + other.h)
    return Box(x0, y0, x1 - x0, y1 - y0)
