"""The films that the segmentation learns from, as arrays on its grid; and the pictures of those it does worst on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Frame
from cxr_pipeline.data.radiograph import RadiographError
from cxr_pipeline.stages.base import Record, needed
from cxr_pipeline.stages.films import read_mask, stream

if TYPE_CHECKING:
    from cxr_pipeline.data.manifest import Manifest

log = logging.getLogger("cxr.segment")

TRUE, FOUND = (80, 220, 80), (60, 60, 255)  # BGR, of the outlines in worst.png
_UNKNOWN = 4  # see `models.training.losses.lungs_and_heart`; not imported: that imports Keras


def preprocess(pixels: np.ndarray, size: int, aspect: float = 1.0) -> tuple[np.ndarray, Frame]:
    """What the network sees of a film, in training, running and evaluation alike.

    The film is letterboxed (its aspect ratio kept) and its grey levels stretched from the 1st to the 99th percentile of
    what is not black border, because exposure differs between hospitals far more than anatomy does.

    Args:
        pixels: (H, W) float32 in [0, 1].
        size: side of the network's square.
        aspect: height of a pixel divided by its width.

    Returns:
        (size, size) float32 in [0, 1], and the frame that leads back to native pixels.
    """
    frame = Frame.letterbox(pixels.shape, size, aspect)
    return stretch(frame.to_grid(pixels)), frame


def stretch(grid: np.ndarray) -> np.ndarray:
    """Grey levels (h, w) from the 1st to the 99th percentile of what is not black border; float32 in [0, 1]."""
    film = grid[grid > 0.02]
    if film.size == 0:
        return grid
    low, high = map(float, np.percentile(film, [1, 99]))  # so that all stays in single precision
    return np.clip((grid - low) / max(high - low, 1e-3), 0.0, 1.0).astype(np.float32)


def encode(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The network's input (H, W, 1) float32 in [0, 1] of a film (H, W) uint8; the mask does not change it."""
    return (image.astype(np.float32) / 255.0)[..., None]


def arrays_of(data: Manifest, size: int, folder: Path, *, heart: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The preprocessed films and masks of a manifest on the network's grid, two (N, size, size) uint8 arrays.

    `heart`: masks are codes of lungs and heart, see `models.training.losses.lungs_and_heart`.
    """
    from cxr_pipeline.data.cache import kept_arrays
    from cxr_pipeline.data.filmmasks import film_mask

    def rows() -> Any:
        for number, (row, record) in enumerate(stream(data, description="reading films")):
            if not record.ok:
                continue
            try:
                mask = film_mask(data, row, record.size)
                if heart and row.get("heart_mask"):
                    mask = mask + 2 * read_mask(data.path(row["heart_mask"]), record.size)
                elif heart:
                    mask = mask + np.uint8(_UNKNOWN)
            except RadiographError as error:
                log.warning("left out: %s", error)
                continue
            grid, frame = preprocess(record.film.pixels, size, record.film.aspect)
            yield number, {"image": np.round(grid * 255).astype(np.uint8), "mask": frame.to_grid(mask, nearest=True)}

    key = ["segment", 2, size, sorted(data.table["image"]), data.content_hash(labels=False), str(data.root)]
    if heart:
        key.append(sorted(data.table["heart_mask"]) if "heart_mask" in data.table else [])
    arrays, _ = kept_arrays(folder, key, len(data), {"image": (size, size), "mask": (size, size)}, rows)
    return arrays["image"], arrays["mask"]


def tile_of(record: Record, truth: np.ndarray) -> np.ndarray:
    """The film with the true outline in green and the found one in red, for the contact sheet; (h, w, 3) uint8 BGR."""
    scale = 256 / max(truth.shape)
    size = (max(1, round(truth.shape[1] * scale)), max(1, round(truth.shape[0] * scale)))
    pixels = record.film.pixels if record.film.pixels.shape == truth.shape else np.zeros(truth.shape, np.float32)
    tile = cv2.cvtColor(
        (cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR
    )
    for mask, colour in ((truth, TRUE), (needed(record.mask, "mask"), FOUND)):
        small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outlines, -1, colour, 1)
    return tile
