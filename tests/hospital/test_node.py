"""The node: films come in by C-STORE, are judged, and their answers go back; nothing is lost and nothing doubled."""

from __future__ import annotations

import csv
import os
import socket
import threading
import time
from collections import Counter

import pytest

pytest.importorskip("pynetdicom")

from pynetdicom import AE

from cxr_pipeline.dicom import NodeError
from cxr_pipeline.dicom.peers import Peer, allowed
from tests.hospital.parts import CT, DX, SECONDARY, Inbox, answer_to, dicom_film, node, rows_of, send, uid, until
from tests.pipeline import fake_chain


def left_alone(out):
    with open(out / "left_alone.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_film_is_judged_and_its_answer_sent_back(tmp_path, isolated):
    out = tmp_path / "out"
    with Inbox() as pacs, node(out, [str(pacs)], workers=1) as one:
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


def test_answers_to_a_version_that_is_refused_since_are_named(tmp_path, caplog):
    out = tmp_path / "out"
    dark = dicom_film(1)
    dark.PixelData = bytes([255]) * (dark.Rows * dark.Columns)

    def named():
        if not (out / "outdated.csv").exists():  # it is written soon after the sender knows
            return None
        with open(out / "outdated.csv", newline="") as file:
            return [(row["id"], row["destination"], row["answers"]) for row in csv.DictReader(file)]

    with Inbox() as pacs:
        with node(out, [str(pacs)]) as one:
            send(one.port, dicom_film(1))
            until(lambda: pacs.got and one.senders[0].idle())
            assert not (out / "outdated.csv").exists()
            send(one.port, dark)
            until(lambda: one.senders[0].outdated)
            until(lambda: named() == [(uid(1), str(pacs), f"dicom/{uid(1)}.sr.dcm")])
        assert f"holds 1 answers to an earlier version of {uid(1)}" in caplog.text
        with node(out, [str(pacs)]) as one:  # it is known after a restart too
            assert len(one.senders[0].outdated) == 1
            send(one.port, dicom_film(1))
            until(lambda: not one.senders[0].outdated and one.senders[0].idle())
            until(lambda: named() == [])
    assert pacs.got == [answer_to(uid(1))]  # it stands there as it is


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


def test_a_deflated_film_is_not_taken_as_it_may_unfold_to_any_size(tmp_path):
    with node(tmp_path / "out") as one:
        ae = AE("UNIT")
        ae.add_requested_context(DX, "1.2.840.10008.1.2.1.99")
        ae.add_requested_context("1.2.840.10008.1.1")
        association = ae.associate("127.0.0.1", one.port, ae_title="CXR")
        assert [context.abstract_syntax for context in association.rejected_contexts] == [DX]
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
