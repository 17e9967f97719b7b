"""One rule for the grey scale of a DICOM film.

What pydicom's own functions give: Modality LUT or rescale, then the first VOI LUT or window, then MONOCHROME1 inversion
once (PS3.3 C.7.6.3, C.11.1, C.11.2). Where the header is silent or contradicts the values, the range that the values
span, and a warning that names the tag. All of it is worked out on a table with an entry for each stored value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pydicom

from cxr_pipeline.data.formats.dicom_header import number, text
from cxr_pipeline.data.formats.dicom_values import Stored
from cxr_pipeline.data.formats.grey import depth_of_counts

_STEPS = 1 << 16  # entries of the table, at most
_INSIDE = 0.05  # share of the film that a window must leave between black and white
_WHITE = 0.8  # share of the film that a window may leave all white: more, and it is that of another depth
_LEVELS = 16  # of the film that a window must keep apart
_NARROW = 0.25  # of the range by the header; values that span less of it contradict it
_SMOOTH = 16.0  # mean step from entry to entry of a table of bytes; words that are read as bytes step by far more
_MOST_PADDING = 0.95  # share of the film; a padding value that covers more is none


@dataclass
class Levels:
    """Stored values as places in a table.

    Attributes:
        places: (H, W) integers, the place of each pixel in the table.
        values: (N,) float64, the stored value of each place, ascending.
        counts: (N,) how many pixels of the film hold it; 0 for padding.
        padding: (N,) bool, whether it marks what is no film.
        bits: of a stored value.
        signed: whether stored values may be negative.
        shift: bits that they were shifted down by.
        cut: whether bits above those stored were cut off.
    """

    places: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    padding: np.ndarray
    bits: int
    signed: bool
    shift: int = 0
    cut: bool = False

    def share(self, chosen: np.ndarray) -> float:
        """The share of the film's pixels whose values are chosen (N,) bool."""
        return float(self.counts[chosen].sum() / max(1, self.counts.sum()))

    def present(self, table: np.ndarray) -> np.ndarray:
        """The entries of a table (N,) that the film holds."""
        return table[self.counts > 0]


def grey_levels(dataset: pydicom.Dataset, stored: Stored, notes: list[str]) -> tuple[np.ndarray, int]:
    """Stored values (H, W) as float32 in [0, 1], bright = dense, and the bits that they hold.

    Args:
        dataset: its header.
        stored: its values; finite.
        notes: gets a sentence for each contradiction.
    """
    levels = _levels(stored)
    _mark_padding(dataset, levels, notes)
    bits = levels.bits
    rescaled, low, high, bits = _modality(dataset, levels, notes)
    shown = _voi(dataset, levels, rescaled, notes)
    if shown is None:
        low, high, bits = _range(levels, rescaled, low, high, bits, notes)
        shown = (rescaled - low) / max(high - low, 1e-12)
    shown = np.clip(shown, 0, 1)
    if stored.photometric == "MONOCHROME1":
        shown = 1 - shown
    shown[levels.padding] = 0
    return shown.astype(np.float32)[levels.places], bits


def _levels(stored: Stored) -> Levels:
    values = stored.values
    low, high = values.min(), values.max()
    if values.dtype.kind == "i" and high - low < _STEPS:
        places = (values - low).astype(np.int32)
        table = np.arange(int(low), int(high) + 1, dtype=np.float64)
    else:  # floats and 32 bits: in steps far finer than a film's noise
        step = (float(high) - float(low)) / (_STEPS - 1) or 1.0
        places = np.round((values - low) / step).astype(np.int32)
        table = float(low) + np.arange(int(places.max()) + 1, dtype=np.float64) * step
    counts = np.bincount(places.ravel(), minlength=len(table))
    padding = np.zeros(len(table), bool)
    return Levels(places, table, counts, padding, stored.bits, stored.signed, stored.shift, stored.cut)


