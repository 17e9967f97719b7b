"""A real archive takes the answers, files them with the film, shows them, and keeps none twice."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request

import cv2
import numpy as np
import pydicom
import pytest

from tests.pipeline.dicom_films import HEADER, write
from tests.pipeline.test_dicom_output import judged

pytest.importorskip("highdicom")


@pytest.fixture
def orthanc(tmp_path):
    """The address of an Orthanc of this test alone, on loopback."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed (package orthanc)")
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    settings = {
        "StorageDirectory": str(tmp_path / "store"),
        "IndexDirectory": str(tmp_path / "store"),
        "HttpPort": ports[0],
        "DicomPort": ports[1],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": False,
        "Plugins": [],
        "OverwriteInstances": False,
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with open(tmp_path / "orthanc.log", "wb") as log:
        server = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{ports[0]}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/system", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "orthanc.log").read_text(errors="replace")
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def ask(address, path, data=None, headers=None):
    request = urllib.request.Request(address + path, data=data, headers=headers or {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


@pytest.mark.slow
def test_an_archive_takes_files_and_shows_the_answers(orthanc, tmp_path):
    path = write(tmp_path / "film.dcm")
    files, one, _ = judged(path)
    sent = {
        kind: json.loads(ask(orthanc, "/instances", file.read_bytes()))
        for kind, file in [("film", path), *files.items()]
    }
    assert {answer["Status"] for answer in sent.values()} == {"Success"}
    (study,) = json.loads(ask(orthanc, "/studies"))
    about = json.loads(ask(orthanc, f"/studies/{study}"))
    assert about["PatientMainDicomTags"]["PatientID"] == HEADER["PatientID"]
    assert about["MainDicomTags"]["AccessionNumber"] == HEADER["AccessionNumber"]
    series = [json.loads(ask(orthanc, f"/series/{name}"))["MainDicomTags"]["Modality"] for name in about["Series"]]
    assert sorted(series) == ["CR", "OT", "PR", "SEG", "SR"]

    shown = ask(orthanc, f"/instances/{sent['sc']['ID']}/preview", headers={"Accept": "image/png"})
    picture = cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(picture[..., ::-1], pydicom.dcmread(files["sc"]).pixel_array)
    frame = ask(orthanc, f"/instances/{sent['seg']['ID']}/frames/0/raw")
    bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[: one.mask.size]
    right = bits.reshape(one.mask.shape)
    assert right.sum() == one.measures["right_lung_px"]
    for kind, file in files.items():
        assert ask(orthanc, f"/instances/{sent[kind]['ID']}/file") == file.read_bytes()


@pytest.mark.slow
def test_what_is_judged_and_sent_again_is_there_already(orthanc, tmp_path):
    path = write(tmp_path / "film.dcm")
    for status in ("Success", "AlreadyStored"):
        for file in judged(path)[0].values():
            assert json.loads(ask(orthanc, "/instances", file.read_bytes()))["Status"] == status
    assert len(json.loads(ask(orthanc, "/instances"))) == 4
