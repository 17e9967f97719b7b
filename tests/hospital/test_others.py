"""The node beside other people's programs: DCMTK's and Orthanc's."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import pytest

pytest.importorskip("pynetdicom")

from cxr_pipeline.dicom.peers import Peer
from cxr_pipeline.results.reader import rows
from tests.hospital import orthanc
from tests.hospital.parts import CT, as_bytes, dicom_film, node, uid, until


def dcmtk(tool, *words):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (Debian's package dcmtk)")
    return subprocess.run([tool, *map(str, words)], capture_output=True, text=True, timeout=60)


def test_dcmtk_echoes_and_stores_in_its_own_encodings(tmp_path):
    for seed in range(4):
        (tmp_path / f"{seed}.dcm").write_bytes(as_bytes(dicom_film(seed)))
    with node(tmp_path / "out") as one:
        there = ("-aet", "UNIT", "-aec", "CXR", "127.0.0.1", one.port)
        assert dcmtk("echoscu", *there).returncode == 0
        for seed, encoding in enumerate(("-xe", "-xi", "-xb", "-xd")):  # the last, deflated, is not taken
            said = dcmtk("storescu", encoding, *there, tmp_path / f"{seed}.dcm")
            assert said.returncode == 0, said.stderr
        until(lambda: sum(one.counts[status] for status in ("ok", "refused", "failed")) == 4)
    assert {row["id"]: row["status"] for row in rows(tmp_path / "out")} == {uid(seed): "ok" for seed in range(4)}


def test_a_compressed_film_comes_through_as_it_is(tmp_path):
    film = dicom_film(1)
    film.compress("1.2.840.10008.1.2.5")
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = uid(1)  # compress() does not change it
    (tmp_path / "rle.dcm").write_bytes(b"")
    film.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    with node(tmp_path / "out") as one:
        said = dcmtk("storescu", "-xr", "-aec", "CXR", "127.0.0.1", one.port, tmp_path / "rle.dcm")
        assert said.returncode == 0, said.stderr
        until(lambda: one.counts["ok"] == 1)
    import pydicom

    kept = pydicom.dcmread(tmp_path / "out" / "spool" / "films" / f"{uid(1)}.dcm")
    assert kept.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.5"
    assert kept.PixelData == film.PixelData


def test_orthanc_asks_for_storage_commitment_and_is_told(tmp_path):
    if orthanc.missing():
        pytest.skip(orthanc.missing())
    server = orthanc.Orthanc(tmp_path / "orthanc")
    with node(tmp_path / "out", peers_known=(Peer("ORTHANC", "127.0.0.1", server.dicom),)) as one:
        server.config["DicomModalities"] = {"cxr": ["CXR", "127.0.0.1", one.port]}
        server.start()
        try:
            kept = server.upload(as_bytes(dicom_film(1)))["ID"]
            other = server.upload(as_bytes(dicom_film(2, CT, Modality="CT")))["ID"]
            server.ask("/modalities/cxr/store", json.dumps([kept, other]).encode(), "POST")
            wanted = json.dumps({"Resources": [kept, other]}).encode()
            asked = json.loads(server.ask("/modalities/cxr/storage-commitment", wanted, "POST"))
            end = time.monotonic() + 60
            while (report := server.get(asked["Path"]))["Status"] == "Pending":
                assert time.monotonic() < end, report
                time.sleep(0.2)
        finally:
            server.stop()
    assert [item["SOPInstanceUID"] for item in report["Success"]] == [uid(1)]
    assert [item["SOPInstanceUID"] for item in report["Failures"]] == [uid(2)]
