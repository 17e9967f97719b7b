"""Who made an answer, and what every answer has in common: its series, its UIDs, its equipment, its bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pydicom import dcmwrite
from pydicom.dataset import Dataset

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.dicom.headers import CHARACTERS, MORE_OF_THEM, PATIENT_AND_STUDY, FilmHeader
from cxr_pipeline.dicom.uids import stable_uid

NOTICE = "Research use only. Not a medical device; no diagnosis may rest on it."
MANUFACTURER = "cxr-pipeline"
# Kind of an answer -> number and name of its series. High numbers come last in a viewer's list.
SERIES = {
    "film": (9100, "Film"),
    "seg": (9101, "Lungs"),
    "sr": (9102, "Measurements"),
    "sc": (9103, "Overlay"),
    "pr": (9104, "Outline and boxes"),
}
_LONG = 64  # characters of an LO

_TEXTS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")

# It remarks on names of patients, which are what the film's header says.
warnings.filterwarnings("ignore", module="highdicom")


class ExtraError(CxrError, RuntimeError):
    """A package that writing DICOM needs is not installed."""


def need(*packages: str, extra: str = "dicom") -> None:
    """See that packages are installed.

    Raises:
        ExtraError: one is not; names the extra that brings it.
    """
    missing = [name for name in packages if not _there(name)]
    if missing:
        raise ExtraError(
            f"this needs {' and '.join(missing)}, which is not installed. Install it: "
            f"pip install 'cxr-pipeline[{extra}]'"
        )


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a name with a dot: the package before it is missing
        return False


@dataclass(frozen=True)
class Maker:
    """The program with its weights.

    Attributes:
        weights: their name.
        version: of the program.
        fingerprint: 16 hex digits over all that decides the answers: weights and settings.
        stages: the fingerprint of each stage by its name.
    """

    weights: str
    version: str
    fingerprint: str
    stages: Mapping[str, str]

    def uid(self, film: str, kind: str) -> str:
        """The UID of one thing in the answers to the film with this SOP Instance UID."""
        return stable_uid("answer", kind, film, self.fingerprint, self.version)

    @property
    def model(self) -> str:
        """The program and its weights, as Manufacturer's Model Name."""
        return f"{MANUFACTURER} {self.weights}"[:_LONG]

    def common(self, header: FilmHeader, kind: str) -> dict[str, Any]:
        """The arguments that all constructors of highdicom take alike; `kind` is one of `SERIES`."""
        film = str(header.dataset.SOPInstanceUID)
        number, name = SERIES[kind]
        return {
            "series_instance_uid": self.uid(film, f"{kind} series"),
            "series_number": number,
            "sop_instance_uid": self.uid(film, kind),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.model,
            "software_versions": self.version[:_LONG],
            "device_serial_number": self.fingerprint,
            "series_description": f"{name} (research use only)",
        }


def _place(dataset: Dataset, film: Dataset) -> None:
    """Part and side of the body, as the film has them; an answer without them would leave its viewer to guess."""
    if dataset.Modality == "SR":
        return  # its content says where things are
    dataset.BodyPartExamined = "CHEST"
    side = film.get("ImageLaterality", "")
    if side in ("R", "L"):
        dataset.Laterality = side
    elif "Laterality" in dataset:
        del dataset.Laterality  # the chest is no paired part
    if "Rows" in dataset and "PatientOrientation" not in dataset:
        dataset.PatientOrientation = film.get("PatientOrientation", "")


def packed(dataset: Dataset, header: FilmHeader) -> bytes:
    """An answer as the bytes of its file: the same for the same film, whenever it is made."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            delattr(dataset, keyword)
    for item in dataset.get("ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    if "DateOfSecondaryCapture" in dataset:
        dataset.DateOfSecondaryCapture, dataset.TimeOfSecondaryCapture = header.date, header.time
    for keyword in (*PATIENT_AND_STUDY, *MORE_OF_THEM):
        if keyword in header.dataset:
            dataset[keyword] = header.dataset[keyword]
    _place(dataset, header.dataset)
    dataset.SeriesDate, dataset.SeriesTime = header.date, header.time
    if "ContentDate" in dataset:
        dataset.ContentDate, dataset.ContentTime = header.date, header.time
    if _plain(dataset):
        dataset.pop("SpecificCharacterSet", None)
    else:
        dataset.SpecificCharacterSet = CHARACTERS
    with io.BytesIO() as file:
        dcmwrite(file, dataset, enforce_file_format=True)
        return file.getvalue()


def _plain(dataset: Dataset) -> bool:
    """Whether all text is ASCII: such files name no character set, which old programs know nothing of."""
    for element in dataset.iterall():
        if element.VR in _TEXTS and element.value and not str(element.value).isascii():
            return False
    return True
