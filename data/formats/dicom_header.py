"""What a DICOM header says of a film: who, what part of the body, from where, how large a pixel is."""

from __future__ import annotations

import re
import unicodedata
from datetime import date
from typing import Any

import pydicom

from cxr_pipeline.data.formats.base import RadiographError

# PS3.3 C.7.3.1.1.1; OT and SC hold scanned films, XR is written by some archives
RADIOGRAPHS = frozenset({"CR", "DX", "DR", "RG", "RF", "OT", "SC", "XR", ""})
# Words of body parts (PS3.16 annex L) that are plainly no chest.
_ELSEWHERE = (
    *("HAND", "FOOT", "ARM", "LEG", "KNEE", "EXTREMITY", "SKULL", "HEAD", "BRAIN", "PELVIS", "HIP", "ANKLE", "WRIST"),
    *("ELBOW", "SHOULDER", "SPINE", "BREAST", "TOE", "FINGER", "FEMUR", "HUMERUS", "TIBIA", "FIBULA", "FOREARM"),
    *("CALCANEUS", "HEEL", "JAW", "MANDIBLE", "TEETH", "NECK", "ABDOMEN", "KIDNEY", "BLADDER", "THUMB", "PATELLA"),
)
# In the languages that archives write: any of these beside another part makes it a chest film.
_CHEST = ("CHEST", "THORA", "TORAX", "TORACE", "LUNG", "PULM", "POUMON", "BRUST", "TORSO")
# Views from the side in PS3.16 CID 4010: SNOMED CT codes, and the SRT codes of before.
_LATERAL_CODES = frozenset(
    {"399067008", "399173006", "399198007", "30730003", "R-102CD", "R-10236", "R-10232", "G-A145"}
)
_LATERAL_WORDS = frozenset(
    {
        "LAT",
        "LATERAL",
        "LATERALE",
        "LATERALIS",
        "LL",
        "RL",
        "LATL",
        "LATR",
        "LLAT",
        "RLAT",
        "PROFIL",
        "PERFIL",
        "SEITLICH",
        "SEITL",
    }
)
_FRONTAL_WORDS = frozenset(
    {
        "PA",
        "AP",
        "FRONTAL",
        "FRONT",
        "POSTEROANTERIOR",
        "ANTEROPOSTERIOR",
        "POSTERO",
        "ANTERO",
        "VIEWS",
        "DECUB",
        "DECUBITUS",
        "BILATERAL",
        "UNILATERAL",
        "F",
    }
)
_DESCRIPTIONS = (
    ("SeriesDescription", "(0008,103E)"),
    ("ProtocolName", "(0018,1030)"),
    ("AcquisitionDeviceProcessingDescription", "(0018,1400)"),
)
_TAKEN = ("StudyDate", "AcquisitionDate", "AcquisitionDateTime", "SeriesDate", "ContentDate")
_OLDEST = 120.0  # years; a birth date before that is a placeholder
_SQUARE = 0.02  # a pixel whose sides differ by less counts as square
_MOST_SQUEEZED = 4.0  # a pixel more oblong than this is an error of the header


def refuse_others(dataset: pydicom.Dataset, meta: dict[str, Any], name: str) -> None:
    """Refuse another modality or part of the body.

    Raises:
        RadiographError: with code not_a_radiograph or not_a_chest.
    """
    if meta["modality"] not in RADIOGRAPHS:
        raise RadiographError(
            name,
            f"its modality is {meta['modality']}, no plain radiograph. Give CR or DX films",
            "not_a_radiograph",
            refused=True,
        )
    letters = unicodedata.normalize("NFKD", meta["body_part"].upper())
    part = "".join(letter for letter in letters if not unicodedata.combining(letter))  # TÓRAX
    words = re.findall(r"[^\W\d_]+", part)
    elsewhere = any(word.startswith(_ELSEWHERE) or word.endswith("SPINE") for word in words)
    if elsewhere and not any(word in part for word in _CHEST):
        raise RadiographError(
            name, f"it shows {meta['body_part']}, not the chest. Give chest films", "not_a_chest", refused=True
        )


def facts(dataset: pydicom.Dataset, notes: list[str]) -> dict[str, Any]:
    """What the header says: modality, body_part, view, photometric, transfer_syntax, and where it says so, age_years,
    `portable` (taken at the bedside), and `lateral`, a sentence that tells which tag makes it a film from the side.
    """
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    meta: dict[str, Any] = {
        "modality": text(dataset, "Modality").upper(),
        "body_part": text(dataset, "BodyPartExamined"),
        "view": text(dataset, "ViewPosition"),
        "photometric": text(dataset, "PhotometricInterpretation").upper(),
        "transfer_syntax": getattr(syntax, "name", "") or "no transfer syntax",
    }
    if _portable(dataset):
        meta["portable"] = True
    age = _age(dataset, notes)
    if age is not None:
        meta["age_years"] = age
    lateral = _lateral(dataset)
    if lateral:
        meta["lateral"] = lateral
    _orientation(dataset, meta, notes)
    return meta


def _portable(dataset: pydicom.Dataset) -> bool:
    """Whether a description names a bedside film. The words themselves may name a patient, and stay behind."""
    tags = ("SeriesDescription", "StudyDescription", "ProtocolName", "PerformedProcedureStepDescription")
    words = " ".join(text(dataset, tag) for tag in tags).upper()
    return "PORTABLE" in words or "BEDSIDE" in words


