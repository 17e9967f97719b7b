"""What the node does beside taking films: storage commitment, encryption, a page of its queue."""

from __future__ import annotations

import shutil
import socket
import subprocess

import pytest

pytest.importorskip("pynetdicom")

from pynetdicom import AE

from cxr_pipeline.dicom import NodeError
from cxr_pipeline.dicom.node import tls_context
from cxr_pipeline.dicom.peers import Peer
from tests.hospital.parts import CT, Inbox, dicom_film, node, send, uid, until
from tests.pipeline import fake_chain


def ask_for_commitment(port, wanted, inbox=None, wait=0.0):
    """Ask over one association, which stays open for `wait` seconds; what was told over it."""
    from pydicom.dataset import Dataset
    from pynetdicom import evt

    told = []
    action = Dataset()
    action.TransactionUID = uid("transaction")
    action.ReferencedSOPSequence = []
    for one in wanted:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", one
        action.ReferencedSOPSequence.append(item)
    ae = AE(inbox.title if inbox else "UNIT")
    ae.add_requested_context("1.2.840.10008.1.20.1")
    handlers = [(evt.EVT_N_EVENT_REPORT, lambda event: (told.append(event.event_type) or 0, None))]
    association = ae.associate("127.0.0.1", port, ae_title="CXR", evt_handlers=handlers)
    status, _ = association.send_n_action(action, 1, "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1")
    assert status.Status == 0
    if wait:
        until(lambda: told, wait)
    association.release()
    return told


def test_storage_commitment_over_the_same_association(tmp_path):
    with node(tmp_path / "out") as one:
        send(one.port, dicom_film(1))
        assert ask_for_commitment(one.port, [uid(1)], wait=20) == [1]
        until(lambda: len(one.commitment) == 0)


def test_storage_commitment_over_a_new_association_also_after_a_restart(tmp_path):
    out, asking = tmp_path / "out", Inbox("UNIT")
    asking.start()
    asking.stop()
    known = (Peer("UNIT", "127.0.0.1", asking.port),)
    with node(out, peers_known=known) as one:
        send(one.port, dicom_film(1), dicom_film(2, CT, Modality="CT"))
        ask_for_commitment(one.port, [uid(1), uid(2)])
    assert len(list((out / "spool" / "commitment").glob("*.json"))) == 1
    with asking, node(out, peers_known=known) as one:
        until(lambda: asking.events)
        kind, report = asking.events[0]
        until(lambda: len(one.commitment) == 0)
    assert kind == 2  # some are not committed: the CT was left alone
    assert [item.ReferencedSOPInstanceUID for item in report.ReferencedSOPSequence] == [uid(1)]
    assert [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in report.FailedSOPSequence] == [
        (uid(2), 0x0112)
    ]


def test_what_will_be_deleted_is_not_committed(tmp_path):
    with node(tmp_path / "out", keep_films=False, chain=fake_chain.chain(delay=0.5)) as one:
        send(one.port, dicom_film(1))
        assert one.spool.holds(uid(1))  # still: it is in work
        assert ask_for_commitment(one.port, [uid(1)], wait=20) == [2]


def test_a_request_that_nothing_can_be_made_of_does_not_hold_up_others(tmp_path):
    out = tmp_path / "out"
    (out / "spool" / "commitment").mkdir(parents=True)
    (out / "spool" / "commitment" / "0.json").write_text('{"caller": "UNIT", "objects": [[1]], "transaction": null}')
    with node(out) as one:
        send(one.port, dicom_film(1))
        assert ask_for_commitment(one.port, [uid(1)], wait=20) == [1]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a certificate of it: as files."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    tmp_path = tmp_path_factory.mktemp("certificates")

    def run(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    run(*new, "-subj", "/CN=authority", "-x509", "-days", "1", "-keyout", "ca.key", "-out", "ca.pem")
    run(*new, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1")
    run("x509", "-req", "-in", "node.csr", *signed, "-out", "node.pem")
    return tmp_path / "node.pem", tmp_path / "node.key", tmp_path / "ca.pem"


def test_an_encrypted_node_takes_callers_with_a_certificate_alone(tmp_path, certificates):
    cert, key, ca = certificates
    with node(tmp_path / "out", tls=tls_context(cert, key, ca, server=True)) as one:
        stalled = socket.create_connection(("127.0.0.1", one.port))  # never shakes hands
        ae = AE("UNIT")
        ae.add_requested_context("1.2.840.10008.1.1")
        ae.acse_timeout = 5
        for context, expected in (
            (tls_context(cert, key, ca, server=False), True),
            (tls_context(None, None, ca, server=False), False),
        ):
            association = ae.associate("127.0.0.1", one.port, ae_title="CXR", tls_args=(context, None))
            assert association.is_established is expected
            if expected:
                assert association.send_c_echo().Status == 0
                association.release()
        assert not ae.associate("127.0.0.1", one.port, ae_title="CXR").is_established
        stalled.close()


def test_certificates_that_do_not_fit_are_refused(tmp_path, certificates):
    _, key, ca = certificates
    with pytest.raises(NodeError, match="PEM"):
        tls_context(ca, key, None, server=True)
    with pytest.raises(NodeError, match="--tls-cert"):
        tls_context(None, None, ca, server=True)


def test_two_nodes_on_one_port_or_one_folder(tmp_path):
    with node(tmp_path / "out") as one:
        from cxr_pipeline.dicom.node import Node, NodeSettings
        from cxr_pipeline.results.identity import ResultsError

        with pytest.raises(NodeError, match="--port"):
            Node(NodeSettings(port=one.port), one.spool, done=None, notify=None).start()
        with pytest.raises(ResultsError, match="another run"), node(tmp_path / "out"):
            pass


def test_the_queue_is_shown_and_counted_without_a_patient(tmp_path):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from cxr_pipeline.dicom.page import create_app
    from cxr_pipeline.web.settings import Settings

    with Inbox() as pacs, node(tmp_path / "out", [str(pacs)]) as one:
        send(one.port, dicom_film(1), dicom_film(2, CT, Modality="CT"))
        until(lambda: pacs.got and len(one.spool) == 0)
        page = TestClient(create_app(one, Settings()), base_url="http://localhost")
        state = page.get("/v1/queue").json()
        assert state["waiting"] == 0
        assert state["received"] == {"new": 1, "again": 0, "left alone": 1, "no room": 0, "unreadable": 0}
        assert state["judged"]["ok"] == 1
        assert state["destinations"][0] | {"name": ""} == {
            "name": "", "waiting": 0, "sent": 1, "refused": 0, "outdated": 0, "problem": "", "again_in": None,
        }  # fmt: skip
        assert state["films"][0]["id"] == uid(1)
        figures = page.get("/metrics").text
        assert 'cxr_objects_total{what="left_alone"} 1.0' in figures
        assert 'cxr_answers_total{destination="1",what="sent"} 1.0' in figures
        assert page.get("/healthz").json()["status"] == "ok"
        assert "queue.js" in page.get("/").text
        assert page.get("/pages/queue.js").status_code == page.get("/pages/page.css").status_code == 200
        assert page.get("/pages/../node.py").status_code == 404
        assert page.get("/v1/queue", headers={"Host": "evil.example"}).status_code == 400
        everything = "".join(page.get(path).text for path in ("/", "/v1/queue", "/metrics", "/healthz"))
    assert "Test^Film" not in everything
    assert "P1" not in everything
