"""Films that may leave the house: headers by the basic profile of DICOM PS3.15, burnt-in text blanked, names replaced.

The table of what to do with each element is that of dicom-anonymizer; values are replaced by pseudonyms of the site, so
that the films of one patient and study still belong together, in a later call too.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import folder_mode, sha256_of, write_bytes, write_csv
from cxr_pipeline.data.formats.base import RadiographError
from cxr_pipeline.data.formats.dicom_file import open_dataset
from cxr_pipeline.data.formats.dicom_header import text
from cxr_pipeline.data.formats.dicom_marks import is_dicom
from cxr_pipeline.data.formats.dicom_pixels import stored_values
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.dicom.burntin import blanked, find_text
from cxr_pipeline.dicom.pictures import PictureError, cleaned_picture, picture_kind
from cxr_pipeline.dicom.pseudonyms import Pseudonyms

BLANK, FLAG, KEEP = "blank", "flag", "keep"
FLAGGED = "flagged"  # the folder below OUT that films with text go to, where it is not blanked
COLUMNS = ("file", "status", "kind", "patient", "study", "text", "elements", "note")
KEY_COLUMNS = ("source", "file", "status", "note")
_TABLE = "dicomfields_2026c"  # of dicom-anonymizer: the edition of PS3.15
_LEAST = 4  # letters of a name that is looked for in what is left
_SHIFTED = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_METHODS = {
    "113100": "Basic Application Confidentiality Profile",
    "113101": "Clean Pixel Data Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
}
_TEXTS = ("LO", "SH", "LT", "ST", "UT", "PN", "UC", "UR", "AE")


class DeidentifyError(CxrError, ValueError):
    """A call that cannot be obeyed, such as a folder that would be overwritten."""


class Outcome(NamedTuple):
    """What became of a file: its bytes without what identifies, or why it was left out (`data` is empty then)."""

    data: bytes
    name: str
    report: dict[str, str]


@dataclass(frozen=True)
class Rules:
    """How films are de-identified.

    Attributes:
        pseudonyms: of the site.
        text: what becomes of films with burnt-in text: "blank" fills it, "flag" puts them aside, "keep" does not look.
        keep_intervals: move the dates of a patient by one number of days, in place of removing them.
    """

    pseudonyms: Pseudonyms
    text: str = BLANK
    keep_intervals: bool = False
    actions: dict[Any, Callable[..., None]] = field(default_factory=dict, repr=False, compare=False)


def rules(secret: bytes, text: str = BLANK, *, keep_intervals: bool = False) -> Rules:
    """Rules with the library's table, its actions replaced where ours keep films together or leave less behind.

    Raises:
        ExtraError: dicom-anonymizer is not installed.
    """
    from cxr_pipeline.dicom.maker import need

    need("dicomanonymizer")
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    hidden = Pseudonyms(secret)
    table = dicom_anonymization_database_selector(_TABLE)
    actions: dict[Any, Callable[..., None]] = {}
    for kind in ("X_TAGS", "X_Z_U_STAR_TAGS"):  # the library would leave dates of the year 1, and emptied references
        actions |= dict.fromkeys(table[kind], _remove)
    for kind in ("Z_TAGS", "X_Z_TAGS"):
        actions |= dict.fromkeys(table[kind], _empty)
    actions |= {tag: lambda dataset, tag: _new_uid(dataset, tag, hidden) for tag in table["U_TAGS"]}
    return Rules(hidden, text, keep_intervals, actions)


def _remove(dataset: Dataset, tag: tuple[int, int]) -> None:
    if tag in dataset:
        del dataset[tag]


def _empty(dataset: Dataset, tag: tuple[int, int]) -> None:
    if tag in dataset:
        element = dataset[tag]
        element.value = [] if element.VR == "SQ" else b"" if element.VR in ("OB", "OW", "UN") else ""


def _new_uid(dataset: Dataset, tag: tuple[int, int], hidden: Pseudonyms) -> None:
    if tag in dataset and dataset[tag].VR == "UI":
        value = dataset[tag].value
        many = isinstance(value, (list, pydicom.multival.MultiValue))
        new = [hidden.uid(str(uid)) for uid in (value if many else [value])]
        dataset[tag].value = new if many else new[0]


def deidentified(raw: bytes, source: str, how: Rules) -> Outcome:
    """A film without what identifies its patient.

    Args:
        raw: the file.
        source: its path below what was given; names of pictures are made of it.
    """
    if is_dicom(raw[:4096]):
        try:
            return _dicom(raw, source, how)
        except RadiographError as error:
            return _left_out("dicom", error.reason)
    kind = picture_kind(raw)
    if kind is None:
        return _left_out("", "neither DICOM nor PNG nor JPEG. Save it as one of them")
    try:
        data, boxes = cleaned_picture(raw, how.text)
    except PictureError as error:
        return _left_out(kind, str(error))
    name = f"F{how.pseudonyms.name('picture', source)[1:]}.{kind}"
    report = {"kind": kind, "text": _said(boxes, how), "elements": "metadata removed"}
    return _kept(data, name, boxes, how, report)


def _left_out(kind: str, why: str) -> Outcome:
    return Outcome(b"", "", {"status": "left out", "kind": kind, "note": " ".join(why.split())})


def _kept(data: bytes, name: str, boxes: Sequence[Box], how: Rules, report: dict[str, str]) -> Outcome:
    aside = bool(boxes) and how.text == FLAG
    file = f"{FLAGGED}/{name}" if aside else name
    return Outcome(data, file, {"file": file, "status": "flagged" if aside else "ok", **report})


def _said(boxes: Sequence[Box], how: Rules) -> str:
    if how.text == KEEP:
        return "not looked for"
    places = " ".join(f"{box.x:.0f},{box.y:.0f},{box.w:.0f},{box.h:.0f}" for box in boxes)
    return f"{'blanked' if how.text == BLANK else 'found'} {places}" if boxes else "none found"


def _dicom(raw: bytes, source: str, how: Rules) -> Outcome:
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions

    dataset, notes = open_dataset(raw, source)
    stored = stored_values(dataset, source, notes)  # what holds no picture may hold a report: it is left out
    patient, study = text(dataset, "PatientID"), text(dataset, "StudyInstanceUID")
    person = f"{text(dataset, 'IssuerOfPatientID')}\0{patient}"
    named = _words(dataset)
    dates = {name: text(dataset, name) for name in _SHIFTED}
    boxes = (
        [] if how.text == KEEP else find_text(stored.values if stored.values.ndim == 2 else stored.values.mean(axis=2))
    )
    if boxes and how.text == BLANK:
        _write_pixels(dataset, blanked(stored.values, boxes), stored.bits, stored.signed, stored.photometric)
    before = len(dataset)
    for part in _parts(dataset):
        anonymize_dataset(part, how.actions, True, lambda: initialize_actions(_TABLE))
        for element in list(part):
            if element.VR in ("DA", "TM", "DT") and str(element.value).startswith(("0001", "000000.00")):
                part[element.tag].value = ""
    alias = how.pseudonyms.name("patient", person) if patient else ""
    dataset.PatientID = dataset.PatientName = alias
    if how.keep_intervals:
        for name, value in dates.items():
            moved = how.pseudonyms.date(value, person)
            if moved:
                setattr(dataset, name, moved)
    _say_so(dataset, boxes, how)
    leaked = _removed_words(dataset, named)
    uid = text(dataset, "SOPInstanceUID") or how.pseudonyms.uid(sha256_of(raw))
    folder = alias or "unknown"
    report = {
        "kind": "dicom",
        "patient": alias,
        "study": how.pseudonyms.uid(study),
        "text": _said(boxes, how),
        "elements": f"{before} before, {len(dataset)} after",
        "note": f"names found in {', '.join(leaked)}: removed" if leaked else "",
    }
    return _kept(_packed(dataset), f"{folder}/{sha256_of(uid.encode())[:16]}.dcm", boxes, how, report)


def _parts(dataset: Dataset) -> Iterator[Dataset]:
    """The data set, and those in its sequences as they are left: the library looks at the first level alone."""
    yield dataset
    for element in list(dataset):
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _parts(item)


def _words(dataset: Dataset) -> set[str]:
    """The patient's name, in parts, and ID: what must be nowhere in the result."""
    found = [text(dataset, "PatientID")]
    found += text(dataset, "PatientName").replace("=", "^").replace(" ", "^").split("^")
    return {word.casefold() for word in found if len(word) >= _LEAST}


