"""HTTP by the book: HEAD, Range, no redirects, other sites where allowed, a path below a proxy's root."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from cxr_pipeline.web import WebError
from cxr_pipeline.web.settings import Settings
from tests.pipeline.web_server import KEY, done, listening, one, png, refused, serving


@pytest.fixture(scope="module")
def client():
    with serving() as client:
        yield client


def test_head_is_get_without_its_body(client):
    import httpx2 as httpx

    with listening() as address:
        for path in ("/", "/healthz", "/v1/limits", "/pages/page.js"):
            get, head = httpx.get(address + path), httpx.head(address + path)
            assert head.status_code == get.status_code == 200
            assert head.content == b""
            assert head.headers["content-length"] == str(len(get.content))
        missing = httpx.head(f"{address}/nowhere")
        assert (missing.status_code, missing.content) == (404, b"")
    allowed = client.put("/v1/limits").headers["allow"]
    assert {part.strip() for part in allowed.split(",")} >= {"GET", "HEAD"}


def test_head_deletes_nothing(client):
    job = client.post("/v1/jobs", files=one()).json()["id"]
    done(client, job)
    assert client.head(f"/v1/jobs/{job}/results.zip", params={"discard": True}).status_code == 200
    assert client.get(f"/v1/jobs/{job}").status_code == 200


def test_parts_of_a_file_can_be_asked_for(client):
    job = client.post("/v1/jobs", files=one(png(1))).json()["id"]
    done(client, job)
    path = f"/v1/jobs/{job}/results.zip"
    whole = client.get(path).content
    part = client.get(path, params={"discard": True}, headers={"Range": "bytes=10-29"})
    assert (part.status_code, part.content) == (206, whole[10:30])
    assert part.headers["content-range"] == f"bytes 10-29/{len(whole)}"
    beyond = client.get(path, headers={"Range": f"bytes={len(whole) + 5}-"})
    assert beyond.status_code == 416
    assert client.get(path, params={"discard": True}).content == whole  # a part did not discard it
    refused(client.get(path), 404, "no_such_job")


@pytest.mark.parametrize("path", ["/v1/limits/", "/docs/", "/v1/jobs/"])
def test_nothing_is_redirected(client, path):
    assert client.get(path, follow_redirects=False).status_code in (404, 405)


def test_another_site_that_is_allowed():
    site = "https://viewer.example.org"
    with serving(allow_origins=(site,), api_key=KEY) as client:
        asked = {"Origin": site, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        before = client.options("/v1/analyze", headers=asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == site
        answer = client.post("/v1/analyze", files=one(), headers={"Origin": site, "X-API-Key": KEY})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == site
        other = client.options("/v1/analyze", headers=asked | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    with serving(allow_origins=(site,)) as client:
        assert client.post("/v1/analyze", files=one(), headers={"Origin": site}).status_code == 200
        refused(
            client.post("/v1/analyze", files=one(), headers={"Origin": "https://evil.example"}), 403, "other_origin"
        )


@pytest.mark.parametrize("prefix", ["/films", ""])
def test_below_a_path_of_a_proxy_that_cuts_it_off_or_does_not(prefix):
    with serving(root_path="/films") as client:
        for path in ("/", "/v1/limits", "/pages/page.js", "/docs"):
            assert client.get(prefix + path).status_code == 200, path
        answer = client.post(f"{prefix}/v1/jobs", files=one())
        assert answer.headers["location"] == f"/films/v1/jobs/{answer.json()['id']}"
        assert client.get(answer.headers["location"]).status_code == 200
        page = client.get(f"{prefix}/").text
        assert 'src="/' not in page
        assert 'href="/' not in page
    with serving(root_path="/films", api_key=KEY) as client:
        assert client.get(f"{prefix}/healthz").status_code == 200
        assert client.get(f"{prefix}/v1/limits").status_code == 401


@pytest.mark.parametrize("wrong", [{"root_path": "films"}, {"root_path": "/films/"}, {"allow_origins": ("*",)}])
def test_what_is_no_path_or_origin_is_said(wrong):
    with pytest.raises(WebError, match="such as"):
        Settings(**wrong).check()
