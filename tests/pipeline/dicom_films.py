"""DICOM films for tests of what is written back: a synthetic film with a whole header, and records made of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from cxr_pipeline.data.radiograph import read
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.measure import Measure
from tests.pipeline.fake_chain import FakeClassify, FakeLocalize, FakeSegment, film

_KNOWN = ("Segmentation", "ComprehensiveSR", "SCImage", "GrayscaleSoftcopyPresentationState")  # by dciodvfy
HEADER = {
    "PatientID": "P-0042",
    "IssuerOfPatientID": "HOSPITAL",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19700203",
    "PatientSex": "F",
    "PatientAge": "054Y",
    "StudyInstanceUID": "1.2.3.4.1",
    "SeriesInstanceUID": "1.2.3.4.2",
    "SOPInstanceUID": "1.2.3.4.3",
    "StudyID": "S1",
    "StudyDate": "20240506",
    "StudyTime": "101112",
    "AccessionNumber": "ACC7",
    "ReferringPhysicianName": "House^Gregory",
    "StudyDescription": "Chest PA",
    "Modality": "CR",
    "BodyPartExamined": "CHEST",
    "ViewPosition": "PA",
    "PatientOrientation": ["L", "F"],
    "ImagerPixelSpacing": ["0.4", "0.4"],
    "ImageType": ["ORIGINAL", "PRIMARY"],
}


def dataset(size=(72, 96), seed=0, **changes) -> Dataset:
    """A CR film of 12 bits; `changes` set or (None) remove elements."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = ComputedRadiographyImageStorage
    values = film(seed, size=size, lungs=0.35).astype(np.uint16) * 16
    pixels = {
        "Rows": size[0],
        "Columns": size[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": values.tobytes(),
    }
    for keyword, value in {**HEADER, **pixels, **changes}.items():
        if value is not None:
            setattr(made, keyword, value)
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", "1.2.3")
    return made


def write(path: Path, size=(72, 96), seed=0, **changes) -> Path:
    """The film as a file."""
    pydicom.dcmwrite(path, dataset(size, seed, **changes), enforce_file_format=True)
    return path


def judged_record(path: Path, name="a", upto="measure") -> Record:
    """The film in a file after a chain of fakes, up to and including one stage."""
    out = [Record(read(path, id=name))]
    for stage in (FakeSegment(), FakeClassify(), FakeLocalize(), Measure({"decisions": {}})):
        out = stage.run(out)
        if stage.name == upto:
            break
    return out[0]


@lru_cache
def some_film(size=(72, 96)) -> Path:
    """One film that all tests may read."""
    return write(Path(tempfile.mkdtemp()) / "film.dcm", size)


def tool(name: str) -> str:
    """The place of a program; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (packages dcmtk and dicom3tools)")
    return found


def output_of(*call: object) -> str:
    """What a program prints, standard error too."""
    done = subprocess.run([str(part) for part in call], capture_output=True, text=True, errors="replace", timeout=60)
    return done.stdout + done.stderr


def assert_conforms(path: Path) -> None:
    """No error by dciodvfy, which must know what the file is."""
    said = output_of(tool("dciodvfy"), path)
    assert "Error" not in said, said
    assert any(line.strip() in _KNOWN for line in said.splitlines()), said