def _removed_words(dataset: Dataset, words: set[str]) -> list[str]:
    """Remove elements whose text holds one of the words; their keywords."""
    out = []
    for part in _parts(dataset):
        for element in list(part):
            if element.VR in _TEXTS and any(word in str(element.value).casefold() for word in words):
                out.append(element.keyword or str(element.tag))
                del part[element.tag]
    return out


def _say_so(dataset: Dataset, boxes: Sequence[Box], how: Rules) -> None:
    used = ["113100"]
    used += ["113101"] if boxes and how.text == BLANK else []
    used += ["113107"] if how.keep_intervals else []
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "PS3.15 basic profile"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED" if how.keep_intervals else "REMOVED"
    items = []
    for code in used:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "DCM", _METHODS[code]
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = items


def _write_pixels(dataset: Dataset, values: np.ndarray, bits: int, signed: bool, photometric: str) -> None:
    """Pixels as they are meant, without compression."""
    size = 8 if bits <= 8 else 16 if bits <= 16 else 32
    kind = np.dtype(f"<{'i' if signed else 'u'}{size // 8}")
    data = values.astype(kind).tobytes()
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else 3
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = size, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.pop("NumberOfFrames", None)
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        dataset.pop(keyword, None)
    dataset.add_new("PixelData", "OB" if size == 8 else "OW", data + b"\0" * (len(data) % 2))
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _packed(dataset: Dataset) -> bytes:
    """The file with a header of its own: preamble and group 2 of the source may name people and machines."""
    syntax = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.7")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "2.25.1")
    dataset.preamble = bytes(128)
    with io.BytesIO() as file:
        if syntax == ExplicitVRBigEndian:
            pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=False)
        else:
            pydicom.dcmwrite(file, dataset, enforce_file_format=True)
        return file.getvalue()


