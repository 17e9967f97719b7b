"""Which DICOM objects are films to be judged, told by their headers; and what is written down of the others."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pydicom

from cxr_pipeline.about import PROGRAM
from cxr_pipeline.data.formats import dicom_header
from cxr_pipeline.data.formats.base import RadiographError

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
DX_RAW = "1.2.840.10008.5.1.4.1.1.1.1.1"
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
FILMS = frozenset({CR, DX, SECONDARY})
# Conversion types (PS3.3 C.8.6.1) of a secondary capture that is a film: digitised, of a digital interface, scanned.
_SCANNED = frozenset({"DF", "DI", "SD", "SI", "DV", ""})


@dataclass(frozen=True)
class Facts:
    """What a header says of an object, as far as a node needs it; empty where it says nothing.

    Attributes:
        uid: the SOP Instance UID of the data set itself.
        left_alone: why it is not judged; empty for a film that may be one of the chest.
    """

    sop_class: str
    uid: str
    modality: str = ""
    left_alone: str = ""


def look(data: bytes, sop_class: str) -> Facts:
    """Look at the header of an object.

    What cannot be told from the header, such as a film from the side without a word of it, the chain tells later. A
    header that cannot be read leaves it to the chain too, where the class is one of films.

    Args:
        data: a DICOM file.
        sop_class: as the sender announced it.
    """
    header = _header(data)
    if sop_class == DX_RAW:
        why = "a raw film, for processing alone"
    elif sop_class not in FILMS:
        why = f"no film, but {pydicom.uid.UID(sop_class).name}"
    else:
        why = "" if header is None else _why_not(header, sop_class)
    return Facts(sop_class, _said(header, "SOPInstanceUID"), _said(header, "Modality"), why)


def _header(data: bytes) -> pydicom.Dataset | None:
    try:
        return pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
    except Exception:  # as with any damaged file, whatever the library raises
        return None


def _why_not(header: pydicom.Dataset, sop_class: str) -> str:
    """Why a film is not one of the chest; empty where it may be."""
    if own(header):
        return "an answer of this program"
    try:
        if sop_class == SECONDARY and dicom_header.text(header, "ConversionType").upper() not in _SCANNED:
            return "a picture made by a workstation, no scanned film"
        if dicom_header.text(header, "PresentationIntentType").upper() == "FOR PROCESSING":
            return "a raw film, for processing alone"
        dicom_header.refuse_others(header, dicom_header.facts(header, []), "film")
    except RadiographError as error:
        return error.reason
    except Exception:  # an odd header: the reader, which sees the whole file, knows more
        return ""
    return ""


def own(header: pydicom.Dataset) -> bool:
    """Whether this program made the object, so that its answers never come back as films."""
    texts = (dicom_header.text(header, tag) for tag in ("Manufacturer", "ManufacturerModelName", "SoftwareVersions"))
    return any(PROGRAM in text.lower() for text in texts)


def _said(header: pydicom.Dataset | None, tag: str) -> str:
    return "" if header is None else dicom_header.text(header, tag)[:64]
