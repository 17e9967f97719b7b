"""Lesions of one film pasted softly into the lungs of another, so that a lesion no longer goes with a hospital.

Sound lung is pasted in the same way, as a control: where only some of the patches are lesions, the paste itself tells
nothing. Films are lung crops (S, S) uint8 with their lungs (S, S) uint8, 0 or 1. All that is random comes from the
generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

# Sides of a patch as shares of the crop: larger lesions are cut to the middle, smaller ones are not worth pasting.
_WIDEST, _TALLEST, _LEAST, _LARGEST = 0.43, 0.51, 0.03, 0.78
_SICK = 0.6  # share of the patches that are lesions
_TRIES = 12  # to find sound lung in a donor
_MIN_LUNG, _MAX_LESION = 0.6, 0.02  # shares of a patch of sound lung
_MARKED = 0.4  # opacity of the patch from which on a place counts as lesion


class Donor(NamedTuple):
    """A film with lesions to cut out.

    Attributes:
        crop: (S, S) uint8. lungs: (S, S) uint8, 0 or 1.
        boxes: (n, 4) int, whole pixels x0, y0, x1, y1 around each lesion, x1 and y1 beside it; n at least 1.
    """

    crop: np.ndarray
    lungs: np.ndarray
    boxes: np.ndarray


class Pasted(NamedTuple):
    """A film with what was pasted into it.

    Attributes:
        crop: (S, S) uint8. lesions: (S, S) uint8, 1 where it is a pasted lesion within the lungs.
    """

    crop: np.ndarray
    lesions: np.ndarray


def lesion_map(boxes: np.ndarray, size: int) -> np.ndarray:
    """Boxes (n, 4) of x0, y0, x1, y1 as a map (size, size) uint8, 1 inside any of them."""
    marked = np.zeros((size, size), np.uint8)
    for x0, y0, x1, y1 in np.asarray(boxes, int).reshape(-1, 4):
        marked[y0:y1, x0:x1] = 1
    return marked


def paste(
    host: np.ndarray,
    lungs: np.ndarray,
    draw_donor: Callable[[np.random.Generator], Donor],
    draw: np.random.Generator,
    *,
    sick: float = _SICK,
) -> Pasted:
    """One to three patches of other films set into the lungs of `host`; neither it nor a donor is changed.

    Args:
        host: (S, S) uint8.
        lungs: (S, S) uint8, 0 or 1, of the host.
        draw_donor: gives the film that the next patch is cut from, on the same grid.
        draw: all that is random comes from it.
        sick: probability of each patch to be a lesion; the others are sound lung of the same shape and size.
    """
    film = host.astype(np.float32)
    lesions = np.zeros(host.shape, np.uint8)
    places = np.argwhere(lungs > 0)
    if not len(places):
        return Pasted(host.copy(), lesions)
    for _ in range(draw.integers(1, 4)):
        is_lesion = bool(draw.random() < sick)
        patch = _cut(draw_donor(draw), is_lesion, draw)
        if patch is not None:
            _set_in(film, lesions, places, patch, is_lesion, draw)
    return Pasted(np.round(np.clip(film, 0, 255)).astype(np.uint8), lesions * (lungs > 0))


def _cut(donor: Donor, is_lesion: bool, draw: np.random.Generator) -> np.ndarray | None:
    """A patch (h, w) float32 of a lesion or of sound lung, stretched and mirrored; None where there is none to cut."""
    size = donor.crop.shape[0]
    x0, y0, x1, y1 = (int(v) for v in donor.boxes[draw.integers(len(donor.boxes))])
    width, height = min(x1 - x0, int(_WIDEST * size)), min(y1 - y0, int(_TALLEST * size))
    if min(width, height) < _LEAST * size:
        return None
    corner = (x0 + (x1 - x0 - width) // 2, y0 + (y1 - y0 - height) // 2)
    if not is_lesion:
        sound = _sound_corner(donor, width, height, draw)
        if sound is None:
            return None
        corner = sound
    x, y = corner
    patch = donor.crop[y : y + height, x : x + width].astype(np.float32)
    zoom = draw.uniform(0.7, 1.3)
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    wide = zoom * draw.uniform(0.85, 1.15)
    patch = np.asarray(cv2.resize(patch, None, fx=wide, fy=zoom, interpolation=method), np.float32)
    if draw.random() < 0.5:
        patch = patch[:, ::-1]
    return patch if max(patch.shape) < _LARGEST * size and min(patch.shape) >= 0.02 * size else None


def _sound_corner(donor: Donor, width: int, height: int, draw: np.random.Generator) -> tuple[int, int] | None:
    """The corner (x, y) of a place of the donor that is mostly lung and has no lesion, None where none was found."""
    size = donor.crop.shape[0]
    lesions = lesion_map(donor.boxes, size)
    for _ in range(_TRIES):
        x, y = int(draw.integers(0, size - width)), int(draw.integers(0, size - height))
        part = np.s_[y : y + height, x : x + width]
        if donor.lungs[part].mean() > _MIN_LUNG and lesions[part].mean() < _MAX_LESION:
            return x, y
    return None


def _set_in(
    film: np.ndarray,
    lesions: np.ndarray,
    places: np.ndarray,
    patch: np.ndarray,
    is_lesion: bool,
    draw: np.random.Generator,
) -> None:
    """Blend a patch into `film` (S, S) float32 around one of `places` (n, 2), and mark it in `lesions`, both in place.

    A patch of sound lung takes the mark away from what it covers.
    """
    size, (height, width) = film.shape[0], patch.shape
    row, column = places[draw.integers(len(places))]
    top = int(np.clip(row - height // 2, 0, size - height))
    left = int(np.clip(column - width // 2, 0, size - width))
    part = np.s_[top : top + height, left : left + width]
    opacity = _soft_edge(height, width) * draw.uniform(0.75, 1)
    below = film[part]
    if is_lesion and draw.random() < 0.25:  # lies over the lung: it only makes places brighter
        patch = np.maximum(patch, below)
    patch = (patch - 128) * draw.uniform(0.85, 1.15) + 128 + draw.uniform(-10, 10)
    film[part] = below * (1 - opacity) + patch * opacity
    lesions[part] = np.where(opacity > _MARKED, np.uint8(is_lesion), lesions[part])


def _soft_edge(height: int, width: int) -> np.ndarray:
    """Opacity of a patch (height, width) float32 in [0, 1]: a rounded shape, 1 in the middle and 0 at the corners."""
    rows = np.abs(np.linspace(-1, 1, height))[:, None]
    columns = np.abs(np.linspace(-1, 1, width))[None, :]
    distance = np.sqrt(rows**3 + columns**3) ** (2 / 3)
    return np.clip((1.12 - distance) / 0.6, 0, 1).astype(np.float32)
