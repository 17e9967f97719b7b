"""The API: what it answers, and what it refuses."""

from __future__ import annotations

import csv
import io
import logging
import socket
import tempfile
import time
import zipfile

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from cxr_pipeline.web import security
from tests.pipeline.web_server import (
    Gate,
    bomb,
    dicom,
    done,
    fake,
    files_in,
    listening,
    one,
    pages,
    png,
    refused,
    serving,
    several,
)

pytestmark = pytest.mark.usefixtures("kept_decoders")


@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    """What the server leaves lies where the test can see it."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def client():
    with serving() as client:
        yield client


def test_one_film_is_a_row_of_the_table_and_its_boxes(client):
    body = client.post("/v1/analyze", files=one(png(1, lungs=0.35))).json()
    assert (body["image"], body["status"], body["error"]) == ("a.png", "ok", "")
    assert (body["width"], body["height"]) == (96, 72)
    assert body["label"] == "TB"
    assert body["tb_score"] == pytest.approx(100 * body["p_TB"], abs=0.06)
    assert body["regions"] == len(body["boxes"]) == 1
    assert body["boxes"][0]["side"] == "right"
    assert "not a medical device" in body["notice"].lower()


def test_a_job_ends_as_a_results_folder(client):
    answer = client.post(
        "/v1/jobs", files=several(("a.png", png(1)), ("b.txt", b"no film"), ("c.png", png(3, lungs=0.35)))
    )
    assert answer.status_code == 202
    job = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/jobs/{job}"
    body = done(client, job)
    assert body["counts"] == {"ok": 2, "refused": 0, "failed": 1}
    assert [one["name"] for one in body["films"]] == ["a.png", "b.txt", "c.png"]
    assert body["films"][1]["pictures"] == []
    results = client.get(f"/v1/jobs/{job}/results").json()["results"]
    assert results == [one["result"] for one in body["films"]]
    packed = zipfile.ZipFile(io.BytesIO(client.get(f"/v1/jobs/{job}/results.zip").content))
    rows = list(csv.DictReader(io.TextIOWrapper(packed.open("results.csv"), "utf-8")))
    assert [row["image"] for row in rows] == ["a.png", "b.txt", "c.png"]
    for row, result in zip(rows, results, strict=True):
        for name, text in row.items():
            value = result[name]
            assert (text == "") if value in (None, "") else (text == value or float(text) == value), name
    assert "masks/film-0001.png" in packed.namelist()
    assert not [name for name in packed.namelist() if "journal" in name or ".." in name or name.startswith("/")]


def test_pictures_have_the_size_that_is_promised(client):
    job = client.post("/v1/jobs", files=several(("a.png", png(1, lungs=0.35)))).json()["id"]
    (judged,) = done(client, job)["films"]
    assert judged["pictures"] == ["film.png", "mask.png", "crop.png", "heatmap.png", "overlay.jpg"]
    for name in judged["pictures"]:
        answer = client.get(f"/v1/jobs/{job}/films/film-0001/{name}")
        assert answer.headers["content-type"] == ("image/jpeg" if name.endswith(".jpg") else "image/png")
        image = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
        if name in ("film.png", "mask.png", "heatmap.png"):
            assert image.shape == (72, 96)
    refused(client.get(f"/v1/jobs/{job}/films/film-0002/film.png"), 404, "no_such_picture")
    refused(client.get(f"/v1/jobs/{job}/films/film-0001/run.json"), 422, "invalid")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"%PDF-1.4" + bytes(200), 415, "not_an_image"),
        (b"<html>", 415, "not_an_image"),
        (b"", 422, "empty_file"),
        (bomb(), 413, "too_large"),
        (dicom(rows=40_000), 413, "too_large"),
        (dicom("1.2.840.10008.1.2.1.99", data=bytes(20_000_000)), 413, "too_large"),
        (dicom(modality="CT"), 422, "not_a_radiograph"),
        (pages(3), 422, "multi_frame"),
        (png()[:-30], 422, "truncated"),
        (png(size=(16, 16)), 422, "too_small"),
    ],
    ids=["pdf", "html", "empty", "bomb", "large dicom", "deflate bomb", "ct", "pages", "cut", "small"],
)
def test_what_is_no_film_is_refused_by_its_content(data, status, code):
    with serving(max_megapixels=1) as client:
        message = refused(client.post("/v1/analyze", files=one(data, "film.png")), status, code)
        assert "film.png" not in message
        assert str(tempfile.gettempdir()) not in message


@pytest.mark.parametrize(
    "data",
    [dicom(), dicom("1.2.840.10008.1.2.1.99"), dicom()[132:]],
    ids=["as it is", "deflated", "without preamble"],
)
def test_dicom_is_known_by_its_content(client, data):
    assert client.post("/v1/analyze", files=one(data, "x.jpg")).json()["status"] == "ok"


def test_bytes_are_bounded_stated_or_not(own_tmp):
    with serving(max_upload_mb=0.2, max_job_mb=0.3) as client:
        refused(client.post("/v1/analyze", files=one(bytes(400_000))), 413, "too_large")
        refused(client.post("/v1/analyze", files=one(png() + bytes(230_000))), 413, "too_large")

        def chunks():
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
            for _ in range(400):
                yield bytes(1000)

        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        refused(client.post("/v1/analyze", content=chunks(), headers=kind), 413, "too_large")
        refused(client.request("DELETE", "/v1/jobs/" + 32 * "0", content=bytes(100_000)), 413, "too_large")
        job = client.post("/v1/jobs", files=several(("a.png", png() + bytes(230_000)), ("b.png", png()))).json()["id"]
        assert done(client, job)["counts"] == {"ok": 1, "refused": 0, "failed": 1}
        client.delete(f"/v1/jobs/{job}")
        assert files_in(own_tmp) == []


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{}", {"Content-Type": "application/json"}, 415, "not_multipart"),
        (b"", {}, 415, "not_multipart"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "malformed"),
        (b"x", {"Content-Type": "multipart/form-data; boundary="}, 400, "malformed"),
        (b"x", {"Content-Type": 'multipart/form-data; x="; boundary=b"'}, 400, "malformed"),
        (b"--b\r\nno header\r\n", {"Content-Type": "multipart/form-data; boundary=b; charset=bogus"}, 400, "malformed"),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--b--\r\n',
            {"Content-Type": "multipart/form-data; boundary=b; charset=hex"},
            422,
            "no_file",
        ),
        (b"junk", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "malformed"),
        (b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, 422, "no_file"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/analyze", "/v1/jobs"])
def test_malformed_requests(client, path, content, headers, status, code):
    refused(client.post(path, content=content, headers=headers), status, code)
    assert client.get("/healthz").json()["queue"] == 0


def test_an_upload_that_stalls_is_ended(monkeypatch):
    monkeypatch.setattr(security, "_IDLE", 0.05)
    with listening() as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            start = "POST /v1/analyze HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            connection.sendall(f"{start}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
            answer = b""
            while b"stalled" not in answer:
                part = connection.recv(4096)
                assert part, answer
                answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_one_film_is_one(client):
    refused(client.post("/v1/analyze", files=several(("a", png()), ("b", png()))), 413, "too_many_files")
    refused(client.post("/v1/analyze", data={"file": "text"}, files={"other": png()}), 422, "no_file")


def test_a_full_queue_says_when_to_come_back(own_tmp):
    gate = Gate()
    with serving(gate.chain, queue=2) as client:
        job = client.post("/v1/jobs", files=several(("a", png(1)), ("b", png(2)))).json()["id"]
        for path in ("/v1/analyze", "/v1/jobs"):
            answer = client.post(path, files=one())
            refused(answer, 429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
        refused(client.get(f"/v1/jobs/{job}/results.zip"), 409, "not_finished")
        gate.open.set()
        done(client, job)
        refused(client.post("/v1/jobs", files=several(*[(str(n), png(n)) for n in range(3)])), 413, "too_many_files")
        assert client.post("/v1/analyze", files=one()).status_code == 200
        assert client.get("/healthz").json()["queue"] == 0


def test_a_film_that_takes_too_long_is_a_timeout():
    gate = Gate()
    with serving(gate.chain, timeout=0.05) as client:
        refused(client.post("/v1/analyze", files=one()), 504, "timeout")
        gate.open.set()


def test_a_large_job_keeps_nobody_waiting():
    gate = Gate()
    with serving(gate.chain) as client:
        job = client.post("/v1/jobs", files=several(*[(str(n), png(n)) for n in range(5)])).json()["id"]
        assert gate.entered.wait(60)
        small = client.post("/v1/jobs", files=one(png(size=(72, 80)))).json()["id"]
        sizes, stage = [], gate.chain.stages[1]
        inner = stage.run
        stage.run = lambda records: (sizes.append(records[0].radiograph.size), inner(records))[1]
        gate.open.set()
        done(client, small)
        done(client, job)
        assert sizes.index((72, 80)) <= 2  # not behind all five


def test_a_crash_in_the_chain_costs_one_film_and_tells_nothing(caplog):
    chain = fake(raises_on=("film-0001",))
    with caplog.at_level(logging.INFO, "cxr.web"), serving(chain) as client:
        message = refused(client.post("/v1/analyze", files=one(name="jane.png")), 500, "internal")
        assert "cannot do" not in message
        job = client.post("/v1/jobs", files=several(("jane.png", png(1)), ("b.png", png(2)))).json()["id"]
        body = done(client, job)
        assert body["counts"] == {"ok": 1, "refused": 0, "failed": 1}
        assert "ZeroDivisionError at fake_chain.py" in caplog.text
        assert "cannot do" not in caplog.text
        names = zipfile.ZipFile(io.BytesIO(client.get(f"/v1/jobs/{job}/results.zip").content)).namelist()
        assert "run.log" not in names
        assert client.get("/healthz").json()["status"] == "ok"


def test_a_waiting_job_can_be_taken_back(own_tmp):
    gate = Gate()
    with serving(gate.chain) as client:
        job = client.post("/v1/jobs", files=several(("a", png(1)), ("b", png(2)))).json()["id"]
        assert gate.entered.wait(60)
        assert client.delete(f"/v1/jobs/{job}").status_code == 204
        gate.open.set()
        assert client.post("/v1/analyze", files=one()).status_code == 200
        assert client.get("/healthz").json()["queue"] == 0
        assert files_in(own_tmp) == []


def test_health_says_when_the_thread_is_gone(client):
    assert client.get("/healthz").json()["status"] == "ok"
    client.app.state.queue._since = time.monotonic() - 1e6
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "stuck")


def test_a_full_disk_is_said(client, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1, 1, 0))
    answer = client.post("/v1/analyze", files=one())
    refused(answer, 503, "disk_full")
    assert client.get("/healthz").json()["queue"] == 0
