"""From the samples that a decoder gives to grey levels in [0, 1], whatever their type, depth and channels."""

from __future__ import annotations

import cv2
import numpy as np

from cxr_pipeline.data.formats.base import Decoded, RadiographError

# What a 16-bit sample may really hold: detectors store 10, 12 or 14 bits in 16-bit files and leave the rest empty.
DEPTHS = (8, 10, 12, 14, 16)
_MARKER = 0.5  # share of the film that may be at the one value far above all others
_STRAY = 0.001  # share that may lie between the film and that value: smoothed edges of letters
_MOST_STRAY = 0.02  # the same where letters are many: at most twice as many pixels as the letters themselves
THUMBNAIL = 512  # pixels of a colour thumbnail's longer side


def depth_of(values: np.ndarray, most: int) -> tuple[int, bool]:
    """The bits that unsigned samples really hold, and whether a burnt-in marker lies above the film's own.

    A film of 12 bits with letters at 65535 holds 12 bits: nothing lies between, and the letters are one value.

    Args:
        values: unsigned integers, any shape, at least one.
        most: bits that the file says.
    """
    largest = int(values.max())
    depth = _filled(largest, most)
    if depth <= 8 or largest >= 1 << 16:
        return depth, False
    return depth_of_counts(np.bincount(values.ravel(), minlength=largest + 1), most)


def depth_of_counts(counts: np.ndarray, most: int) -> tuple[int, bool]:
    """As `depth_of`, of samples that were counted: `counts` (N,) by value, up to the largest that there is or beyond.

    Samples over 16 bits have no marker.
    """
    largest = int(np.flatnonzero(counts)[-1])
    depth = _filled(largest, most)
    if depth <= 8 or largest >= 1 << 16:
        return depth, False
    total = int(counts.sum())
    for bits in DEPTHS:
        if 3 << bits > largest:
            return depth, False
        top = int(0.98 * largest)
        above, marker = int(counts[1 << bits :].sum()), int(counts[top:].sum())
        stray = max(_STRAY * total, min(2 * marker, _MOST_STRAY * total))
        if above <= _MARKER * total and above - marker <= stray:
            return bits, True
    return depth, False


def _filled(largest: int, most: int) -> int:
    """The least of the usual depths that holds a sample."""
    return next((bits for bits in DEPTHS if largest < 1 << bits and bits <= most), most)


def normalised(samples: np.ndarray, name: str, alpha: bool = False) -> tuple[np.ndarray, int, list[str]]:
    """Samples of any type as float32 in [0, 1], the bits that they hold, and warnings.

    Unsigned integers are divided by the range of their depth (see `depth_of`), signed ones without negative values
    likewise; other signed ones, 32-bit integers over 16 bits, and floats beyond [0, 1] by the range that they span.

    Args:
        samples: (H, W) or (H, W, C), bool, integer or float.
        name: the file's path, for errors.
        alpha: whether the last channel is left out of the depth.

    Raises:
        RadiographError: infinite or NaN samples.
    """
    warnings: list[str] = []
    bits = 8 * samples.dtype.itemsize
    if samples.dtype.kind == "b":
        return samples.astype(np.float32), 1, warnings
    shown = samples[..., :-1] if alpha else samples
    if samples.dtype.kind == "f":
        if not np.isfinite(shown).all():
            raise RadiographError(
                name, "some grey levels are infinite or not a number. Export the film again", "not_finite"
            )
        low, high = float(shown.min()), float(shown.max())
        if low >= 0 and high <= 1:
            return samples.astype(np.float32), bits, warnings
        if low >= 0 and float(np.ceil(high)) == high and high in (255.0, 1023.0, 4095.0, 16383.0, 65535.0):
            low = 0.0  # integers that a program kept as floats
        else:
            warnings.append(f"its values, {low:g} to {high:g}, were taken as the whole range from black to white")
        return _spread(samples, low, high), bits, warnings
    low, high = int(shown.min()), int(shown.max())
    if low < 0 or high >= 1 << 16:
        warnings.append(f"its values, {low} to {high}, were taken as the whole range from black to white")
        return _spread(samples, low, high), min(16, max(1, (high - low).bit_length())), warnings
    bits, marker = depth_of(shown.astype(np.uint16, copy=False), bits) if bits > 8 else (8, False)
    if marker:
        warnings.append(f"a marker at {high} lies far above the film's own {bits} bits and was not counted")
    grey = samples.astype(np.float32)
    grey *= np.float32(1.0 / ((1 << bits) - 1))
    return np.minimum(grey, 1, out=grey) if marker else grey, bits, warnings


def _spread(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    spread = (samples.astype(np.float64) - low) / max(high - low, np.finfo(np.float32).tiny)
    return np.clip(spread, 0, 1).astype(np.float32)


def film(samples: np.ndarray, name: str, *, orientation: int = 1, inverted: bool = False) -> Decoded:
    """The film in a decoder's samples.

    Colour becomes grey (ITU-R BT.601), transparent pixels black, and EXIF orientation is applied.

    Args:
        samples: (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGBA; bool, integer or float.
        name: the file's path, for errors.
        orientation: EXIF orientation, 1 to 8.
        inverted: whether 0 is white.

    Raises:
        RadiographError: infinite samples, or a picture that is transparent everywhere.
    """
    if samples.ndim == 3 and samples.shape[2] == 1:
        samples = samples[..., 0]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    if channels > 4:
        raise RadiographError(
            name, f"it has {channels} channels; a film has one, or three of colour. Save it as grey", "channels"
        )
    opaque = None
    if channels in (2, 4):
        opaque = _opacity(samples[..., -1], name)
    grey, bits, warnings = normalised(samples, name, alpha=opaque is not None)
    colour = None
    if channels in (3, 4):
        grey = np.ascontiguousarray(grey[..., :3])
        colour = thumbnail(grey)
        grey = cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY)
    elif channels == 2:
        grey = grey[..., 0]
    if inverted:
        grey = 1 - grey
    if opaque is not None:
        grey = grey * opaque
    pixels = upright(grey.astype(np.float32, copy=False), orientation)
    return Decoded(pixels, bits, colour=colour, warnings=warnings)


def _opacity(alpha: np.ndarray, name: str) -> np.ndarray:
    """An alpha channel (H, W) as float32 in [0, 1]: 1 where the film is seen, or seen best."""
    if not alpha.any():
        raise RadiographError(
            name,
            "it is transparent everywhere (alpha is 0), so viewers show nothing of it. Save it without transparency",
            "transparent",
        )
    if alpha.dtype.kind == "f":
        return np.clip(alpha, 0, 1).astype(np.float32)
    # By its own largest value: programs write 1 or 255 for opaque, whatever the depth.
    return alpha.astype(np.float32) / np.float32(alpha.max())


def thumbnail(colour: np.ndarray) -> np.ndarray | None:
    """A colour picture (H, W, 3) float32 in [0, 1] as uint8, at most 512 px a side; None where all of it is grey."""
    height, width = colour.shape[:2]
    scale = min(1.0, THUMBNAIL / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        colour = cv2.resize(colour, size, interpolation=cv2.INTER_AREA)
    small = np.round(np.clip(colour, 0, 1) * 255).astype(np.uint8)
    return small if int((small.max(axis=2) - small.min(axis=2)).max()) > 8 else None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 (Exif 2.32, tag 274) to (H, W); other values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    flips = {2: (False, True), 3: (True, True), 4: (True, False), 6: (False, True), 7: (True, True), 8: (True, False)}
    down, across = flips.get(orientation, (False, False))
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])
