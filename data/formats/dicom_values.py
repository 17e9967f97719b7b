"""Integers of a DICOM film as they are meant: shifted by the high bit, cut to the bits stored, with their sign."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_FEW_LEVELS = 8  # of a mask: its steps say nothing of the sign
_SAMPLED = 256  # rows on which the roughness of two readings is compared


class Stored(NamedTuple):
    """Stored values: `values` (H, W) or (H, W, 3) of integers or floats, bits of them, sign, and colour space.

    `shift`: bits that they were shifted down by; `cut`: whether bits above those stored were cut off.
    """

    values: np.ndarray
    bits: int
    signed: bool
    photometric: str
    shift: int = 0
    cut: bool = False


class Layout(NamedTuple):
    """What the header says of the pixels, with what it leaves out filled in."""

    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: int
    photometric: str


def settled(values: np.ndarray, layout: Layout, notes: list[str]) -> Stored:
    """Values of the container's width as those that are meant: shifted, cut to the bits stored, and signed."""
    bits, shift = layout.stored, layout.high - layout.stored + 1
    if values.dtype.itemsize > 4:
        return Stored(values.astype(np.int64), bits, layout.signed, layout.photometric)
    largest = int(values.max())
    if shift:
        if largest < 1 << bits and np.any(values & ((1 << shift) - 1)):
            notes.append(f"HighBit (0028,0102) is {layout.high}, the values fill the low bits: not shifted")
            shift = 0
        else:
            values = values >> shift
            largest >>= shift
    cut = largest >= 1 << bits
    if cut:
        bits, values = _excess(values, bits, layout, notes)
        cut = bits == layout.stored
    if bits <= 16:
        values = values.astype(np.int32)
    else:
        values = values.astype(np.int64)
    signed = layout.signed
    if layout.samples == 1:
        signed = _sign(values, bits, signed, notes)
    if signed:
        half = 1 << (bits - 1)
        values = (values ^ half) - half
    return Stored(values, bits, signed, layout.photometric, shift, cut)


def _excess(values: np.ndarray, bits: int, layout: Layout, notes: list[str]) -> tuple[int, np.ndarray]:
    """Bits and values where some lie beyond the bits stored: overlays and sign bits are cut off, and film is kept."""
    cut = values & ((1 << bits) - 1)
    if layout.signed:
        above = (values >> bits).astype(np.int64)
        full = (1 << (layout.allocated - bits)) - 1
        sign = (cut >> (bits - 1)).astype(np.int64)
        if np.array_equal(above, sign * full):  # the sign is carried on to the container's own
            return bits, cut
    if roughness(cut) <= 2 * roughness(values) * (1 << bits) / max(1, int(values.max())) or _overlay(values, bits):
        return bits, cut
    held = int(values.max()).bit_length()
    notes.append(f"BitsStored (0028,0101) is {bits}, the values reach {int(values.max())}: {held} bits were taken")
    return held, values


def _overlay(values: np.ndarray, bits: int) -> bool:
    """Whether the bits above are two-valued marks, as overlays in unused bits are: few, or not a film's grey levels."""
    above = values >> bits
    return len(np.unique(above[:: max(1, above.shape[0] // 64)])) <= 2 and float((above > 0).mean()) < 0.3


def _sign(values: np.ndarray, bits: int, signed: bool, notes: list[str]) -> bool:
    """Whether unsigned `values` of `bits` are meant as signed ones: by the header, unless that tears them."""
    half = 1 << (bits - 1)
    if int(values.max()) < half:
        return signed  # no sign bit is set: both readings are the same
    rows = _sampled(values)
    plain, turned = roughness(rows), roughness((rows ^ half) - half)
    if signed and plain < 0.5 * turned:
        notes.append("PixelRepresentation (0028,0103) says signed, the values are unsigned")
        return False
    if signed or turned >= 0.5 * plain or len(np.unique(rows)) <= _FEW_LEVELS:
        return signed
    as_signed = (values ^ half) - half
    if int(np.ptp(as_signed)) <= 0.5 * int(np.ptp(values)):
        notes.append("PixelRepresentation (0028,0103) says unsigned, the values are signed")
        return True
    return False


def roughness(values: np.ndarray) -> float:
    """The mean step between neighbours of (H, W) or (H, W, C), on a part of its rows."""
    rows = _sampled(values)
    return float(np.abs(np.diff(rows.astype(np.float64), axis=1)).mean()) if values.shape[1] > 1 else 0.0


def _sampled(values: np.ndarray) -> np.ndarray:
    """Some of the rows of (H, W) or (H, W, C); of so few rows, all."""
    return values[:: max(1, values.shape[0] // _SAMPLED)]
