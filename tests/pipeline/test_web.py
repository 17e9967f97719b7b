"""The API: what it answers, what it refuses, what it leaves behind."""

from __future__ import annotations

import csv
import io
import logging
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from fastapi.testclient import TestClient

from pipeline.web import WebError, security
from pipeline.web.app import create_app
from pipeline.web.settings import Settings
from pipeline.web.uploads import shown_name
from tests.pipeline.fake_chain import film
from tests.pipeline.web_server import fake, listening

KEY = "0123456789abcdefSECRET"


def png(seed=0, **options):
    return cv2.imencode(".png", film(seed, **options))[1].tobytes()


def one(data=None, name="a.png"):
    return {"file": (name, png() if data is None else data)}


def several(*films):
    return [("file", (name, data)) for name, data in films]


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


def serving(chain=None, base_url="http://localhost", **settings):
    return TestClient(create_app(Settings(**settings), chain or fake()), base_url=base_url)


def done(client, job, **options):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        said = client.get(f"/v1/jobs/{job}", **options).json()
        if said["status"] == "done":
            return said
        time.sleep(0.01)
    raise AssertionError(said)


def refused(answer, status, code):
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert set(said) == {"code", "message"}
    assert said["code"] == code
    assert len(said["message"].split()) > 4
    return said["message"]


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_one_film_is_a_row_of_the_table_and_its_boxes(client):
    said = client.post("/v1/analyze", files=one(png(1, lungs=0.35))).json()
    assert (said["image"], said["status"], said["error"]) == ("a.png", "ok", "")
    assert (said["width"], said["height"]) == (96, 72)
    assert said["label"] == "TB"
    assert said["tb_score"] == pytest.approx(100 * said["p_TB"], abs=0.06)
    assert said["regions"] == len(said["boxes"]) == 1
    assert said["boxes"][0]["side"] == "right"
    assert "not a medical device" in said["notice"].lower()


def test_a_job_ends_as_a_results_folder(client):
    answer = client.post(
        "/v1/jobs", files=several(("a.png", png(1)), ("b.txt", b"no film"), ("c.png", png(3, lungs=0.35)))
    )
    assert answer.status_code == 202
    job = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/jobs/{job}"
    said = done(client, job)
    assert said["counts"] == {"ok": 2, "refused": 0, "failed": 1}
    assert [one["name"] for one in said["films"]] == ["a.png", "b.txt", "c.png"]
    assert said["films"][1]["pictures"] == []
    results = client.get(f"/v1/jobs/{job}/results").json()["results"]
    assert results == [one["result"] for one in said["films"]]
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
    assert judged["pictures"] == ["film.png", "mask.png", "crop.png", "heatmap.png", "overlay.png"]
    for name in judged["pictures"]:
        answer = client.get(f"/v1/jobs/{job}/films/film-0001/{name}")
        assert answer.headers["content-type"] == "image/png"
        image = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
        if name in ("film.png", "mask.png", "heatmap.png"):
            assert image.shape == (72, 96)
    refused(client.get(f"/v1/jobs/{job}/films/film-0002/film.png"), 404, "no_such_picture")
    refused(client.get(f"/v1/jobs/{job}/films/film-0001/run.json"), 422, "invalid")


