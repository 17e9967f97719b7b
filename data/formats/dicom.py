"""DICOM: pixels, Modality LUT, VOI LUT or window, then MONOCHROME1 inversion, once.

Four files share the work: `dicom_file` opens the data set, `dicom_header` reads what it says of the film,
`dicom_pixels` the stored values, and `dicom_scale` makes grey levels of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cxr_pipeline.data.formats.base import Decoded, Format, RadiographError

if TYPE_CHECKING:
    import pydicom

    from cxr_pipeline.data.formats.dicom_values import Stored


class Dicom(Format):
    """DICOM files, also without preamble, file header or transfer syntax."""

    name: ClassVar[str] = "dicom"
    label: ClassVar[str] = "DICOM"
    suffixes: ClassVar[tuple[str, ...]] = (".dcm", ".dicom", ".dic")

    def matches(self, head: bytes) -> bool:
        """By the mark after the preamble, or by elements of groups 2 and 8."""
        from cxr_pipeline.data.formats.dicom_marks import is_dicom

        return is_dicom(head)

    def decode(self, raw: bytes, name: str) -> Decoded:
        """A film from the bytes of a DICOM file.

        Raises:
            RadiographError: no pixels, several frames, another modality or body part, or pixels that cannot be decoded.
        """
        from cxr_pipeline.data.formats import dicom_header as header
        from cxr_pipeline.data.formats.dicom_file import open_dataset
        from cxr_pipeline.data.formats.dicom_pixels import stored_values

        dataset, notes = open_dataset(raw, name)
        meta = header.facts(dataset, notes)
        header.refuse_others(dataset, meta, name)
        stored = stored_values(dataset, name, notes)
        film = _film(dataset, stored, notes, name)
        film.spacing, film.aspect = header.spacing(dataset), header.aspect(dataset, notes)
        film.meta, film.warnings = meta, notes
        return film

    def decode_small(self, raw: bytes, name: str, least: int, *, rough: bool = True) -> Decoded | None:
        """JPEG 2000 of ten bits and more at a lower level, where nothing in the header is odd; never rough."""
        from cxr_pipeline.data.formats import dicom_header as header
        from cxr_pipeline.data.formats.codecs import j2k_header
        from cxr_pipeline.data.formats.dicom_file import open_dataset
        from cxr_pipeline.data.formats.dicom_small import small_values
        from cxr_pipeline.data.formats.small import step_for

        del rough
        stream = j2k_header(raw)
        if stream is None or step_for(stream.height, stream.width, least) == 1:
            return None  # most films: the whole decoding parses them
        dataset, notes = open_dataset(raw, name)
        meta = header.facts(dataset, notes)
        header.refuse_others(dataset, meta, name)
        found = small_values(dataset, name, least)
        if found is None:
            return None
        film = _film(dataset, found[0], notes, name)
        film.spacing, film.aspect = header.spacing(dataset), header.aspect(dataset, notes)
        film.meta, film.warnings, film.small = meta, notes, found[1]
        return film


def _film(dataset: pydicom.Dataset, stored: Stored, notes: list[str], name: str) -> Decoded:
    from cxr_pipeline.data.formats.dicom_scale import grey_levels
    from cxr_pipeline.data.formats.palette import coloured

    if not np.isfinite(stored.values).all():
        raise RadiographError(
            name, "some grey levels are infinite or not a number. Export the film again", "not_finite"
        )
    if stored.values.ndim == 2 and stored.photometric != "PALETTE COLOR":
        grey, bits = grey_levels(dataset, stored, notes)
        return Decoded(np.ascontiguousarray(grey), bits)
    return coloured(dataset, stored, notes, name)
