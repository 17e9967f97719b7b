"""JPEG 2000 in DICOM at a lower resolution level, where the header is plain: see `formats.small`."""

from __future__ import annotations

import numpy as np
import pydicom

from cxr_pipeline.data.formats.base import check_size
from cxr_pipeline.data.formats.codecs import j2k_header
from cxr_pipeline.data.formats.dicom_file import pixel_tag
from cxr_pipeline.data.formats.dicom_pixels import J2K, encapsulated, fragments_of, layout_of
from cxr_pipeline.data.formats.dicom_values import Stored, settled
from cxr_pipeline.data.formats.small import Small, j2k_samples, step_for

# Tags that make single values of the film count, or that hardly any film has: such films are decoded whole.
_ODD = ("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "NumberOfFrames")
_FREQUENT, _MOST = 32, 0.3  # values, and the share of a film that the most frequent ones may be: usual is up to 0.15
_FINE = 10  # bits of a sample: of fewer, what the low band is rounded by moves scores


def small_values(dataset: pydicom.Dataset, name: str, least: int) -> tuple[Stored, Small] | None:
    """The stored values of a film at a lower level; None where it is to be decoded whole.

    Args:
        dataset: with a transfer syntax, see `dicom_file.open_dataset`.
        name: the file's path, for errors.
        least: pixels that the long side has to keep.

    Raises:
        RadiographError: the film is not read at all.
    """
    notes: list[str] = []
    if pixel_tag(dataset) != "PixelData" or any(tag in dataset for tag in _ODD):
        return None
    if not encapsulated(dataset, bytes(dataset.PixelData)):
        return None
    layout = layout_of(dataset, name, notes, raw=None)
    fragments = fragments_of(dataset)
    stream = b"".join(fragments)
    header = j2k_header(stream) if stream.startswith(J2K) else None
    if header is None or sum(one.startswith(J2K) for one in fragments) != 1:
        return None
    plain = header.components == layout.samples == 1 and not (header.signed or layout.signed)
    if not plain or header.bits != layout.stored or not _FINE <= header.bits <= 16 or notes:
        return None
    native = header.height, header.width
    if native != (layout.rows, layout.columns) or layout.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    check_size(name, *native, 1, 2)
    step = step_for(*native, least)
    samples = None
    while samples is None and step > 1:
        samples = j2k_samples(stream, header, step)
        step = step if samples is not None else step // 2
    if samples is None:
        return None
    layout = layout._replace(high=layout.stored - 1, allocated=16)
    stored = settled(samples.astype(np.int64), layout, notes)
    if notes or not _fills(stored) or _few_levels(stored):
        return None
    # A sample of the low band lies at every step-th sample of the picture, and not between them.
    return stored, Small(native, step, 0.5)


def _fills(stored: Stored) -> bool:
    """Whether a film plainly fills the bits stored, so that black and white do not hang on its few largest values."""
    values = stored.values
    return bool(np.median(values[::4, ::4]) >= 1 << (stored.bits - 3) and values.max() >= 1 << (stored.bits - 1))


def _few_levels(stored: Stored) -> bool:
    """Whether a film may have so few grey levels that it cannot be judged: a low band has others between them."""
    counts = np.bincount(stored.values.ravel())
    return bool(np.sort(counts)[-_FREQUENT:].sum() > _MOST * stored.values.size)
