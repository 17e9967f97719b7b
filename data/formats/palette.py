"""DICOM films in colour: RGB, YBR and palettes, as grey levels and a colour thumbnail."""

from __future__ import annotations

import cv2
import numpy as np
import pydicom
from pydicom.pixels.processing import _expand_segmented_lut

from cxr_pipeline.data.formats.base import Decoded, RadiographError, short
from cxr_pipeline.data.formats.dicom_values import Stored
from cxr_pipeline.data.formats.grey import DEPTHS, thumbnail

_COLOURS = ("Red", "Green", "Blue")


def coloured(dataset: pydicom.Dataset, stored: Stored, notes: list[str], name: str) -> Decoded:
    """A film (H, W, 3) of RGB or YBR, or (H, W) of a palette.

    Raises:
        RadiographError: the palette cannot be read.
    """
    if stored.values.ndim == 2:
        rgb, bits = _by_palette(dataset, stored, notes, name)
    else:
        largest = int(stored.values.max())
        bits = stored.bits
        if bits > 8 and largest < 1 << (bits - 1):
            bits = next((depth for depth in DEPTHS if largest < 1 << depth), bits)
            notes.append(f"BitsStored (0028,0101) is {stored.bits}, the film's values fill {bits}")
        rgb = stored.values.astype(np.float32) / np.float32((1 << bits) - 1)
        if stored.photometric.startswith("YBR"):
            rgb = _from_ybr(rgb)
    rgb = np.ascontiguousarray(np.clip(rgb, 0, 1), np.float32)
    return Decoded(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), bits, colour=thumbnail(rgb))


def _from_ybr(ybr: np.ndarray) -> np.ndarray:
    """YBR_FULL (H, W, 3) in [0, 1] as RGB (PS3.3 C.7.6.3.1.2)."""
    luma, blue, red = ybr[..., 0], ybr[..., 1] - 128 / 255, ybr[..., 2] - 128 / 255
    return np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)


def _by_palette(dataset: pydicom.Dataset, stored: Stored, notes: list[str], name: str) -> tuple[np.ndarray, int]:
    """The colours (H, W, 3) float32 in [0, 1] of palette indices, and the bits of a colour."""
    try:
        tables = [_table(dataset, colour) for colour in _COLOURS]
    except RadiographError as error:
        raise RadiographError(name, error.reason, error.code) from None
    except Exception as error:
        raise RadiographError(
            name,
            f"PhotometricInterpretation (0028,0004) is PALETTE COLOR, and its palette cannot be read ({short(error)}). "
            "Export the film as grey",
            "damaged",
        ) from error
    bits = max(table[2] for table in tables)
    largest = max(int(table[0].max()) for table in tables)
    if largest >= 1 << bits or (bits == 16 and largest < 1 << 8):
        held = 8 if largest < 1 << 8 else 16
        notes.append(f"the palette's descriptor (0028,1101) says {bits} bits, its entries hold {held}")
        bits = held
    planes = []
    for entries, first, _ in tables:
        if stored.signed and first > 32767:
            first -= 1 << 16
        places = np.clip(stored.values.astype(np.int64) - first, 0, len(entries) - 1)
        planes.append((entries / ((1 << bits) - 1)).astype(np.float32)[places])
    return np.stack(planes, axis=-1), bits


def _table(dataset: pydicom.Dataset, colour: str) -> tuple[np.ndarray, int, int]:
    """The entries (N,) of a colour, the index of the first, and the bits that the descriptor says."""
    descriptor = dataset.get(f"{colour}PaletteColorLookupTableDescriptor")
    data = dataset.get(f"{colour}PaletteColorLookupTableData")
    segments = dataset.get(f"Segmented{colour}PaletteColorLookupTableData")
    if descriptor is None or (data is None and segments is None):
        raise RadiographError(
            "",
            f"PhotometricInterpretation (0028,0004) is PALETTE COLOR, and the {colour.lower()} palette is missing. "
            "Export the film as grey",
            "damaged",
        )
    count, first, bits = (int(value) for value in descriptor)
    count = count or 1 << 16
    big = str(dataset.file_meta.TransferSyntaxUID) == "1.2.840.10008.1.2.2"
    order = ">" if big else "<"
    if not data:
        if bits > 8:
            words = np.frombuffer(bytes(segments), f"{order}u2")
            entries = _expand_segmented_lut(tuple(words.tolist()), f"{order}{len(words)}H")
        else:
            entries = _expand_segmented_lut(tuple(bytes(segments)), f"{order}{len(segments)}B")
        return np.asarray(entries[:count], np.float64), first, bits
    if isinstance(data, (bytes, bytearray)):
        raw = np.frombuffer(bytes(data), np.uint8)
    else:
        raw = np.atleast_1d(np.asarray(data, np.int64)).astype(f"{order}u2").view(np.uint8)
    if len(raw) >= 2 * count:
        return raw[: 2 * count].view(f"{order}u2").astype(np.float64), first, bits
    if big:  # bytes within 16-bit words
        raw = raw[: len(raw) // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
    return raw[:count].astype(np.float64), first, bits
