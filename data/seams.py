"""Whether a picture is made of two: a seam runs through its middle, from edge to edge."""

from __future__ import annotations

import cv2
import numpy as np

from cxr_pipeline.data.formats.small import means

_SIDE = 256  # pixels of the longer side on which seams are looked for
_WHERE = (0.3, 0.7)  # of the width or height: a seam nearer the edge leaves no room for a second film
_EVEN = 0.012  # standard deviation along a line that is one grey level from edge to edge
_WIDEST = 0.12  # share of the picture that a gap between two films may be wide
_CONTENT = 0.08  # standard deviation of grey on both sides of the seam: less is no film
_BLACK = 0.06  # grey level of a black gap
_STEP = 0.06  # grey level by which a gap differs from what is beside it
_ALONG = 0.6  # share of the gap along which it does
_FEWEST = 64  # pixels a side of the small picture: on fewer a step says nothing
_NOISE = 0.01  # grey level that steps of a film have anyway
_MOST_STEP, _MOST_OUT = 0.25, 3.0  # a single bright edge, or an even film, counts for no more
_BOX = 0.3  # share of a column whose strongest steps are left out
_SEAM = 0.05  # of the measure of `_step`. Single films: less but for 1 of 1755; pairs: more but for 1 in 30


def seam(pixels: np.ndarray) -> str | None:
    """Which way a seam parts the picture (H, W) float32 in [0, 1] into two: "upright" or "level"; None without one."""
    scale = min(1.0, _SIDE / max(pixels.shape))
    size = max(8, round(pixels.shape[1] * scale)), max(8, round(pixels.shape[0] * scale))
    part = means(pixels, 2) if scale < 0.25 else pixels  # in two steps, which takes half as long on a large film
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    for name, picture in (("upright", small), ("level", small.T)):
        if _gap(picture) or _step(picture):
            return name
    return None


def _gap(picture: np.ndarray) -> bool:
    """Whether columns of one grey level from top to bottom lie in the middle, between contents on both sides."""
    width = picture.shape[1]
    even = picture.std(axis=0) < _EVEN
    first, last = (round(share * width) for share in _WHERE)
    columns = np.flatnonzero(even[first:last]) + first
    if not columns.size:
        return False
    left, right = int(columns[0]), int(columns[-1])
    while left > 0 and even[left - 1]:
        left -= 1
    while right < width - 1 and even[right + 1]:
        right += 1
    if right - left + 1 > _WIDEST * width or left < 0.2 * width or right > 0.8 * width:
        return False
    if not _contents(picture, left, right + 1):
        return False
    if picture[:, left : right + 1].mean() < _BLACK:
        return True  # no film is black from top to bottom in its middle
    # A spine may be even and white, but shades off: a gap has an edge.
    level = picture[:, left : right + 1].mean(axis=1)
    edges = [np.abs(picture[:, column] - level) > _STEP for column in (left - 2, right + 2)]
    return any(edge.mean() >= _ALONG for edge in edges)


def _contents(picture: np.ndarray, left: int, right: int) -> bool:
    """Whether there is more than one grey on both sides of the columns from `left` to before `right`."""
    return bool(picture[:, :left].std() > _CONTENT and picture[:, right:].std() > _CONTENT)


def _step(picture: np.ndarray) -> bool:
    """Whether grey jumps at one column along most of it, as where two films touch.

    Ribs, spine and heart have edges too, but none that is upright, or level, from edge to edge. The measure is the mean
    jump over two columns, without the rows of the strongest (a frame that somebody drew), times how much of the column
    jumps far more than its row does, and how much it stands out of the other columns. Single films and made pairs
    hardly overlap: see `docs/quality.md`.
    """
    if min(picture.shape) < _FEWEST:
        return False
    steps = np.abs(picture[:, 2:] - picture[:, :-2])
    first, last = (round(place * picture.shape[1]) - 1 for place in _WHERE)
    middle = _mean_jump(steps[:, first:last])
    best = first + int(np.argmax(middle))
    if middle.max() * np.sqrt(_MOST_OUT) < _SEAM:  # most films: whatever the rest says, it is none
        return False
    mean = _mean_jump(steps)
    usual = np.median(steps, axis=1, keepdims=True) + _NOISE
    share = (steps > 3 * usual).mean(axis=0)
    others = np.delete(mean, range(max(0, best - 3), min(len(mean), best + 4)))
    stands_out = min(mean[best] / (np.percentile(others, 98) + 1e-3), _MOST_OUT)
    if mean[best] * np.sqrt(share[best] * stands_out) < _SEAM:
        return False
    return _contents(picture, best, best + 3)


def _mean_jump(steps: np.ndarray) -> np.ndarray:
    """The mean of each column's jumps (H, W) without the strongest, (W,)."""
    weakest = np.sort(np.minimum(steps, _MOST_STEP), axis=0)[: round((1 - _BOX) * len(steps))]
    return weakest.mean(axis=0)
