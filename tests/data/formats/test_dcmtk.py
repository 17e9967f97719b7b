"""Every picture of pydicom's own test set, against DCMTK, which shares no code with our reader."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from cxr_pipeline.data.formats import base, dicom, dicom_header
from cxr_pipeline.data.formats.base import RadiographError

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
NEEDED = ("dcm2pnm", "dcmj2pnm", "dcml2pnm")
# 32 bits without a window: DCMTK shows the range of 32 bits, which is black all over; we take that of the values.
DIFFERENT = ("rtdose_1frame.dcm", "rtdose_expb_1frame.dcm", "rtdose_rle_1frame.dcm", "badVR.dcm")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, NEEDED)), reason="DCMTK is not installed (apt-get install dcmtk)"
)


def pictures():
    for path in sorted(FOLDER.rglob("*.dcm")):
        try:
            header = pydicom.dcmread(path, force=True, specific_tags=["NumberOfFrames", "PixelData"])
        except Exception:
            continue
        if path.name in DIFFERENT:
            continue
        if "PixelData" in header and str(header.get("NumberOfFrames") or 1) == "1":
            yield path


def by_dcmtk(path: Path, out: Path) -> np.ndarray | None:
    """As DCMTK renders it (H, W) float in [0, 1]; None where it does not."""
    header = pydicom.dcmread(path, force=True)
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    tool = (
        "dcmj2pnm" if syntax in JPEGTransferSyntaxes else "dcml2pnm" if syntax in JPEGLSTransferSyntaxes else "dcm2pnm"
    )
    voi = ["+Wl", "1"] if "VOILUTSequence" in header else ["+Wi", "1"] if header.get("WindowWidth") else []
    done = subprocess.run([tool, *voi, "+op", str(path), str(out)], capture_output=True, timeout=60)
    if done.returncode or not out.is_file():
        return None
    picture = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)
    if picture is None:
        return None
    return (
        cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) / 255 if picture.ndim == 3 else picture / np.iinfo(picture.dtype).max
    )


@pytest.fixture
def ours(monkeypatch):
    """Our reader, of any modality, part of the body and size."""
    monkeypatch.setattr(dicom_header, "refuse_others", lambda *_: None)
    monkeypatch.setattr(base, "MIN_SIDE", 1)
    return lambda path: dicom.Dicom().decode(path.read_bytes(), str(path)).pixels


@pytest.mark.filterwarnings("ignore:Polyfit may be poorly conditioned")  # a picture of one grey level
@pytest.mark.parametrize("path", list(pictures()), ids=lambda path: path.name)
def test_what_dcmtk_reads_we_read_alike(path, ours, tmp_path):
    theirs = by_dcmtk(path, tmp_path / "a.pnm")
    if theirs is None:
        pytest.skip("DCMTK does not read this one")
    try:
        mine = ours(path)
    except RadiographError as error:
        pytest.fail(f"DCMTK reads it, and we say: {error}")
    assert mine.shape == theirs.shape
    # Without a window each reader has a range of its own from black to white: a line leads from one to the other.
    slope, shift = np.polyfit(mine.ravel(), theirs.ravel(), 1)
    assert slope > 0
    assert np.abs(slope * mine + shift - theirs).mean() < 0.01
