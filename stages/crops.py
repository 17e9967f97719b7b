"""What the classifier sees of a film: the lung crop, and the network's input made of it."""

from __future__ import annotations

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Box, Frame, coarse, resize, squared
from cxr_pipeline.stages.base import DETAIL, Record

VERSION = 2  # of this preprocessing: cached crops of another version are not used
_DARKEST, _BRIGHTEST = 0.12, 0.88  # where the lungs' 1st and 99th percentile come to lie; calcified spots keep headroom


def detail_of(size: int) -> int:
    """Pixels of a film's long side that a crop of `size` is made of: five times as many, as lungs are a half of it."""
    return max(DETAIL, 5 * size)


def lung_crop(record: Record, size: int) -> tuple[np.ndarray, np.ndarray, Frame]:
    """The lung box of a film on the network's grid, first half of the stage's one preprocessing.

    Grey levels are stretched by the lungs' own percentiles, so that neither exposure nor what lies outside the
    lungs (borders, plates, the abdomen) sets the contrast. The box is stretched to a square, so that the film's aspect
    ratio, which betrays its hospital, is gone.

    Without segmentation (a record without mask) it is the whole film, and all of it counts as lung.

    Returns:
        The crop (size, size) float32 in [0, 255], the lungs (size, size) uint8 0/1, and the frame that leads back to
        native pixels. Training keeps the crop `rounded`; a run does not round it, as that alone moves the scores of
        some films by one and a half: what no eye sees of a film would then decide.
    """
    height, width = record.film.size
    box = record.lung_box or Box(0, 0, width, height)
    frame = seen = Frame.crop((height, width), box, size)
    pixels, mask = record.film.pixels, record.mask
    if coarse(pixels.shape, record.film.aspect, size):  # cut from the film as it would be with square pixels
        pixels = squared(pixels, record.film.aspect)
        seen = Frame.crop(pixels.shape, box.scaled(pixels.shape[0] / height, pixels.shape[1] / width), size)
        if mask is not None and record.square_mask is not None:
            mask = record.square_mask
        elif mask is not None:
            mask = resize(mask * np.uint8(255), *pixels.shape) // 128
    crop = record.film.on(frame, detail_of(size)) if seen is frame else seen.to_grid(pixels)
    if seen is frame:
        lungs = record.lungs_on(frame).astype(np.uint8)
    elif mask is None:
        lungs = np.ones(crop.shape, np.uint8)
    else:
        lungs = (seen.to_grid(mask, times=255) >= 128).astype(np.uint8)
    inside = crop[lungs > 0]
    low, high = map(float, np.percentile(inside, [1, 99])) if inside.size else (0.0, 1.0)  # all in single precision
    scaled = _DARKEST + (_BRIGHTEST - _DARKEST) * (crop - low) / max(high - low, 1e-3)
    return (np.clip(scaled, 0, 1) * 255).astype(np.float32, copy=False), lungs, frame


def rounded(crop: np.ndarray) -> np.ndarray:
    """A crop of `lung_crop` as uint8, to be kept or looked at."""
    return np.round(crop).astype(np.uint8)


def encoder_input(crop: np.ndarray, lungs: np.ndarray, mode: str, pool: str = "all") -> np.ndarray:
    """The network's input of a crop and its lungs, second half of the preprocessing (after augmentation in training).

    Args:
        crop: (H, W) uint8 or float32, 0 to 255. lungs: (H, W) uint8, 0 or 1.
        mode: "none" and "crop" the crop as it is; "masked" all but the lungs faded to black; "channel" the lungs as a
            second channel.
        pool: "lungs" and "zones" add the lungs as the second channel too, for the network to average its features over.

    Returns:
        (H, W, 1 or 2) float32 in [0, 1].
    """
    grey = crop.astype(np.float32) / 255.0
    if mode == "masked":
        grey = grey * soft_lungs(lungs)
    if mode == "channel" or pool != "all":
        return np.stack([grey, lungs.astype(np.float32)], axis=-1)
    return grey[..., None]


def soft_lungs(lungs: np.ndarray) -> np.ndarray:
    """The lungs grown by 4 % of the crop with a soft edge, (H, W) float32 in [0, 1].

    Grown, because pleura, hilar nodes and the lung behind a wrongly placed outline are where disease shows too; soft,
    because a hard edge is the strongest thing in the picture.
    """
    reach = max(1, round(0.04 * lungs.shape[0]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.GaussianBlur(cv2.dilate(lungs, kernel).astype(np.float32), (0, 0), reach / 2)