def _mark_padding(dataset: pydicom.Dataset, levels: Levels, notes: list[str]) -> None:
    """Pixel Padding Value (0028,0120), with its Range Limit (0028,0121) where there is one (PS3.3 C.7.5.1.1.2)."""
    first, last = number(dataset, "PixelPaddingValue"), number(dataset, "PixelPaddingRangeLimit")
    if first is None:
        first = number(dataset, "FloatPixelPaddingValue")
        last = number(dataset, "FloatPixelPaddingRangeLimit")
    if first is None:
        return
    last = first if last is None else last
    around = float(1 << levels.bits) if levels.bits <= 16 else 0.0
    if around:  # written with the other sign than the pixels
        lowest, highest = (-around / 2, around / 2 - 1) if levels.signed else (0, around - 1)
        if levels.bits < 16 and levels.signed:
            first, last = (value - 65536 if value > 32767 else value for value in (first, last))
        first, last = (
            value - around if value > highest and levels.signed else value + around if value < lowest else value
            for value in (_settled_too(value, highest, levels) for value in (first, last))
        )
    chosen = (levels.values >= min(first, last)) & (levels.values <= max(first, last))
    if levels.share(chosen) > _MOST_PADDING:
        notes.append(f"PixelPaddingValue (0028,0120) {first:g} covers nearly all of the film: not applied")
        return
    levels.padding |= chosen
    levels.counts = np.where(chosen, 0, levels.counts)


def _settled_too(value: float, highest: float, levels: Levels) -> float:
    """A padding value given for the whole container, shifted or cut as the pixels were; others as they are."""
    if value <= highest or levels.signed:
        return value
    if levels.shift:
        return float(int(value) >> levels.shift)
    return float(int(value) & int(highest)) if levels.cut else value


def _modality(dataset: pydicom.Dataset, levels: Levels, notes: list[str]) -> tuple[np.ndarray, float, float, int]:
    """Rescaled values (N,), the range that they can have by the header, and the bits of it."""
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    table = _table(dataset, "ModalityLUTSequence", "(0028,3000)", levels.signed, notes)
    if table is not None:
        if slope not in (None, 1.0) or intercept not in (None, 0.0):
            notes.append("RescaleSlope (0028,1053) beside ModalityLUTSequence (0028,3000): the table alone was applied")
        mapped = table.look_up(levels.values)
        if np.ptp(levels.present(mapped)) > 0:
            return mapped, 0.0, float((1 << table.bits) - 1), table.bits
        notes.append("ModalityLUTSequence (0028,3000) makes all values equal: not applied")
    low, high = _stored_range(levels)
    if slope is None and intercept is None:
        return levels.values, low, high, levels.bits
    if slope is None or intercept is None:
        problem = (
            f"RescaleIntercept (0028,1052) {intercept:g} without RescaleSlope (0028,1053)"
            if slope is None
            else (f"RescaleSlope (0028,1053) {slope:g} without RescaleIntercept (0028,1052)")
        )
        notes.append(f"{problem}: not applied")
        return levels.values, low, high, levels.bits
    if slope == 0:
        notes.append("RescaleSlope (0028,1053) is 0: not applied")
        return levels.values, low, high, levels.bits
    ends = low * slope + intercept, high * slope + intercept
    return levels.values * slope + intercept, min(ends), max(ends), levels.bits


def _stored_range(levels: Levels) -> tuple[float, float]:
    if levels.bits > 16:  # 32 bits are never filled, and floats have no range
        present = levels.present(levels.values)
        return float(present.min()), float(present.max())
    if levels.signed:
        return float(-(1 << (levels.bits - 1))), float((1 << (levels.bits - 1)) - 1)
    return 0.0, float((1 << levels.bits) - 1)


def _range(
    levels: Levels, rescaled: np.ndarray, low: float, high: float, bits: int, notes: list[str]
) -> tuple[float, float, int]:
    """Black and white of a film without window: by the header's bits, or by the values where they are far fewer."""
    present = levels.present(rescaled)
    least, most = float(present.min()), float(present.max())
    stored = levels.present(levels.values)
    linear = rescaled is levels.values or abs(np.ptp(rescaled) / max(np.ptp(levels.values), 1e-12)) > 0
    # Behind a table of another depth, the bits of stored values say nothing of its entries.
    if 8 < bits <= 16 and bits == levels.bits and stored.min() >= 0 and linear:
        held, marker = _held(levels, bits)
        if held < bits:
            table = rescaled[(levels.values >= 0) & (levels.values < 1 << held)]
            if marker or np.ptp(table) > 0:
                ends = _ends(levels, rescaled, held)
                notes.append(
                    f"BitsStored (0028,0101) or the table says {bits} bits, the film's values fill {held}"
                    + (", below a marker" if marker else "")
                )
                low, high, bits = *ends, held
                most = min(most, high)
                least = max(least, low)
    if most - least < _NARROW * (high - low):
        notes.append(
            f"the film's values, {least:g} to {most:g}, span little of what BitsStored (0028,0101) allows, {low:g} to "
            f"{high:g}: they were taken as the whole range"
        )
        bits = max(1, min(bits, int(np.ceil(np.log2(max(2, len(np.unique(present))))))))
        return least, most, max(bits, 8)
    return low, high, bits


