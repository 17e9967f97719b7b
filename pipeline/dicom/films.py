"""Headers for films that are no DICOM: from a table, with the film itself as a Secondary Capture to refer to."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import sha256_of
from cxr_pipeline.data.formats.dicom_header import text
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.data.tables import TableError, read_table
from cxr_pipeline.dicom.headers import FilmHeader, HeaderError, film_header
from cxr_pipeline.dicom.maker import MANUFACTURER, Maker
from cxr_pipeline.dicom.uids import stable_uid

KEYWORDS = (
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("PatientSize", "PatientWeight", "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription"),
    *("AccessionNumber", "ReferringPhysicianName", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "ViewPosition"),
    *("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "ContentDate", "ContentTime"),
    *("ImageLaterality", "PatientOrientation", "PixelSpacing", "ImagerPixelSpacing", "TimezoneOffsetFromUTC"),
)
_STUDY = ("AccessionNumber", "StudyID", "StudyDate")  # what tells the studies of a patient apart, where there is no UID


class HeaderTableError(CxrError, ValueError):
    """A table of headers that cannot be used; says which row or column."""


@dataclass(frozen=True)
class HeaderTable:
    """Headers of films by file, see `read_headers`.

    Attributes:
        path: of the table.
        rows: values by DICOM keyword, by the film's absolute path.
        names: likewise by the file's name, of rows that say no more than the name and lead to no file themselves.
    """

    path: str
    rows: Mapping[str, Mapping[str, str]] = field(repr=False)
    names: Mapping[str, Mapping[str, str]] = field(repr=False)

    def find(self, film: str | Path) -> Mapping[str, str] | None:
        """The row of a film by its path, else by its name; None where there is none."""
        return self.rows.get(os.path.abspath(film)) or self.names.get(os.path.basename(film))

    def for_films(self, films: Iterable[str | Path]) -> HeaderTable:
        """The table for a run on these films: a name that several of them have says of none whose it is."""
        count = Counter(os.path.basename(film) for film in films)
        return replace(self, names={name: row for name, row in self.names.items() if count[name] < 2})

    @property
    def digest(self) -> str:
        """12 hex digits that change with what the table says of any film."""
        return sha256_of(json.dumps([self.rows, self.names], sort_keys=True, default=dict).encode())[:12]


def read_headers(path: Path) -> HeaderTable:
    """A table with the column `image`, and further ones called by DICOM keywords (`KEYWORDS`).

    Paths in it are below the table's folder, or absolute; where a row has a name alone, and the table's folder no such
    file, the row is of the film with that name, wherever it is. Empty cells say nothing.

    Raises:
        HeaderTableError: it cannot be read, has another column, no PatientID, or two rows of one film.
    """
    try:
        table = read_table(path, ["image"])
    except TableError as error:
        raise HeaderTableError(f"--dicom-header {path}: {error}") from None
    for column in table.columns:
        if column != "image" and column not in KEYWORDS:
            near = get_close_matches(column, KEYWORDS, 1)
            raise HeaderTableError(
                f"--dicom-header {path}: the column {column!r} is none that is used"
                + (f"; did you mean {near[0]}?" if near else "")
                + f". There are image, {', '.join(KEYWORDS)}"
            )
    if "PatientID" not in table.columns:
        raise HeaderTableError(f"--dicom-header {path}: there is no column PatientID. Add it")
    rows: dict[str, Mapping[str, str]] = {}
    names: dict[str, Mapping[str, str]] = {}
    for number, row in zip(table.numbers, table.rows, strict=True):
        if not row["image"]:
            continue
        place = os.path.abspath(path.parent / row["image"])
        if place in rows:
            raise HeaderTableError(
                f"--dicom-header {path}: row {number} names {row['image']} again. Keep one of the two"
            )
        rows[place] = {name: value for name, value in row.items() if name != "image" and value}
        # A path means that film and none of its name elsewhere: it would get the answers of another patient.
        if os.path.basename(row["image"]) == row["image"] and not os.path.lexists(place):
            names[row["image"]] = rows[place]
    return HeaderTable(str(path), rows, names)


def as_dataset(row: Mapping[str, str]) -> Dataset:
    """A row of the table as a data set; values with a backslash are several."""
    out = Dataset()
    for keyword, value in row.items():
        try:
            setattr(out, keyword, value.split("\\") if "\\" in value else value)
        except (ValueError, TypeError, OverflowError) as error:
            raise HeaderError(
                f"its row of --dicom-header has a {keyword} that the standard does not allow. Correct it there"
            ) from error
    return out


def listed_header(listed: Dataset, radiograph: Radiograph, sha256: str) -> FilmHeader:
    """The header of a film that is no DICOM.

    UIDs that the table does not give are made of what tells film and study: they are the same each time.

    Args:
        listed: the film's row, see `as_dataset`.
        sha256: of the film's file.

    Raises:
        HeaderError: patient or study are not given, or a value is none.
    """
    source = copy.copy(listed)
    patient, study = text(source, "PatientID"), [text(source, name) for name in _STUDY]
    if not patient or not (text(source, "StudyInstanceUID") or any(study)):
        raise HeaderError(
            "its row of --dicom-header lacks "
            + ("PatientID" if not patient else "the study: StudyInstanceUID, AccessionNumber, StudyID or StudyDate")
        )
    source.SOPClassUID = SecondaryCaptureImageStorage
    made = {
        "StudyInstanceUID": stable_uid("study", patient, *study),
        "SeriesInstanceUID": stable_uid("film series", patient, sha256),
        "SOPInstanceUID": stable_uid("film", patient, sha256),
    }
    for keyword, uid in made.items():
        if not text(source, keyword):
            setattr(source, keyword, uid)
    if radiograph.spacing and "PixelSpacing" not in source:
        source.PixelSpacing = [f"{value:.10g}" for value in radiograph.spacing]
    source.PhotometricInterpretation = "MONOCHROME2"
    return film_header(source, radiograph.size)


def film_capture(radiograph: Radiograph, header: FilmHeader, maker: Maker) -> Dataset:
    """The film itself as Secondary Capture, grey, in 8 or 16 bits: what the other answers refer to."""
    from highdicom.sc import SCImage

    bits = 8 if radiograph.bits <= 8 else 16
    kind = np.uint8 if bits == 8 else np.uint16
    film = header.dataset
    names = {"series_instance_uid": film.SeriesInstanceUID, "sop_instance_uid": film.SOPInstanceUID}
    made = SCImage.from_ref_dataset(
        film,
        pixel_array=np.rint(radiograph.pixels * float(np.iinfo(kind).max)).astype(kind),
        photometric_interpretation="MONOCHROME2",
        bits_allocated=bits,
        coordinate_system="PATIENT",
        patient_orientation=tuple(film.get("PatientOrientation", ("L", "F"))),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **{**maker.common(header, "film"), **names, "pixel_spacing": header.spacing},
    )
    made.ConversionType = "DF" if radiograph.format else "WSD"
    made.Modality = film.Modality
    made.Manufacturer = MANUFACTURER
    return made