def text(dataset: pydicom.Dataset, tag: str) -> str:
    """An element as text without blanks around it; empty where there is none. Several values are joined by blanks."""
    try:
        value = dataset.get(tag)
    except Exception:  # a value that pydicom cannot convert says nothing
        return ""
    if value is None:
        return ""
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        return " ".join(str(one).strip() for one in value)
    return str(value).strip()


def number(dataset: pydicom.Dataset, tag: str) -> float | None:
    """An element as a finite number, the first where it has several; None where it says none."""
    try:
        value = dataset.get(tag)
        if isinstance(value, (list, pydicom.multival.MultiValue)):
            value = value[0] if len(value) else None
        found = float(value)
    except Exception:
        return None
    return found if abs(found) < 1e300 else None  # neither infinite nor NaN


def _age(dataset: pydicom.Dataset, notes: list[str]) -> float | None:
    """Years, by Patient's Age, or by birth date and day of the study. 000Y says nothing; newborns come in days."""
    age_text = text(dataset, "PatientAge").upper().replace(" ", "")
    stated = None
    if age_text[:-1].isdigit() and age_text[-1] in "DWMY":
        stated = int(age_text[:-1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[age_text[-1]]
        if age_text[-1] == "Y" and stated == 0:
            stated = None
    elif age_text.isdigit() and 0 < int(age_text) <= _OLDEST:
        stated = float(age_text)
    born = _day(text(dataset, "PatientBirthDate"))
    taken = next(
        filter(None, (_day(text(dataset, tag)) for tag in _TAKEN)),
        None,
    )
    counted = (taken - born).days / 365.25 if born and taken else None
    if counted is not None and not 0 <= counted <= _OLDEST:
        counted = None
    if stated is None:
        return counted
    if counted is not None and abs(counted - stated) > 2:
        notes.append(
            f"PatientAge (0010,1010) says {age_text}, PatientBirthDate (0010,0030) and the date of the study "
            f"{counted:.1f} years: the former was taken"
        )
    return stated


def _day(value: str) -> date | None:
    digits = re.sub(r"\D", "", value)[:8]
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return None


def _lateral(dataset: pydicom.Dataset) -> str:
    """Which tag says that the film was taken from the side; empty where none does."""
    position = text(dataset, "ViewPosition").upper()
    if set(re.findall(r"[A-Z]+", position)) & _LATERAL_WORDS:
        return f"its view position is {position} by the DICOM header"
    if set(re.findall(r"[A-Z]+", position)) & {"PA", "AP"}:
        return ""
    try:
        codes = list(dataset.get("ViewCodeSequence") or ())
    except Exception:
        codes = []
    for code in codes:
        value, meaning = text(code, "CodeValue").upper(), text(code, "CodeMeaning")
        words = set(re.findall(r"[A-Z]+", meaning.upper()))
        if value in _LATERAL_CODES or (words & _LATERAL_WORDS and not words & _FRONTAL_WORDS):
            return f"its view is {meaning or value} by ViewCodeSequence (0054,0220)"
    for tag, number_ in _DESCRIPTIONS:
        description = text(dataset, tag)
        words = set(re.findall(r"[A-Z]+", description.upper()))
        if words & (_LATERAL_WORDS - {"LL", "RL"}) and not words & _FRONTAL_WORDS:
            return f"{tag} {number_} calls it {description!r}"
    return ""


def _orientation(dataset: pydicom.Dataset, meta: dict[str, Any], notes: list[str]) -> None:
    """Patient Orientation (0020,0020): where rows and columns run to. `L\\F` is a frontal film as it hangs."""
    value = text(dataset, "PatientOrientation").upper().split()
    if len(value) != 2 or not all(value):
        return
    row, column = value[0][0], value[1][0]
    facing = "\\".join(value)
    if row in "AP" and column in "FH":
        meta.setdefault("lateral", f"PatientOrientation (0020,0020) {facing} says that it was taken from the side")
    elif row == "R" and column == "F":
        notes.append(
            f"PatientOrientation (0020,0020) is {facing}: left and right are exchanged, unless the header is wrong. "
            "Compare with the side marker: a mirrored film gets the sides of its regions wrong"
        )
    elif row + column != "LF":
        notes.append(
            f"PatientOrientation (0020,0020) is {facing}, not L\\F: the film may be stored turned or upside down"
        )


def spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Millimetres from row to row and from column to column, where the header says so."""
    for tag in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        pair = _pair(dataset, tag)
        if pair is not None:
            return pair
    return None


def aspect(dataset: pydicom.Dataset, notes: list[str]) -> float:
    """The height of a pixel divided by its width, by the spacing or Pixel Aspect Ratio; 1 where it is square."""
    tag, pair = "PixelSpacing", spacing(dataset)
    if pair is None:
        tag, pair = "PixelAspectRatio", _pair(dataset, "PixelAspectRatio")
    if pair is None:
        return 1.0
    ratio = pair[0] / pair[1]
    if abs(ratio - 1) <= _SQUARE:
        return 1.0
    if not 1 / _MOST_SQUEEZED <= ratio <= _MOST_SQUEEZED:
        notes.append(f"{tag} {pair[0]:g}\\{pair[1]:g} cannot be: pixels were taken as square")
        return 1.0
    notes.append(
        f"{tag} {pair[0]:g}\\{pair[1]:g}: pixels are {ratio:.2f} times as high as wide; the film was judged with "
        "square ones, masks and boxes are in its own"
    )
    return ratio


def _pair(dataset: pydicom.Dataset, tag: str) -> tuple[float, float] | None:
    try:
        row, column = (float(value) for value in dataset.get(tag))
    except Exception:
        return None
    return (row, column) if 0 < row < 1e6 and 0 < column < 1e6 else None
