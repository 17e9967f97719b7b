"""Films of a PACS by QIDO-RS and WADO-RS, and answers by STOW-RS, against Orthanc."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

pytest.importorskip("dicomweb_client")

from pydicom.dataset import Dataset

from cxr_pipeline.dicom import NodeError
from cxr_pipeline.dicom import dicomweb as module
from cxr_pipeline.dicom.destinations import StowRs, UnreachableError
from cxr_pipeline.dicom.dicomweb import Source, pull
from cxr_pipeline.dicom.webclient import AUTH, client
from cxr_pipeline.results.reader import rows
from cxr_pipeline.run.runner import Runner
from tests.hospital import orthanc
from tests.hospital.parts import CT, SECONDARY, answer_to, as_bytes, dicom_film, node, read, send, uid, until
from tests.pipeline import fake_chain


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    """Orthanc with three films, of which one is of the day before, a CT, a film from the side and an own answer."""
    if orthanc.missing():
        pytest.skip(orthanc.missing())
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as one:
        for film in (
            dicom_film(1),
            dicom_film(2, SeriesDescription="Thorax"),
            dicom_film(3, StudyDate="20240101"),
            dicom_film(4, CT, Modality="CT", StudyInstanceUID=uid("study 1")),
            dicom_film(5, SECONDARY, Modality="OT", Manufacturer="cxr-pipeline", StudyInstanceUID=uid("study 1")),
        ):
            one.upload(as_bytes(film))
        yield one


def source(pacs, query):
    return Source.parsed(f"dicomweb:{pacs.url}?{query}")


def names(inputs):
    return {one.names[0] for one in inputs}


def test_films_are_found_by_study_series_and_instance(pacs, tmp_path):
    assert names(pull(source(pacs, "StudyDate=20240102"), tmp_path / "a")) == {uid(1), uid(2)}
    assert names(pull(source(pacs, "StudyDate=20240101-20240102"), tmp_path / "b")) == {uid(1), uid(2), uid(3)}
    assert names(pull(source(pacs, "PatientID=P3"), tmp_path / "c")) == {uid(3)}
    assert names(pull(source(pacs, "00100020=P3&Modality=DX"), tmp_path / "d")) == {uid(3)}
    assert names(pull(source(pacs, f"SOPInstanceUID={uid(2)}"), tmp_path / "e")) == {uid(2)}
    for query in ("PatientID=nobody", "StudyDate=20240102&Modality=CT"):
        with pytest.raises(NodeError, match="no films"):
            pull(source(pacs, query), tmp_path / "f")


def test_a_pulled_film_is_the_one_that_was_stored_and_is_not_fetched_again(pacs, tmp_path, monkeypatch):
    wanted = source(pacs, "PatientID=P1")
    (one,) = pull(wanted, tmp_path)
    assert as_bytes(read(one.path)) == as_bytes(dicom_film(1))
    monkeypatch.setattr(module, "_asked", None)  # nothing is asked for twice
    assert pull(wanted, tmp_path) == [one]


def test_a_pulled_run_is_like_any_other_and_goes_on(pacs, tmp_path):
    out = tmp_path / "out"
    for already in (0, 2):
        films = pull(source(pacs, "StudyDate=20240102"), out)
        summary = Runner(fake_chain.chain(), out, workers=1).run(films)
        assert summary.counts == {"ok": 2, "refused": 0, "failed": 0}
        assert summary.already == already
    assert {row["id"] for row in rows(out)} == {uid(1), uid(2)}


def test_the_command_pulls_and_judges(pacs, tmp_path):
    from cxr_pipeline.cli.main import cli

    out = tmp_path / "out"
    call = ["run", "--from", f"dicomweb:{pacs.url}?PatientID=P1", "--out", str(out), "--no-report"]
    assert cli.main(call, standalone_mode=False) in (0, 1)
    assert [row["id"] for row in rows(out)] == [uid(1)]
    assert json.loads((out / "run.json").read_text())["arguments"]["from"] == f"dicomweb:{pacs.url}?PatientID=***"


def test_what_a_run_keeps_of_a_query_names_nobody():
    from cxr_pipeline.cli.hospital import without_values

    asked = "dicomweb:https://me:secret@pacs.example.org:8443/dicom-web?StudyDate=20240131&PatientName=Doe%5EJane&00100020=4"
    kept = "dicomweb:https://pacs.example.org:8443/dicom-web?StudyDate=20240131&PatientName=***&00100020=***"
    assert without_values(asked) == kept
    assert without_values("dicomweb:http://pacs/dicom-web/") == "dicomweb:http://pacs/dicom-web/"


def test_answers_go_to_a_dicomweb_service(tmp_path):
    if orthanc.missing():
        pytest.skip(orthanc.missing())
    pacs = orthanc.Orthanc(tmp_path / "orthanc")  # does not run yet
    with node(tmp_path / "out", [pacs.url], first=0.2) as one:
        send(one.port, dicom_film(1), dicom_film(2))
        until(lambda: one.senders[0].problem)
        pacs.start()
        try:
            until(lambda: one.senders[0].idle())
            assert set(pacs.instances()) == {answer_to(uid(1)), answer_to(uid(2))}
            assert one.senders[0].sent == 2
        finally:
            pacs.stop()


@pytest.mark.parametrize(
    ("reason", "refused"), [(0xA700, None), (0x0111, {}), (0x0122, {"reason 0122"}), (None, {"refused"})]
)
def test_a_service_without_room_is_asked_again_and_one_that_has_the_object_is_not(tmp_path, reason, refused):
    service, item, answer = StowRs("http://127.0.0.1:1/dicom-web"), Dataset(), Dataset()
    if reason is not None:
        item.FailureReason = reason
    answer.FailedSOPSequence = [item]
    service._client = SimpleNamespace(store_instances=lambda datasets: answer)
    (tmp_path / "answer.dcm").write_bytes(as_bytes(dicom_film(1)))
    if refused is None:
        with pytest.raises(UnreachableError, match="no room"):
            service.send([tmp_path / "answer.dcm"])
    else:
        assert set(service.send([tmp_path / "answer.dcm"]).values()) == set(refused)


def test_who_asks_is_told_by_the_environment(tmp_path, monkeypatch):
    if orthanc.missing():
        pytest.skip(orthanc.missing())
    with orthanc.running(tmp_path / "orthanc", secret=True) as pacs:
        pacs.upload(as_bytes(dicom_film(1)))
        wanted = source(pacs, "PatientID=P1")
        monkeypatch.delenv(AUTH, raising=False)
        with pytest.raises(NodeError, match=f"401.*{AUTH} is not set"):
            pull(wanted, tmp_path / "out")
        monkeypatch.setenv(AUTH, "Basic d3Jvbmc6d3Jvbmc=")
        with pytest.raises(NodeError, match=f"401.*{AUTH} is not accepted"):
            pull(wanted, tmp_path / "out")
        secret = base64.b64encode(f"{orthanc.USER}:{orthanc.PASSWORD}".encode()).decode()
        monkeypatch.setenv(AUTH, f"Basic {secret}")
        assert names(pull(wanted, tmp_path / "out")) == {uid(1)}


class _Broken(BaseHTTPRequestHandler):
    """A service that finds one film and answers `status` when it is asked for it."""

    status, asked = 500, 0

    def do_GET(self):
        import json

        tags = {"0020000D": "1.2", "0020000E": "1.3", "00080018": "1.4", "00080060": "DX"}
        if self.path.endswith("/instances/1.4"):
            type(self).asked += 1
            self.send_error(self.status)
            return
        body = json.dumps([{tag: {"vr": "UI", "Value": [value]} for tag, value in tags.items()}]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def broken():
    server = HTTPServer(("127.0.0.1", 0), _Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "tries"), [(500, 4), (404, 1)])
def test_a_film_that_is_not_given_costs_itself_alone(broken, tmp_path, monkeypatch, status, tries):
    monkeypatch.setattr(module, "_WAIT", 0.01)
    monkeypatch.setattr(_Broken, "status", status)
    monkeypatch.setattr(_Broken, "asked", 0)
    (one,) = pull(Source.parsed(f"dicomweb:http://127.0.0.1:{broken}/dicom-web"), tmp_path)
    assert f"HTTP {status}" in one.problem
    assert _Broken.asked == tries
    summary = Runner(fake_chain.chain(), tmp_path, workers=1).run([one])
    assert summary.counts["failed"] == 1


def test_an_object_that_is_another_than_asked_for_is_not_taken_for_the_film(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_asked", lambda web, place: dicom_film(1))
    (one,) = pull(Source.parsed(f"dicomweb:http://127.0.0.1:{broken}/dicom-web"), tmp_path)
    assert "another object" in one.problem
    assert list((tmp_path / "pulled").iterdir()) == []


def test_a_service_that_is_not_there_or_none_is_named(tmp_path):
    port = orthanc.free_port()
    with pytest.raises(NodeError, match="cannot be reached"):
        pull(Source.parsed(f"dicomweb:http://127.0.0.1:{port}/dicom-web"), tmp_path)


def test_sources_that_are_none():
    for wrong, said in (
        ("https://pacs/dicom-web", "dicomweb:https"),
        ("dicomweb:ftp://pacs/x", "dicomweb:https"),
        ("dicomweb:https://pacs/x?Nonsense=1", "no DICOM keyword"),
        ("dicomweb:https://pacs/x?limit=many", "whole number"),
    ):
        with pytest.raises(NodeError, match=said):
            Source.parsed(wrong)
    with pytest.raises(NodeError, match=AUTH):
        client("https://user:password@pacs/dicom-web")
    asked = Source.parsed("dicomweb:https://pacs/x?StudyDate=20240101-&Modality=CR&InstanceNumber=1&limit=5")
    assert (asked.study, asked.series, asked.instance, asked.options) == (
        {"StudyDate": "20240101-"}, {"Modality": "CR"}, {"InstanceNumber": "1"}, {"limit": 5},
    )  # fmt: skip
