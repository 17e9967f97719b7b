"""Large films with fewer pixels than they have: what networks and overlays see is far smaller still.

Either decoded at a half, a quarter or an eighth of their size: only plain kinds, for where anything about a film has to
be assumed, corrected or refused, it is decoded whole. Or decoded whole, and held as means of so many pixels each way.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.data.formats.codecs import StreamHeader

STEPS = (8, 4, 2)  # native pixels by one that is decoded, the coarsest first


@dataclass(frozen=True)
class Small:
    """How the pixels of a small decoding lie on the film.

    Attributes:
        native: (height, width) of the film.
        scale: native pixels from one decoded pixel to the next.
        centre: native coordinate of the centre of the first one, down and across (0.5 is the centre of a native pixel).
        rough: whether they may differ by more from means of the film's own pixels than scores can bear.
    """

    native: tuple[int, int]
    scale: int
    centre: float
    rough: bool = False

    def coarser(self, by: int) -> Small:
        """How the means of `by` times `by` of its pixels lie on the film."""
        return Small(self.native, self.scale * by, self.centre + self.scale * (by - 1) / 2, self.rough)


@dataclass(frozen=True)
class Wanted:
    """What is to be kept of a large film that was decoded whole.

    Attributes:
        least: pixels that its long side has to keep.
        grids: sides of squares on which all of the film is seen: they are made before pixels are given up.
    """

    least: int
    grids: tuple[int, ...] = ()


def means(pixels: np.ndarray, step: int) -> np.ndarray:
    """The means (ceil(H / step), ceil(W / step)) float32 of squares of a film (H, W) float32.

    The last row and column hold the means of what is left there, which may be less than a square. With a step of 1, the
    film itself.
    """
    if step == 1:
        return pixels
    height, width = pixels.shape
    out = np.empty((-(-height // step), -(-width // step)), np.float32)
    for y, down in _whole_and_rest(height, step):
        for x, across in _whole_and_rest(width, step):
            if out[y, x].size:
                size = out[y, x].shape[::-1]
                out[y, x] = cv2.resize(pixels[down, across], size, interpolation=cv2.INTER_AREA)
    return out


def _whole_and_rest(side: int, step: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the means of whole squares lie along a side, and their pixels; then the same of what is left."""
    whole = side // step
    return (slice(0, whole), slice(0, whole * step)), (slice(whole, None), slice(whole * step, None))


def step_for(height: int, width: int, least: int) -> int:
    """The coarsest step at which a film's long side still has `least` pixels; 1 where none is."""
    return next((step for step in STEPS if max(height, width) >= step * least), 1)


def j2k_samples(stream: bytes, header: StreamHeader, step: int) -> np.ndarray | None:
    """Samples (h, w) uint16 of a grey, unsigned JPEG 2000 stream of 9 to 16 bits at a lower resolution level.

    Returns:
        None where the stream has no such level, is cut off, or is not decoded in this way.
    """
    from PIL import Image

    start = stream.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    coding = stream.find(b"\xff\x52", start, start + 4096)
    levels = step.bit_length() - 1
    if start < 0 or coding < 0 or stream[coding + 9] < levels or b"\xff\xd9" not in stream[-64:]:
        return None
    if any(stream[start + 16 : start + 24]) or any(stream[start + 32 : start + 40]):  # offsets of picture and tiles
        return None
    picture: Any = Image.open(io.BytesIO(stream), formats=["JPEG2000"])
    picture.reduce = levels  # of Pillow's JPEG 2000 pictures alone: no method there
    try:
        picture.load()
    except OSError:  # it takes some sizes for broken at deep levels
        return None
    samples = np.asarray(picture)
    if samples.shape != (-(-header.height // step), -(-header.width // step)):
        return None
    if picture.mode != "I;16":  # Pillow moves them up to 16 bits
        return None
    return _as_means(samples >> (16 - header.bits), step, header.bits, reversible=stream[coding + 13] == 1)


def _as_means(samples: np.ndarray, step: int, bits: int, *, reversible: bool) -> np.ndarray:
    """Samples of a low band as the means of squares of the film's pixels would be: no sharper, and no brighter.

    The low-pass filter of the 5/3 wavelet makes a film sharper, that of the 9/7 one blurs it, and means blur it a
    little (ISO/IEC 15444-1, annex F). Up to the second order of the frequency w their responses are 1 - a w^2, and
    those of further levels multiply. A kernel of three samples makes up for the difference. The reversible wavelet
    rounds down on the way, which leaves each level half a step too bright.
    """
    bend = -0.25 if reversible else 0.23018  # a of one level; that of means is (step^2 - 1) / 24
    side = (1 / 24 - bend / 3) * (1 - 1 / step**2)
    kernel = np.array([side, 1 - 2 * side, side], np.float32)
    excess = 0.5 * (step.bit_length() - 1) if reversible else 0.0
    blurred = cv2.sepFilter2D(samples.astype(np.float32), -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.clip(np.round(blurred - excess), 0, (1 << bits) - 1).astype(samples.dtype)