@dataclass
class Counts:
    """How many files were written, put aside for their text, and left out."""

    ok: int = 0
    flagged: int = 0
    left_out: int = 0


def deidentify(inputs: Sequence[Path], out: Path, how: Rules, *, mode: int = 0o600) -> Counts:
    """De-identify files and folders into a folder, with a report that may go with the films, and a key that may not.

    `out/report.csv` tells what was done with each film. `<out>-key.csv`, beside the folder, says which file it was:
    paths may hold names.

    Raises:
        DeidentifyError: `out` holds files already, or an earlier call left its key.
        OSError: the disk takes no more.
    """
    named = key_file(out)
    if named.exists():
        raise DeidentifyError(
            f"{named} tells which film is which of an earlier call, and would be lost. Move it, or give another --out"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DeidentifyError(f"--out {out} is there and not empty. Give a new folder: what is in it would be mixed")
    found = list(_files(inputs))  # before there is anything in `out`, which may lie in an input
    counts, report, key = Counts(), [], []
    taken: set[str] = set()
    out.mkdir(mode=folder_mode(mode), parents=True, exist_ok=True)
    for source, name in found:
        try:
            outcome = deidentified(source.read_bytes(), name, how)
        except OSError as error:
            outcome = _left_out("", f"it cannot be read ({error.strerror or error})")
        except Exception as error:  # a film that breaks the library must not leave with what it holds
            outcome = _left_out("", f"{type(error).__name__} while it was worked on")
        if outcome.data:
            if outcome.name in taken:  # another film with the same UID, or the same one again
                outcome = _renamed(outcome, sha256_of(outcome.data)[:8])
            taken.add(outcome.name)
            _folders(out, Path(outcome.name).parent, mode)
            write_bytes(out / outcome.name, outcome.data, mode=mode)
        report.append(outcome.report)
        key.append({"source": str(source), **{c: outcome.report.get(c, "") for c in KEY_COLUMNS if c != "source"}})
        status = outcome.report["status"].replace(" ", "_")
        setattr(counts, status, getattr(counts, status) + 1)
    write_csv(out / "report.csv", COLUMNS, sorted(report, key=lambda row: row.get("file", "~")), mode=mode)
    write_csv(named, KEY_COLUMNS, key, mode=mode)
    return counts


def key_file(out: Path) -> Path:
    """Where it is written which film is which: beside the folder, not in it."""
    whole = Path(os.path.abspath(out))
    return whole.with_name(f"{whole.name}-key.csv")


def _renamed(outcome: Outcome, tail: str) -> Outcome:
    stem, dot, kind = outcome.name.rpartition(".")
    name = f"{stem}-{tail}{dot}{kind}"
    return Outcome(outcome.data, name, {**outcome.report, "file": name})


def _folders(out: Path, below: Path, mode: int) -> None:
    here = out
    for part in below.parts:
        here = here / part
        here.mkdir(mode=folder_mode(mode), exist_ok=True)


def _files(inputs: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """All files with their paths below what was given, in a fixed order."""
    for given in inputs:
        if not given.is_dir():
            yield given, given.name
            continue
        for folder, folders, names in os.walk(given):
            folders.sort()
            for name in sorted(names):
                if not name.startswith(".") and name.upper() != "DICOMDIR":
                    path = Path(folder) / name
                    yield path, path.relative_to(given).as_posix()
