"""The node: films come in by C-STORE, are judged, and their answers go back; nothing is lost and nothing doubled."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("pynetdicom")

from pynetdicom import AE

from cxr_pipeline.dicom import NodeError
from cxr_pipeline.dicom.node import tls_context
from cxr_pipeline.dicom.peers import Peer, allowed
from cxr_pipeline.results.reader import rows
from tests.hospital.parts import CT, SECONDARY, Inbox, answer_to, dicom_film, node, send, uid, until
from tests.pipeline import fake_chain


def rows_of(out):
    return {row["id"]: row for row in rows(out)}


def left_alone(out):
    with open(out / "left_alone.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_film_is_judged_and_its_answer_sent_back(tmp_path):
    out = tmp_path / "out"
    with Inbox() as pacs, node(out, [str(pacs)]) as one:
        assert send(one.port, dicom_film(1), dicom_film(2)) == [0, 0]
        until(lambda: len(pacs.got) == 2)
        assert set(pacs.got) == {answer_to(uid(1)), answer_to(uid(2))}
        assert pacs.about[answer_to(uid(1))] == uid(1)
        until(lambda: len(one.spool) == 0)
    found = rows_of(out)
    assert {name: row["status"] for name, row in found.items()} == {uid(1): "ok", uid(2): "ok"}
    assert found[uid(1)]["image"] == str(out / "spool" / "films" / f"{uid(1)}.dcm")
    assert (out / "spool" / "films" / f"{uid(1)}.dcm").is_file()
    assert list((out / "spool" / "new").iterdir()) == []
    assert (out / "masks" / f"{uid(1)}.png").is_file()


def test_what_is_no_film_of_the_chest_is_answered_and_left_alone(tmp_path):
    out = tmp_path / "out"
    others = [
        dicom_film(1, CT, Modality="CT"),
        dicom_film(2, BodyPartExamined="HAND"),
        dicom_film(3, "1.2.840.10008.5.1.4.1.1.1.1.1", PresentationIntentType="FOR PROCESSING"),
        dicom_film(4, SECONDARY, ConversionType="WSD", Modality="OT"),
    ]
    with Inbox() as pacs, node(out, [str(pacs)]) as one:
        assert send(one.port, *others) == [0] * 4
        assert send(one.port, dicom_film(5)) == [0]
        until(lambda: pacs.got)
    assert list(rows_of(out)) == [uid(5)]
    assert pacs.got == [answer_to(uid(5))]
    reasons = {row["sop_instance"]: row["reason"] for row in left_alone(out)}
    assert set(reasons) == {uid(n) for n in range(1, 5)}
    assert "CT Image Storage" in reasons[uid(1)]
    assert "HAND" in reasons[uid(2)]


def test_what_is_no_film_is_refused_where_that_is_asked_for(tmp_path):
    with node(tmp_path / "out", refuse_others=True) as one:
        assert send(one.port, dicom_film(1, CT, Modality="CT"), dicom_film(2)) == [0x0122, 0]


def test_a_scanned_film_is_judged_and_an_own_answer_that_comes_back_is_not(tmp_path):
    out = tmp_path / "out"
    scanned = dicom_film(1, SECONDARY, ConversionType="DF", Modality="OT")
    own = dicom_film(2, SECONDARY, ConversionType="DF", Modality="OT", Manufacturer="cxr-pipeline")
    with node(out) as one:
        assert send(one.port, own, scanned) == [0, 0]
        until(lambda: one.counts["ok"] == 1)
    assert list(rows_of(out)) == [uid(1)]
    assert [row["reason"] for row in left_alone(out)] == ["an answer of this program"]


def test_a_refused_film_has_a_row_and_no_answer(tmp_path):
    out = tmp_path / "out"
    dark = dicom_film(1)
    dark.PixelData = bytes([255]) * (dark.Rows * dark.Columns)
    with Inbox() as pacs, node(out, [str(pacs)]) as one:
        assert send(one.port, dark, dicom_film(2)) == [0, 0]
        until(lambda: pacs.got and len(one.spool) == 0)
    assert rows_of(out)[uid(1)]["status"] != "ok"
    assert pacs.got == [answer_to(uid(2))]


def test_the_same_film_again_is_answered_and_neither_judged_nor_sent_again(tmp_path):
    out = tmp_path / "out"
    with Inbox() as pacs:
        with node(out, [str(pacs)]) as one:
            assert send(one.port, dicom_film(1), dicom_film(1)) == [0, 0]
            until(lambda: pacs.got and len(one.spool) == 0)
            assert send(one.port, dicom_film(1)) == [0]
            assert one.counts["again"] >= 1
        stages = fake_chain.chain()
        with node(out, [str(pacs)], stages) as one:
            assert send(one.port, dicom_film(1), dicom_film(2)) == [0, 0]
            until(lambda: len(pacs.got) == 2 and len(one.spool) == 0)
            time.sleep(0.3)
        assert stages[0].batches == [[uid(2)]]
        assert Counter(pacs.got) == {answer_to(uid(1)): 1, answer_to(uid(2)): 1}


def test_a_film_that_comes_again_corrected_replaces_the_one_before(tmp_path):
    out = tmp_path / "out"
    with node(out) as one:
        send(one.port, dicom_film(1))
        until(lambda: one.counts["ok"] == 1 and len(one.spool) == 0)
        before = rows_of(out)
        send(one.port, dicom_film(1, PatientID="corrected"))
        until(lambda: one.counts["ok"] == 2 and len(one.spool) == 0)
    after = rows_of(out)
    assert list(before) == list(after) == [uid(1)]
    assert before[uid(1)]["sha256"] != after[uid(1)]["sha256"]


def test_twenty_associations_at_once(tmp_path):
    out = tmp_path / "out"
    answers, films = [], [[dicom_film(10 * caller + n) for n in range(2)] for caller in range(20)]
    with Inbox() as pacs, node(out, [str(pacs)]) as one:
        callers = [
            threading.Thread(target=lambda some: answers.extend(send(one.port, *some)), args=(some,)) for some in films
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert answers == [0] * 40
        until(lambda: len(pacs.got) == 40)
        until(lambda: len(one.spool) == 0)
    assert set(Counter(pacs.got).values()) == {1}
    assert len(rows_of(out)) == 40


def test_a_lost_association_leaves_nothing_behind(tmp_path):
    out = tmp_path / "out"
    with node(out) as one:
        ae = AE("UNIT")
        film = dicom_film(1)
        film.PixelData = os.urandom(4_000_000)  # many packets
        ae.add_requested_context(film.SOPClassUID, "1.2.840.10008.1.2.1")
        association = ae.associate("127.0.0.1", one.port, ae_title="CXR")
        seen = []

        def cut(event):
            seen.append(event)
            if len(seen) == 3:
                association.dul.socket.socket.shutdown(socket.SHUT_RDWR)

        from pynetdicom import evt

        association.bind(evt.EVT_PDU_SENT, cut)
        association.send_c_store(film)
        association.abort()
        assert send(one.port, dicom_film(2)) == [0]
        until(lambda: one.counts["ok"] == 1)
    assert list(rows_of(out)) == [uid(2)]


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_peer_that_is_down_gets_everything_later(tmp_path, when):
    out, pacs = tmp_path / "out", Inbox()
    pacs.start()
    pacs.stop()
    with node(out, [str(pacs)]) as one:
        assert send(one.port, *(dicom_film(n) for n in range(3))) == [0] * 3
        until(lambda: len(one.spool) == 0 and one.senders[0].problem)
        assert "cannot be reached" in one.senders[0].problem
        if when == "before":
            with pacs:
                until(lambda: len(pacs.got) == 3)
    if when == "between":  # the node is started again before the peer is
        with pacs, node(out, [str(pacs)]):
            until(lambda: len(pacs.got) == 3)
    assert Counter(pacs.got) == {answer_to(uid(n)): 1 for n in range(3)}


def test_what_a_peer_refuses_for_now_is_sent_again_and_what_it_refuses_for_good_holds_nothing_up(tmp_path):
    bad, slow, out, calls = answer_to(uid(1)), answer_to(uid(2)), tmp_path / "out", Counter()

    def status(of):
        calls[of] += 1
        return 0xA900 if of == bad else 0xA700 if of == slow and calls[of] < 3 else 0

    with Inbox(status=status) as pacs, node(out, [str(pacs)]) as one:
        send(one.port, dicom_film(1), dicom_film(2), dicom_film(3))
        until(lambda: len(pacs.got) == 2 and one.senders[0].idle())
        assert one.senders[0].refused == 1
    assert set(pacs.got) == {slow, answer_to(uid(3))}
    assert calls[bad] == 1
    assert calls[slow] == 3
    assert "A900" in (out / "sent.jsonl").read_text()


def test_a_node_killed_again_and_again_answers_every_film_once(tmp_path):
    """The peer keeps what it gets by UID, as a PACS does: an answer may be sent twice, but is the same object."""
    out, films = tmp_path / "out", [dicom_film(n) for n in range(16)]
    left = list(films)
    with Inbox() as pacs:
        for round_ in range(3):
            last = round_ == 2
            command = [sys.executable, "-m", "tests.hospital.parts", str(out), "0", str(pacs), "0.05"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            port = int(process.stdout.readline())
            try:
                for film in list(left[: 16 if last else 5]):
                    assert send(port, film) == [0]
                    left.remove(film)
                if not last:
                    until(lambda n=2 * round_: len(set(pacs.got)) > n)
                else:
                    until(lambda: len(set(pacs.got)) == 16)
            finally:
                process.send_signal(signal.SIGTERM if last else signal.SIGKILL)
                process.stdin.close()
                process.wait(60)
    assert set(pacs.got) == {answer_to(uid(n)) for n in range(16)}
    with node(out) as one:
        until(lambda: len(one.spool) == 0)
    found = [row["id"] for row in rows(out)]
    assert sorted(found) == sorted(uid(n) for n in range(16))


def test_a_full_disk_is_said_to_the_sender_and_nothing_stays(tmp_path, monkeypatch):
    out, full = tmp_path / "out", [True]
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000) if full[0] else usage(path))
    with node(out) as one:
        assert send(one.port, dicom_film(1)) == [0xA700]
        assert list((out / "spool" / "new").iterdir()) == []
        full[0] = False

        real = os.fsync

        def fails(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("cxr_pipeline.dicom.spool.os.fsync", fails)
        assert send(one.port, dicom_film(1)) == [0xA700]
        assert list((out / "spool" / "new").iterdir()) == []
        monkeypatch.setattr("cxr_pipeline.dicom.spool.os.fsync", real)
        assert send(one.port, dicom_film(1)) == [0]
        until(lambda: one.counts["ok"] == 1)


def test_a_disk_that_is_full_while_films_are_judged_costs_none_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_pipeline.dicom.listen._PAUSE", 0.1)
    out = tmp_path / "out"
    with Inbox() as pacs, node(out, [str(pacs)]) as one:
        append = type(one.station.folder.journal).append
        full = [True]

        def fails(self, key, entry):
            if full[0] and self is one.station.folder.journal:
                raise OSError(errno.ENOSPC, "No space left on device")
            append(self, key, entry)

        monkeypatch.setattr(type(one.station.folder.journal), "append", fails)
        assert send(one.port, *(dicom_film(n) for n in range(3))) == [0] * 3
        until(lambda: one.problem)
        assert "No space left" in one.problem
        assert not one.healthy
        assert pacs.got == []
        full[0] = False
        until(lambda: len(pacs.got) == 3)
        assert one.healthy
    assert len(rows_of(out)) == 3


def test_films_are_deleted_when_they_are_judged_where_that_is_asked_for(tmp_path):
    out = tmp_path / "out"
    with node(out, keep_films=False) as one:
        send(one.port, dicom_film(1))
        until(lambda: one.counts["ok"] == 1 and len(one.spool) == 0)
        until(lambda: not list((out / "spool" / "films").iterdir()))
        assert send(one.port, dicom_film(1)) == [0]  # known still
        assert one.counts["again"] == 1
    assert list(rows_of(out)) == [uid(1)]


def test_who_may_call(tmp_path):
    with node(tmp_path / "out", allow=(Peer("UNIT", "127.0.0.1"), Peer("OTHER", "192.0.2.1"))) as one:
        assert send(one.port, dicom_film(1)) == [0]
        stranger = AE("STRANGER")
        stranger.add_requested_context("1.2.840.10008.1.1")
        assert stranger.associate("127.0.0.1", one.port, ae_title="CXR").is_rejected
        assert send(one.port, dicom_film(2), caller="OTHER") == [0x0124]  # the right title from a wrong address
        for called, expected in (("CXR", True), ("ELSE", False)):
            ae = AE("UNIT")
            ae.add_requested_context("1.2.840.10008.1.1")
            association = ae.associate("127.0.0.1", one.port, ae_title=called)
            assert association.is_established is expected
            if expected:
                assert association.send_c_echo().Status == 0
                association.release()


def test_peers_are_named_in_three_ways_and_an_open_node_only_on_purpose():
    assert Peer.parsed("PACS") == Peer("PACS")
    assert Peer.parsed("PACS@10.0.0.5") == Peer("PACS", "10.0.0.5")
    assert Peer.parsed("MY PACS@[fe80::1]:104") == Peer("MY PACS", "fe80::1", 104)
    for wrong in ("", "A" * 17, "A@", "A@host:x", "A@host:99999", "A\\B@host", "A@ho st:1"):
        with pytest.raises(NodeError):
            Peer.parsed(wrong)
    with pytest.raises(NodeError, match="--allow"):
        allowed([], "0.0.0.0")
    assert allowed([], "127.0.0.1") == ()
    assert allowed(["any"], "0.0.0.0") == ()


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


@pytest.fixture
def certificates(tmp_path):
    """An authority, and a certificate of it: as files."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

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
            Node(NodeSettings(port=one.port), one.spool, done=None, told=None).start()
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
            "name": "", "waiting": 0, "sent": 1, "refused": 0, "problem": "", "again_in": None,
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
