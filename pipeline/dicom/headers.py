"""What an answer takes over from the header of its film: who, which study, from which image, at which scale.

A header may hold whatever a machine once wrote. Only values that the standard allows are taken over, with two
exceptions: the patient's ID and the UIDs are taken as they are or not at all, as a changed one names another patient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.formats import dicom_header
from cxr_pipeline.data.formats.base import RadiographError
from cxr_pipeline.data.formats.dicom_file import open_dataset

CHARACTERS = "ISO_IR 192"  # UTF-8, whatever the film's own is
NO_DATE = "19000101"
_SURE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
PATIENT_AND_STUDY = (  # type 2: there, if need be without a value
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
MORE_OF_THEM = (
    *("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "EthnicGroup"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "StudyDescription", "TimezoneOffsetFromUTC"),
)
_SEXES = ("M", "F", "O")
_SIDES = ("R", "L", "U", "B")  # Image Laterality (0020,0062)
_WORDS = re.compile(r"[A-Z]{1,2}[APRLHF]{0,2}")
_DATES = (  # what a film may say of when it was made, the best first
    ("ContentDate", "ContentTime"),
    ("AcquisitionDate", "AcquisitionTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)


class HeaderError(CxrError, ValueError):
    """A header that no answer can be written for: it does not say whose the film is, or which one it is.

    It names elements and never quotes them, for it becomes a warning in results.csv, which may hold no identifiers.
    """


@dataclass(frozen=True)
class FilmHeader:
    """What answers are made from.

    Attributes:
        dataset: of the film, without pixels: patient, study, series, instance and image, all of them valid.
        date, time: when the film was made, as DA and TM. The answers carry them too, so that they stay the same.
        spacing: millimetres from row to row and from column to column; None where the film does not say.
        aspect: height of a pixel divided by its width.
        sides_known: whether the left of the picture is the patient's right, as on every frontal film that hangs.
        colour: the film is stored in colour.
        notes: sentences on what could not be taken over.
    """

    dataset: Dataset
    date: str
    time: str
    spacing: tuple[float, float] | None
    aspect: float
    sides_known: bool
    colour: bool
    notes: tuple[str, ...] = ()


def parsed(raw: bytes, name: str) -> Dataset:
    """The data set of a DICOM file, also of one that breaks the standard; see `data.formats.dicom_file`.

    Args:
        raw: the whole file.
        name: its path, for errors.

    Raises:
        HeaderError: it cannot be read.
    """
    try:
        return open_dataset(raw, name)[0]
    except RadiographError as error:
        raise HeaderError(f"the film's header cannot be read again ({error})") from error


def film_header(source: Dataset, size: tuple[int, int]) -> FilmHeader:
    """What of a film's data set can stand in an answer.

    Args:
        source: the film's data set; pixels are not looked at.
        size: height and width of the film as it was read, which every mask and box refers to.

    Raises:
        HeaderError: it lacks what says which film it is, or its patient's ID cannot be written.
    """
    notes: list[str] = []
    out = Dataset()
    out.SpecificCharacterSet = CHARACTERS
    for keyword in _SURE:
        setattr(out, keyword, _uid(source, keyword))
    _patient_id(source, out)
    for keyword in PATIENT_AND_STUDY:
        if keyword not in out:
            setattr(out, keyword, _valid(source, keyword, notes))
    for keyword in MORE_OF_THEM:
        value = _valid(source, keyword, [])  # nobody misses what may be left out
        if value:
            setattr(out, keyword, value)
    if str(out.PatientSex) not in ("", *_SEXES):
        notes.append(f"PatientSex (0010,0040) is none of {', '.join(_SEXES)}: left empty")
        out.PatientSex = ""
    if not str(out.PatientID):
        notes.append("PatientID (0010,0020) is empty, and stays so in the answers")
    _image(source, out, size)
    date, time = _made(source)
    if not date:
        notes.append("no date of the film is valid: 1900-01-01 stands for it")
    spacing = dicom_header.spacing(source)
    lossy = _lossy(source)
    if lossy:
        out.update(lossy)
    return FilmHeader(
        out,
        date or NO_DATE,
        time,
        spacing,
        dicom_header.aspect(source, []),
        _sides_known(source, notes),
        dicom_header.text(source, "PhotometricInterpretation").upper().startswith(("RGB", "YBR", "PALETTE")),
        tuple(notes),
    )


def _uid(source: Dataset, keyword: str) -> str:
    """A UID as it stands: one that breaks a rule still names its study."""
    value = dicom_header.text(source, keyword).strip("\0 ")
    if not value or len(value) > 64 or not re.fullmatch(r"[0-9][0-9.]*", value):
        raise HeaderError(
            f"its header has no usable {keyword} {_number(keyword)} ({'malformed' if value else 'empty'}), "
            "so that no answer can be filed with it. Export it again from the archive, with its UIDs"
        )
    return value


def _patient_id(source: Dataset, out: Dataset) -> None:
    value = dicom_header.text(source, "PatientID").strip("\0 ")
    several = isinstance(source.get("PatientID"), (list, MultiValue))
    if several or not _allowed("PatientID", value):
        raise HeaderError(
            f"its PatientID (0010,0020), {len(value)} characters long, cannot be written as it is (up to 64, "
            "no backslash), and another one would name another patient. Correct it in the archive"
        )
    out.PatientID = value


def _valid(source: Dataset, keyword: str, notes: list[str]) -> str:
    """An element as text where the standard allows its value; else empty, and a note."""
    value = dicom_header.text(source, keyword).strip("\0 ")
    if _allowed(keyword, value):
        return value
    notes.append(f"{keyword} {_number(keyword)} is not valid: left empty")  # its value may be a name
    return ""


def _allowed(keyword: str, value: str) -> bool:
    kind = dictionary_VR(keyword)
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value) or (kind not in ("LT", "ST") and "\\" in value):
        return False
    if kind == "PN" and (value.count("=") > 2 or any(len(group) > 64 for group in value.split("="))):
        return False
    try:
        validate_value(kind, value, config.RAISE)
    except ValueError:
        return False
    return True


def _number(keyword: str) -> str:
    tag = tag_for_keyword(keyword) or 0
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _image(source: Dataset, out: Dataset, size: tuple[int, int]) -> None:
    """What says how the picture is shown, as far as it is whole."""
    out.Rows, out.Columns = size
    out.SamplesPerPixel = 1
    modality = dicom_header.text(source, "Modality").upper()
    out.Modality = modality if modality in dicom_header.RADIOGRAPHS - {""} else "OT"
    photometric = dicom_header.text(source, "PhotometricInterpretation").upper()
    out.PhotometricInterpretation = photometric if photometric.startswith("MONOCHROME") else "MONOCHROME2"
    side = dicom_header.text(source, "ImageLaterality").upper() or dicom_header.text(source, "Laterality").upper()
    if side in _SIDES:
        out.ImageLaterality = side
    orientation = dicom_header.text(source, "PatientOrientation").upper().split()
    if len(orientation) == 2 and all(_WORDS.fullmatch(one) for one in orientation):
        out.PatientOrientation = orientation
    for kind, bits in (("BitsAllocated", 16), ("BitsStored", 16), ("HighBit", 15), ("PixelRepresentation", 0)):
        value = dicom_header.number(source, kind)
        setattr(out, kind, bits if value is None or not 0 <= value <= 32 else int(value))
    _window(source, out)


def _window(source: Dataset, out: Dataset) -> None:
    slope, intercept = (dicom_header.number(source, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope and intercept is not None and not source.get("ModalityLUTSequence"):
        out.RescaleSlope, out.RescaleIntercept = _decimal(slope), _decimal(intercept)
        out.RescaleType = "US"
    centre, width = (dicom_header.number(source, name) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width >= 1 and not source.get("VOILUTSequence"):
        out.WindowCenter, out.WindowWidth = _decimal(centre), _decimal(width)
        function = dicom_header.text(source, "VOILUTFunction").upper()
        if function in ("LINEAR_EXACT", "SIGMOID"):
            out.VOILUTFunction = function


def _decimal(value: float) -> str:
    """A number as DS, which has at most 16 characters."""
    return f"{value:.10g}"[:16]


def _sides_known(source: Dataset, notes: list[str]) -> bool:
    value = [one[0] for one in dicom_header.text(source, "PatientOrientation").upper().split() if one]
    if len(value) != 2 or value == ["L", "F"]:
        return True
    notes.append(
        "PatientOrientation (0020,0020) is not L\\F: which lung is the right one is not sure; the answers name no side"
    )
    return False


def _made(source: Dataset) -> tuple[str, str]:
    """Date and time of the film as DA and TM, both from one pair; the date is empty where none is valid."""
    for day, hour in _DATES:
        date = dicom_header.text(source, day).strip("\0 ")
        if len(date) == 8 and _allowed(day, date):
            time = dicom_header.text(source, hour).strip("\0 ")
            return date, time if re.fullmatch(r"\d{6}(\.\d{1,6})?", time) and _allowed(hour, time) else "000000"
    return "", "000000"


def _lossy(source: Dataset) -> Dataset | None:
    """That the film has been compressed with loss, which its answers say too; None where it has not."""
    if dicom_header.text(source, "LossyImageCompression") != "01":
        return None
    out = Dataset()
    out.LossyImageCompression = "01"
    ratio, method = _numbers(source, "LossyImageCompressionRatio"), _texts(source, "LossyImageCompressionMethod")
    if ratio and len(ratio) == len(method) and all(_allowed("LossyImageCompressionMethod", one) for one in method):
        out.LossyImageCompressionRatio, out.LossyImageCompressionMethod = [_decimal(one) for one in ratio], method
    return out


def _texts(source: Dataset, keyword: str) -> list[str]:
    return dicom_header.text(source, keyword).split()


def _numbers(source: Dataset, keyword: str) -> list[float]:
    try:
        return [float(one) for one in _texts(source, keyword)]
    except ValueError:
        return []
