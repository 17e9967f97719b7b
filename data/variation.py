"""Lung crops as another machine, another archive and another patient might have made them: geometry, resolution, tone.

Stronger than `data.augment` in tone, and with a map of lesions that moves along. All that is random comes from the
generator that is handed in; pure numpy and OpenCV, so that threads can make films side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

_DARKEST, _SPAN = 0.12, 0.76  # where the lungs' percentiles come to lie in running; see `stages.crops.lung_crop`


class Varied(NamedTuple):
    """A film on the network's grid, all (size, size) uint8: grey levels, lungs 0 or 1, lesions 0 or 1."""

    crop: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray


def varied(crop: np.ndarray, lungs: np.ndarray, lesions: np.ndarray, size: int, draw: np.random.Generator) -> Varied:
    """One film, changed at random.

    Args:
        crop: (S, S) uint8. lungs: (S, S) uint8, 0 or 1. lesions: (S, S) uint8, 0 or 1.
        size: side of the network's grid.
        draw: all that is random comes from it.
    """
    move = _movement(crop.shape[0], size, draw)
    crop = cv2.warpAffine(_resolution(crop, draw), move, (size, size), flags=cv2.INTER_LINEAR)
    lungs = cv2.warpAffine(lungs, move, (size, size), flags=cv2.INTER_NEAREST)
    lesions = cv2.warpAffine(lesions, move, (size, size), flags=cv2.INTER_NEAREST)
    crop = _texture(cv2.LUT(crop, _tone(draw)), draw)
    if draw.random() < 0.75 and lungs.any():  # most of the time the film's scale is set again, as running does it
        crop = _rescaled(crop, lungs)
    if draw.random() < 0.1:
        _mark(crop, draw)
    return Varied(crop, lungs, lesions)


def _movement(before: int, size: int, draw: np.random.Generator) -> np.ndarray:
    """A matrix (2, 3) float32 that turns, stretches, shears and shifts, from the crop's grid to the network's."""
    angle = np.deg2rad(draw.uniform(-12, 12))
    across, down = draw.uniform(0.85, 1.18, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([[across, draw.uniform(-0.07, 0.07)], [0, down]])
    linear = turn @ stretch * (size / before)
    middle = size / 2 + draw.uniform(-0.06, 0.06, 2) * size
    shift = middle - linear @ np.array([before / 2, before / 2])
    return np.column_stack([linear, shift]).astype(np.float32)


def _resolution(crop: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Half of the films go through a coarser grid first."""
    if draw.random() >= 0.5:
        return crop
    side = max(8, int(draw.uniform(0.35, 0.9) * crop.shape[0]))
    small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    method = cv2.INTER_LINEAR if draw.random() < 0.7 else cv2.INTER_CUBIC
    return cv2.resize(small, crop.shape[::-1], interpolation=method)


def _tone(draw: np.random.Generator) -> np.ndarray:
    """What becomes of each grey level, (256,) uint8: a gamma, half of the time a random rising curve, a contrast."""
    levels = np.linspace(0, 1, 256) ** np.exp(draw.normal(0, 0.35))
    if draw.random() < 0.5:
        knots = np.linspace(0, 1, 5)
        levels = np.interp(levels, knots, np.sort(np.clip(knots + draw.normal(0, 0.07, 5), 0, 1)))
    levels = (levels - 0.5) * np.exp(draw.normal(0, 0.22)) + 0.5 + draw.normal(0, 0.07)
    return np.round(np.clip(levels, 0, 1) * 255).astype(np.uint8)


def _texture(crop: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Blur, sharpening, local equalisation, noise or compression, one of them on 60 % of the films."""
    chance = draw.random()
    if chance < 0.12:
        return cv2.GaussianBlur(crop, (0, 0), draw.uniform(0.4, 1.3))
    if chance < 0.27:
        coarse = cv2.GaussianBlur(crop, (0, 0), draw.uniform(1, 3)).astype(np.float32)
        return _grey(crop + draw.uniform(0.2, 1.0) * (crop - coarse))
    if chance < 0.37:
        return cv2.createCLAHE(draw.uniform(1, 3.5), (6, 6)).apply(crop)
    if chance < 0.5:
        return _grey(crop + draw.normal(0, draw.uniform(2, 10), crop.shape))
    if chance < 0.6:
        quality = int(draw.integers(30, 90))
        data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        again = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
        assert again is not None  # what was just encoded can be decoded
        return again
    return crop


def _rescaled(crop: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Grey levels stretched by the lungs' own 1st and 99th percentile."""
    low, high = np.percentile(crop[lungs > 0], [1, 99])
    return _grey((_DARKEST + _SPAN * (crop.astype(np.float32) - low) / max(high - low, 3)) * 255)


def _mark(crop: np.ndarray, draw: np.random.Generator) -> None:
    """One or two plates, black or white, drawn into `crop` in place."""
    size = crop.shape[0]
    for _ in range(draw.integers(1, 3)):
        x, y = (int(draw.uniform(0, 0.9) * size) for _ in range(2))
        width, height = int(draw.uniform(0.04, 0.2) * size), int(draw.uniform(0.03, 0.1) * size)
        cv2.rectangle(crop, (x, y), (x + width, y + height), int(draw.choice([0, 255, 230])), -1)


def _grey(levels: np.ndarray) -> np.ndarray:
    return np.round(np.clip(levels, 0, 255)).astype(np.uint8)