def _held(levels: Levels, bits: int) -> tuple[int, bool]:
    """The bits that the film's stored values hold, none of them negative: see `grey.depth_of`."""
    values = levels.present(levels.values).astype(int)
    if values[-1] >= 1 << 16:
        return bits, False
    counts = np.zeros(values[-1] + 1, int)
    counts[values] = levels.present(levels.counts)
    return depth_of_counts(counts, bits)


def _ends(levels: Levels, rescaled: np.ndarray, bits: int) -> tuple[float, float]:
    """Rescaled values of the stored 0 and the largest of so many bits, in ascending order."""
    if len(rescaled) < 2 or np.array_equal(rescaled, levels.values):
        return 0.0, float((1 << bits) - 1)
    slope = (rescaled[-1] - rescaled[0]) / (levels.values[-1] - levels.values[0])
    zero = rescaled[0] - slope * levels.values[0]
    ends = zero, zero + slope * ((1 << bits) - 1)
    return min(ends), max(ends)


@dataclass
class Table:
    """A lookup table of the header: `entries` (N,) float64, the value mapped to the first, and the bits of an entry."""

    entries: np.ndarray
    first: int
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Entries (N,) of values (N,): below the first and beyond the last, those at the ends."""
        places = np.clip(np.round(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        return self.entries[places]


def _table(dataset: pydicom.Dataset, tag: str, number_: str, signed: bool, notes: list[str]) -> Table | None:
    """The first usable table of a sequence; None where there is none."""
    try:
        items = list(dataset.get(tag) or ())
    except Exception:
        items = []
    for item in items[:1]:
        try:
            count, first, bits = (int(value) for value in item.LUTDescriptor)
        except Exception:
            notes.append(f"{tag} {number_} has no LUTDescriptor (0028,3002): not applied")
            return None
        entries = _entries(item, dataset, count or 1 << 16, bits)
        if entries is None or len(entries) < 2:
            notes.append(f"{tag} {number_} has no LUTData (0028,3006): not applied")
            return None
        if signed and first > 32767:
            first -= 1 << 16
        held = max(1, int(entries.max()).bit_length())
        if bits < 1 or bits > 16 or held > bits or held < bits - 1:
            notes.append(
                f"LUTDescriptor (0028,3002) of {tag} says {bits} bits, its entries hold {held}: {held} were taken"
            )
            bits = held
        return Table(entries, first, bits)
    return None


def _entries(item: pydicom.Dataset, dataset: pydicom.Dataset, count: int, bits: int) -> np.ndarray | None:
    """LUT Data (0028,3006), whether its entries are words or, two to a word, bytes."""
    data = item.get("LUTData")
    if data is None:
        return None
    big = str(getattr(dataset.file_meta, "TransferSyntaxUID", "")) == "1.2.840.10008.1.2.2"
    if isinstance(data, (bytes, bytearray)):
        raw = np.frombuffer(bytes(data), np.uint8)
    else:
        words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
        raw = words.astype(">u2" if big else "<u2").view(np.uint8)
    half = len(raw) == count + count % 2 and np.abs(np.diff(raw.astype(int))).mean() < _SMOOTH  # no bytes of words
    if (bits <= 8 and count <= len(raw) < 2 * count) or half:
        return raw[:count].astype(np.float64)
    words = raw[: len(raw) // 2 * 2].view(">u2" if big else "<u2")[:count]
    return words.astype(np.float64) if len(words) else None


def _voi(dataset: pydicom.Dataset, levels: Levels, rescaled: np.ndarray, notes: list[str]) -> np.ndarray | None:
    """Grey (N,) in [0, 1] by the VOI LUT or the window; None where there is neither, or none that fits the film."""
    negative = bool(rescaled.min() < 0)
    table = _table(dataset, "VOILUTSequence", "(0028,3010)", levels.signed or negative, notes)
    if table is not None:
        ends = float(table.first), float(table.first + len(table.entries) - 1)
        for values in _readings(dataset, levels, rescaled, *ends):
            shown = table.look_up(values) / ((1 << table.bits) - 1)
            if len(np.unique(levels.present(shown))) >= min(_LEVELS, len(np.unique(levels.present(values)))):
                if values is not rescaled:
                    notes.append("VOILUTSequence (0028,3010) fits the stored values only: the rescale was not applied")
                return shown
        notes.append("VOILUTSequence (0028,3010) maps the film to hardly any grey levels: not applied")
    windows = _windows(dataset, notes)
    function = text(dataset, "VOILUTFunction").upper()
    if windows and function not in ("", "LINEAR", "LINEAR_EXACT", "SIGMOID"):
        notes.append(f"VOILUTFunction (0028,1056) {function!r} is unknown: LINEAR was taken")
    for centre, width in windows:
        for values in _readings(dataset, levels, rescaled, centre - width / 2, centre + width / 2):
            shown = windowed(values, centre, width, function)
            if _fits(levels, shown, values) and np.ptp(levels.present(shown)) >= _NARROW:
                if values is not rescaled:
                    notes.append(
                        f"WindowCenter (0028,1050) {centre:g} does not fit the rescaled values: the "
                        f"{'shifted' if rescaled is levels.values else 'stored'} ones were taken"
                    )
                return shown if values is rescaled or not _falls(rescaled) else 1 - shown
        notes.append(
            f"WindowCenter (0028,1050) {centre:g} and WindowWidth (0028,1051) {width:g} leave hardly anything of the "
            "film between black and white, or show all of it alike: not applied"
        )
    return None


def _falls(rescaled: np.ndarray) -> bool:
    return len(rescaled) > 1 and rescaled[-1] < rescaled[0]


def _readings(
    dataset: pydicom.Dataset, levels: Levels, rescaled: np.ndarray, low: float, high: float
) -> list[np.ndarray]:
    """What a window or table from `low` to `high` may be meant for, the likeliest first.

    Rescaled values as the standard says, or else the stored ones. With an intercept alone programs differ: the reading
    of which more lies between the ends comes first, and of two alike the one with a slope of 1.
    """
    if rescaled is not levels.values:
        return [rescaled, levels.values]
    intercept = number(dataset, "RescaleIntercept")
    if not intercept or number(dataset, "RescaleSlope") is not None:
        return [rescaled]
    both = [levels.values + intercept, rescaled]
    return sorted(both, key=lambda values: -levels.share((values >= low) & (values <= high)))


def _fits(levels: Levels, shown: np.ndarray, values: np.ndarray) -> bool:
    """Whether a window leaves enough of the film between black and white."""
    between = (shown > 0.005) & (shown < 0.995) & (levels.counts > 0)
    kept, held = len(np.unique(shown[between])), len(np.unique(levels.present(values)))
    white = levels.share(shown >= 0.995)
    return kept >= min(_LEVELS, held // 4) and levels.share(between) >= _INSIDE and white <= _WHITE


def _windows(dataset: pydicom.Dataset, notes: list[str]) -> list[tuple[float, float]]:
    """The usable windows, as (centre, width), in the order of the header."""
    centres, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    function = text(dataset, "VOILUTFunction").upper()
    least = 0.0 if function in ("LINEAR_EXACT", "SIGMOID") else 1.0
    usable = [(centre, width) for centre, width in zip(centres, widths, strict=False) if width > 0 and width >= least]
    if centres and not usable:
        notes.append(
            f"WindowWidth (0028,1051) {', '.join(f'{width:g}' for width in widths) or 'is missing'} is no width: "
            "no window was applied"
        )
    return usable


def _numbers(dataset: pydicom.Dataset, tag: str) -> list[float]:
    try:
        value = dataset.get(tag)
        many = value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]
        found = [float(one) for one in many if one is not None and str(one).strip()]
    except Exception:
        return []
    return [one for one in found if np.isfinite(one)]


def windowed(values: np.ndarray, centre: float, width: float, function: str = "") -> np.ndarray:
    """Values through a window, as grey in [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: rescaled, any shape.
        centre: Window Center.
        width: Window Width; at least 1, or over 0 for the other two functions.
        function: "LINEAR" (also by default), "LINEAR_EXACT" or "SIGMOID".
    """
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
