"""The API held to its own OpenAPI document, by requests that schemathesis makes up.

CXR_FUZZ names the number of requests an operation; a nightly job sets it to some hundreds.
"""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")
schemathesis = pytest.importorskip("schemathesis")

import cv2  # noqa: E402
import httpx2 as httpx  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis.checks import load_all_checks  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402

from cxr_pipeline.web import security  # noqa: E402
from tests.pipeline.fake_chain import film  # noqa: E402
from tests.pipeline.web_server import KEY, listening  # noqa: E402

EXAMPLES = int(os.environ.get("CXR_FUZZ", "8"))

FILM = cv2.imencode(".png", film(1, lungs=0.35))[1].tobytes()

load_all_checks()
schemathesis.openapi.format("binary", st.one_of(st.just(FILM), st.binary(max_size=200), st.just(FILM[:500])))


@pytest.fixture(scope="module")
def client():
    # schemathesis tries wrong keys on every path; that their answers wait is test_web_security's subject
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(security, "_LONGEST_GUESS", 0.0)
        yield from talking()


def talking():
    with listening(api_key=KEY, queue=64) as address, httpx.Client(base_url=address) as client:
        client.headers["X-API-Key"] = KEY
        yield client


@pytest.fixture(scope="module")
def finished(client):
    """A job that is there, so that not every id leads to 404."""
    job = client.post("/v1/jobs", files=[("file", ("a.png", FILM))]).json()["id"]
    while client.get(f"/v1/jobs/{job}").json()["status"] != "done":
        pass
    return job


@pytest.fixture(scope="module")
def served(client):
    return schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")


OPERATIONS = [
    ("POST", "/v1/analyze"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/{job}"),
    ("DELETE", "/v1/jobs/{job}"),
    ("GET", "/v1/jobs/{job}/results"),
    ("GET", "/v1/jobs/{job}/results.zip"),
    ("GET", "/v1/jobs/{job}/films/{film}/{picture}"),
    ("GET", "/v1/limits"),
    ("GET", "/healthz"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as documented", "otherwise"])
def test_every_answer_is_as_the_document_says(served, finished, method, path, mode):
    operation = served[path][method]
    takes_nothing = "{" not in path and method == "GET"
    if mode is GenerationMode.NEGATIVE and takes_nothing:
        return  # there is nothing to get wrong
    # A body that fits the document may still hold no film (415, 422), and one that does not may hold a film beside what
    # is ignored: what a film is, no schema can say.
    excluded = [positive_data_acceptance, negative_data_rejection] if method == "POST" else []

    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=EXAMPLES < 50,
        database=None,
        suppress_health_check=HealthCheck,
    )
    def holds(case, real):
        if real and mode is GenerationMode.POSITIVE and "{job}" in path and method == "GET":
            case.path_parameters |= {"job": finished} | ({"film": "film-0001"} if "{film}" in path else {})
        case.call_and_validate(headers={"X-API-Key": KEY}, excluded_checks=excluded)

    holds()


def test_the_document_is_whole(client):
    document = client.get("/openapi.json").json()
    documented = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    assert documented == set(OPERATIONS)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
            assert path == "/healthz" or operation["security"]
    row = document["components"]["schemas"]["Result"]["properties"]
    assert list(row)[:13] == (
        [
            "image",
            "id",
            "status",
            "error",
            "width",
            "height",
            "lung_fraction",
            "p_TB",
            "p_NTB",
            "p_NORM",
            "label",
            "tb_score",
            "regions",
        ]
    )
    json.dumps(document, allow_nan=False)
