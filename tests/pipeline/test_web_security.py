"""Who may ask, what is kept, what is said: keys, hosts, headers, names, logs, folders."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from cxr_pipeline.web import WebError, security
from cxr_pipeline.web.settings import Settings
from cxr_pipeline.web.uploads import shown_name
from tests.pipeline.web_server import (
    KEY,
    dicom,
    done,
    files_in,
    one,
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
        queue = client.app.state.queue
        job = client.post("/v1/jobs", files=one()).json()["id"]
        queue._jobs[job].finished.result(60)
        queue._sweep()
        refused(client.get(f"/v1/jobs/{job}"), 404, "no_such_job")
    with serving(max_jobs=2) as client:
        jobs = [client.post("/v1/jobs", files=one(png(n))).json()["id"] for n in range(4)]
        for job in jobs:
            done(client, job)
        client.app.state.queue._sweep()
        assert [client.get(f"/v1/jobs/{job}").status_code for job in jobs] == [404, 404, 200, 200]


def test_what_a_killed_server_left_is_deleted(own_tmp):
    left = own_tmp / "cxr-web-old" / "job"
    left.mkdir(parents=True)
    (left / "film").write_bytes(b"x")
    (left.parent / ".lock").touch()
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
    from cxr_pipeline import open_results

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
    def client(self, monkeypatch):
        monkeypatch.setattr(security, "_GUESS", 0.0)
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


def test_without_the_extra_the_command_says_what_to_install():
    code = (
        "import sys\n"
        "from importlib import util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'fastapi' else real(name, *rest)\n"
        "from cxr_pipeline.cli.main import main\n"
        "main(['serve'])\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert answer.returncode == 2
    assert "pip install 'cxr-pipeline[web]'" in answer.stderr