def bomb():
    """A PNG of 60000 x 60000 by its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(64)


def pages(count):
    """A TIFF of several pages."""
    from PIL import Image

    file, images = io.BytesIO(), [Image.fromarray(film(seed)) for seed in range(count)]
    images[0].save(file, "TIFF", save_all=True, append_images=images[1:])
    return file.getvalue()


def dicom(syntax="1.2.840.10008.1.2.1", rows=72, data=None, modality="DX"):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    out = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    out.PatientName, out.Modality, out.PhotometricInterpretation = "Doe^Jane", modality, "MONOCHROME2"
    out.Rows, out.Columns, out.BitsAllocated, out.BitsStored, out.HighBit = rows, 96, 8, 8, 7
    out.SamplesPerPixel, out.PixelRepresentation = 1, 0
    out.PixelData = film(5).tobytes() if data is None else data
    file = io.BytesIO()
    out.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GIF89a" + bytes(200), 415, "not_an_image"),
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
    ids=["gif", "html", "empty", "bomb", "large dicom", "deflate bomb", "ct", "pages", "cut", "small"],
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
                more = connection.recv(4096)
                assert more, answer
                answer += more
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_one_film_is_one(client):
    refused(client.post("/v1/analyze", files=several(("a", png()), ("b", png()))), 413, "too_many_files")
    refused(client.post("/v1/analyze", data={"file": "text"}, files={"other": png()}), 422, "no_file")


class Gate:
    """Holds the chain until it is opened."""

    def __init__(self):
        self.open, self.entered = threading.Event(), threading.Event()
        self.chain = fake()
        inner = self.chain.stages[0].run

        def run(records):
            self.entered.set()
            assert self.open.wait(60)
            return inner(records)

        self.chain.stages[0].run = run


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
        said = done(client, job)
        assert said["counts"] == {"ok": 1, "refused": 0, "failed": 1}
        assert "ZeroDivisionError at fake_chain.py" in caplog.text
        assert "cannot do" not in caplog.text
        names = zipfile.ZipFile(io.BytesIO(client.get(f"/v1/jobs/{job}/results.zip").content)).namelist()
        assert "run.log" not in names
        assert client.get("/healthz").json()["status"] == "ok"


def test_nothing_is_kept(own_tmp):
    with serving() as client:
        client.post("/v1/analyze", files=one())
        client.post("/v1/analyze", files=one(b"no film at all"))
        client.post("/v1/jobs", files={"other": b"x"})
        assert files_in(own_tmp) == []
        first = client.post("/v1/jobs", files=one()).json()["id"]
        done(client, first)
        assert not [path for path in files_in(own_tmp) if "uploads" in path.parts]
        assert client.get(f"/v1/jobs/{first}/results.zip", params={"discard": True}).status_code == 200
        refused(client.get(f"/v1/jobs/{first}"), 404, "no_such_job")
        second = client.post("/v1/jobs", files=one()).json()["id"]
        done(client, second)
        assert client.delete(f"/v1/jobs/{second}").status_code == 204
        refused(client.delete(f"/v1/jobs/{second}"), 404, "no_such_job")
        assert files_in(own_tmp) == []
        done(client, client.post("/v1/jobs", files=one()).json()["id"])
    assert list(own_tmp.iterdir()) == []


def test_jobs_are_forgotten_in_time_and_in_number(own_tmp):
    with serving(forget_after=0) as client:
        desk = client.app.state.desk
        job = client.post("/v1/jobs", files=one()).json()["id"]
        desk._jobs[job].finished.result(60)
        desk._sweep()
        refused(client.get(f"/v1/jobs/{job}"), 404, "no_such_job")
    with serving(max_jobs=2) as client:
        jobs = [client.post("/v1/jobs", files=one(png(n))).json()["id"] for n in range(4)]
        for job in jobs:
            done(client, job)
        client.app.state.desk._sweep()
        assert [client.get(f"/v1/jobs/{job}").status_code for job in jobs] == [404, 404, 200, 200]


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


def test_what_a_killed_server_left_is_deleted(own_tmp):
    left = own_tmp / "cxr-web-old" / "job"
    left.mkdir(parents=True)
    (left / "film").write_bytes(b"x")
    with serving() as client:
        assert not left.exists()
        with serving() as other:  # but not what another one is using
            assert other.get("/healthz").status_code == client.post("/v1/analyze", files=one()).status_code == 200


def test_keep_keeps_results_and_no_uploads(tmp_path, own_tmp):
    kept = tmp_path / "kept"
    kept.mkdir()
    with serving(keep=kept) as client:
        assert client.get("/v1/limits").json()["kept"]
        job = client.post("/v1/jobs", files=one(name="a.png")).json()["id"]
        done(client, job)
        client.delete(f"/v1/jobs/{job}")
        client.post("/v1/analyze", files=one(name="b.png"))
    folders = sorted(kept.iterdir())
    assert len(folders) == 2
    from pipeline import open_results

    assert sorted(row["image"] for folder in folders for row in open_results(folder)) == ["a.png", "b.png"]
    assert list(own_tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\films\\a.png", "a.png"),
        ("/abs/a\x00\n\x1b.png", "a.png"),
        ("=cmd|'/c calc'!A1.png", "c calc'!A1.png"),
        ("=1+1.png", "1+1.png"),
        ("", "film-0001"),
        ("..", ".."),
        ("<img src=x>.png", "<img src=x>.png"),
        (300 * "x", 120 * "x"),
    ],
)
def test_names_are_for_people_and_never_paths(given, shown):
    assert shown_name(given, "film-0001") == shown


def test_a_name_that_would_climb_stays_inside(tmp_path, own_tmp):
    kept = tmp_path / "kept"
    kept.mkdir()
    with serving(keep=kept) as client:
        names = ["../../../evil.png", "..\\..\\evil.png", "/tmp/evil.png", "film-0001/../../x.png"]
        job = client.post("/v1/jobs", files=several(*[(name, png(n)) for n, name in enumerate(names)])).json()["id"]
        assert done(client, job)["counts"]["ok"] == 4
        assert not list(tmp_path.rglob("*evil*"))
        packed = zipfile.ZipFile(io.BytesIO(client.get(f"/v1/jobs/{job}/results.zip").content)).namelist()
        assert all(Path(name).stem.startswith(("film-", "results", "regions", "run")) for name in packed)


def test_logs_and_figures_hold_no_names(caplog):
    with caplog.at_level(logging.DEBUG), serving() as client:
        client.post("/v1/analyze", files=one(name="jane-doe.png"))
        client.post("/v1/analyze", files=one(dicom(modality="CT"), name="jane-doe.dcm"))
        job = client.post("/v1/jobs", files=several(("jane-doe.png", png()), ("jane-doe.txt", b"junk"))).json()["id"]
        done(client, job)
        client.get("/v1/jobs/jane-doe")
        client.get("/jane-doe.png", params={"name": "jane-doe"})
        figures = client.get("/metrics").text
    own = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))
    assert "POST /v1/analyze 200" in own
    assert 'cxr_films_total{status="ok"} 2.0' in figures
    assert 'cxr_requests_total{method="POST",route="/v1/analyze",status="422"} 1.0' in figures
    for text in (own, figures):
        assert "jane" not in text.lower()
        assert "doe^" not in text.lower()
        assert job not in text


class TestKey:
    @pytest.fixture
    def client(self):
        with serving(base_url="http://example.org", host="0.0.0.0", api_key=KEY) as client:
            yield client

    @pytest.mark.parametrize("path", ["/v1/limits", "/metrics", "/v1/jobs/" + 32 * "0", "/v1//limits", "/nowhere"])
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"X-API-Key": "wrong"},
            {"Authorization": f"Basic {KEY}"},
            {"X-API-Key": KEY[:-1]},
            {"X-API-Key": "\u00e9"},
        ],
    )
    def test_nothing_without_it(self, client, path, headers):
        answer = client.get(path, headers={name: value.encode("latin-1") for name, value in headers.items()})
        assert answer.status_code == 401
        assert KEY not in answer.text

    def test_films_are_not_read_without_it(self, client, own_tmp):
        assert client.post("/v1/analyze", files=one()).status_code == 401
        assert client.post("/v1/jobs", files=one()).status_code == 401
        assert 'cxr_films_total{status="ok"} 0.0' in client.get("/metrics", headers={"X-API-Key": KEY}).text

    @pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}])
    def test_either_header(self, client, headers):
        assert client.post("/v1/analyze", files=one(), headers=headers).status_code == 200

    @pytest.mark.parametrize("path", ["/", "/healthz", "/pages/page.js", "/pages/page.css", "/docs", "/openapi.json"])
    def test_what_holds_no_film_is_open(self, client, path):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "films.example"])
def test_elsewhere_only_with_a_key(host):
    with pytest.raises(WebError, match="CXR_API_KEY"):
        Settings(host=host).check()
    Settings(host=host, api_key=KEY).check()
    assert KEY not in repr(Settings(api_key=KEY))
    with pytest.raises(WebError, match="16"):
        Settings(host=host, api_key="short").check()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_needs_none(host):
    Settings(host=host).check()


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]", "a b", "["]
)
def test_other_names_are_not_answered_to(client, host):
    refused(client.get("/v1/limits", headers={"Host": host}), 400, "wrong_host")


def test_other_sites_cannot_post(client):
    refused(client.post("/v1/analyze", files=one(), headers={"Origin": "http://evil.example"}), 403, "other_origin")
    refused(client.post("/v1/analyze", files=one(), headers={"Origin": "null"}), 403, "other_origin")
    assert client.post("/v1/analyze", files=one(), headers={"Origin": "http://localhost"}).status_code == 200
    with serving(allow_hosts=("films.example",), base_url="http://films.example") as named:
        assert named.get("/v1/limits").status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/limits", "/nowhere", "/pages/page.js", "/healthz", "/v1/jobs/x"])
def test_every_answer_has_the_headers(client, path):
    headers = client.get(path).headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_the_pages_keep_their_own_rules(client, name):
    text = client.get(f"/pages/{name}").text
    assert "style=" not in text
    assert "<script>" not in text
    assert " on" not in [part[:3] for part in text.split('"')]
    assert "https://" not in text
    assert "http://" not in text
    script = client.get(f"/pages/{name.replace('html', 'js').replace('index', 'page')}").text
    assert "innerHTML" not in script


@pytest.mark.parametrize(
    "path", ["/pages/../app.py", "/pages/%2e%2e/app.py", "/pages/..%2fapp.py", "/pages//etc/passwd"]
)
def test_only_pages_are_served(client, path):
    refused(client.get(path), 404, "not_found")


def test_health_says_when_the_thread_is_gone(client):
    assert client.get("/healthz").json()["status"] == "ok"
    client.app.state.desk._since = time.monotonic() - 1e6
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "stuck")


def test_a_full_disk_is_said(client, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1, 1, 0))
    answer = client.post("/v1/analyze", files=one())
    refused(answer, 503, "disk_full")
    assert client.get("/healthz").json()["queue"] == 0


def test_without_the_extra_the_command_says_what_to_install():
    code = (
        "import sys\n"
        "from importlib import util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'fastapi' else real(name, *rest)\n"
        "from pipeline.cli import main\n"
        "main(['serve'])\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert answer.returncode == 2
    assert "pip install 'cxr-pipeline[web]'" in answer.stderr
