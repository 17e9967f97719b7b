"""From the bytes of a DICOM file to its data set, also where preamble, file header or transfer syntax are missing."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings as python_warnings
import zlib
from typing import BinaryIO, cast

import pydicom
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cxr_pipeline.data.formats.base import MAX_BYTES, RadiographError, short
from cxr_pipeline.data.formats.dicom_marks import LONG_VRS, PREFIX

# Real archives break the standard in small ways that do not concern pixels; thousands of lines would bury real errors.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
python_warnings.filterwarnings("ignore", module="pydicom")

_OPEN_PIXELS = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"  # compressed pixels, of a length that is not said
_END_OF_SEQUENCE = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
_MACROS = ("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def open_dataset(raw: bytes, name: str) -> tuple[pydicom.Dataset, list[str]]:
    """The data set of a DICOM file, with a transfer syntax that fits its content, and warnings.

    Args:
        raw: the whole file.
        name: its path, for errors.

    Raises:
        RadiographError: nobody can read it.
    """
    notes: list[str] = []
    if raw.startswith(b"DICM\x02\x00"):  # a preamble that somebody cut away
        raw = bytes(PREFIX) + raw
    try:
        dataset = _parsed(raw, name)
    except RadiographError:
        raise
    except Exception as error:
        dataset = None
        problem = short(error)
    else:
        problem = "it holds no rows and columns"
    if dataset is None or not _whole(dataset):
        dataset = _otherwise(raw, notes) or dataset
    if dataset is None:
        raise RadiographError(name, f"the DICOM file is damaged ({problem}). Export it again", "damaged")
    if pixel_tag(dataset) is None and _OPEN_PIXELS in raw and not raw.endswith(_END_OF_SEQUENCE):
        with contextlib.suppress(Exception):  # what it was read as before, then
            closed = _parsed(raw + bytes(len(raw) % 2) + _END_OF_SEQUENCE, name)
            if pixel_tag(closed) is not None:
                notes.append("PixelData (7FE0,0010) has no sequence delimiter: the end of the file was taken")
                dataset = closed
    _settle_syntax(dataset, notes)
    _lift_groups(dataset)
    return dataset, notes


def _lift_groups(dataset: pydicom.Dataset) -> None:
    """Put what an enhanced object of one frame says in functional groups (PS3.3 C.7.6.16) where plain ones say it."""
    with contextlib.suppress(Exception):  # groups that cannot be read say nothing
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            return
        for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            for group in list(dataset.get(groups) or ())[:1]:
                for element in [one for macro in _MACROS for item in group.get(macro) or () for one in item]:
                    if element.tag not in dataset:
                        dataset[element.tag] = element


def _parsed(raw: bytes, name: str) -> pydicom.Dataset:
    marked = raw[PREFIX : PREFIX + 4] == b"DICM"
    if marked:
        raw = _unfolded(raw, name)
    return pydicom.dcmread(io.BytesIO(raw), force=not marked)


def _whole(dataset: pydicom.Dataset) -> bool:
    return "Rows" in dataset or "SOPClassUID" in dataset or "Modality" in dataset


def _unfolded(raw: bytes, name: str) -> bytes:
    """The file with a deflated data set (PS3.5 A.5) unfolded, within the limit of bytes; others as they are."""
    meta, length = _file_header(raw)
    if meta is None or meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return raw
    unfold = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = unfold.decompress(raw[length:], MAX_BYTES)
    except zlib.error as error:
        raise RadiographError(
            name, f"its deflated data set is damaged or cut off ({short(error)}). Export it again", "damaged"
        ) from error
    if unfold.unconsumed_tail:
        raise RadiographError(
            name,
            f"its deflated data set unfolds to more than {MAX_BYTES / 1e6:.0f} MB. Export it uncompressed",
            "too_large",
        )
    if not unfold.eof:
        raise RadiographError(name, "its deflated data set is cut off. Export it again", "truncated")
    header = raw[:length].replace(
        DeflatedExplicitVRLittleEndian.encode(), (ExplicitVRLittleEndian + "\0" * 3).encode(), 1
    )
    return header + body


def _file_header(raw: bytes) -> tuple[pydicom.Dataset | None, int]:
    """The elements of group 2 after the mark, and where they end."""
    at, fields = PREFIX + 4, pydicom.Dataset()
    while at + 8 <= len(raw) and raw[at : at + 2] == b"\x02\x00":
        vr = raw[at + 4 : at + 6]
        long = vr in LONG_VRS
        length = int.from_bytes(raw[at + 8 : at + 12] if long else raw[at + 6 : at + 8], "little")
        start = at + (12 if long else 8)
        if raw[at + 2 : at + 4] == b"\x10\x00":
            fields.TransferSyntaxUID = UID(raw[start : start + length].rstrip(b"\0 ").decode("ascii", "replace"))
        at = start + length
    return (fields, at) if at > PREFIX + 4 else (None, 0)


def _otherwise(raw: bytes, notes: list[str]) -> pydicom.Dataset | None:
    """The data set read in each encoding in turn, for files whose transfer syntax is not what they are written in."""
    start = 0
    if raw[PREFIX : PREFIX + 4] == b"DICM":
        start = _file_header(raw)[1] or PREFIX + 4
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        try:
            file = cast("BinaryIO", DicomBytesIO(raw[start:]))  # it reads as one, but does not derive from it
            dataset = read_dataset(file, syntax.is_implicit_VR, syntax.is_little_endian)
            sound = isinstance(dataset.get("Rows"), int) and isinstance(dataset.get("Columns"), int)
        except Exception:  # another encoding, then
            continue
        if sound:
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = syntax
            notes.append(f"TransferSyntaxUID (0002,0010) does not fit the file: read as {syntax.name}")
            return dataset
    return None


def _settle_syntax(dataset: pydicom.Dataset, notes: list[str]) -> None:
    """Give the data set a transfer syntax in which its pixels can be read, where the file names none or a wrong one."""
    meta = getattr(dataset, "file_meta", None)
    if meta is None:
        meta = dataset.file_meta = pydicom.dataset.FileMetaDataset()
    syntax = meta.get("TransferSyntaxUID")
    implicit, little = dataset.original_encoding if syntax is None else (None, None)
    if not syntax or not isinstance(syntax, UID):
        if implicit is None:
            implicit, little = getattr(dataset, "is_implicit_VR", True), True
        meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
        notes.append(f"TransferSyntaxUID (0002,0010) is missing: read as {meta.TransferSyntaxUID.name}")


def pixel_tag(dataset: pydicom.Dataset) -> str | None:
    """The keyword of the element that holds the pixels; None where there is none, or it is empty."""
    return next((tag for tag in _PIXELS if tag in dataset and dataset[tag].value), None)
