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

from cxr_pipeline.cli.hospital import _listening
from cxr_pipeline.dicom import NodeError
from cxr_pipeline.dicom.peers import Peer, allowed
from cxr_pipeline.results.reader import rows
from tests.hospital.parts import CT, DX, SECONDARY, Inbox, answer_to, dicom_film, node, opened, send, uid, until
from tests.pipeline import fake_chain


def rows_of(out):
    return {row["id"]: row for row in rows(out)}


def left_alone(out):
    with open(out / "left_alone.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_film_is_judged_and_its_answer_sent_back(tmp_path, isolated):
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
    out, films = tmp_path / "out", [dicom_film(n) for n in range(10)]
    left = list(films)
    with Inbox() as pacs:
        for round_ in range(3):
            last = round_ == 2
            command = [sys.executable, "-m", "tests.hospital.parts", str(out), "0", str(pacs), "0.05"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            port = int(process.stdout.readline())
            try:
                for film in list(left[: 10 if last else 4]):
                    assert send(port, film) == [0]
                    left.remove(film)
                if not last:
                    until(lambda n=2 * round_: len(set(pacs.got)) > n)
                else:
                    until(lambda: len(set(pacs.got)) == 10)
            finally:
                process.send_signal(signal.SIGTERM if last else signal.SIGKILL)
                process.stdin.close()
                process.wait(60)
    assert set(pacs.got) == {answer_to(uid(n)) for n in range(10)}
    with node(out) as one:
        until(lambda: len(one.spool) == 0)
    found = [row["id"] for row in rows(out)]
    assert sorted(found) == sorted(uid(n) for n in range(10))


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


@pytest.mark.parametrize("limit", ["_LARGEST", "_TOGETHER"])
def test_what_is_too_large_to_hold_in_memory_is_cut_off_and_others_go_on(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(f"cxr_pipeline.dicom.node.{limit}", 1_000_000)
    large = dicom_film(1)
    large.PixelData = bytes(20_000_000)
    with node(tmp_path / "out") as one:
        assert send(one.port, large) == [None]
        assert send(one.port, dicom_film(2)) == [0]
        until(lambda: one.counts["ok"] == 1)
        until(lambda: not one.node._arriving and not one.node._cut)
    assert list(rows_of(tmp_path / "out")) == [uid(2)]


@pytest.mark.parametrize("keep", [True, False])
def test_a_film_that_an_accident_fails_is_judged_again_by_the_next_start(tmp_path, keep):
    out, poison = tmp_path / "out", fake_chain.chain(raises_on=(uid(1),))
    with Inbox() as pacs:
        with node(out, [str(pacs)], poison, keep_films=keep) as one:
            assert send(one.port, dicom_film(1), dicom_film(2)) == [0, 0]
            until(lambda: pacs.got and len(one.spool) == 0)
            assert one.counts["failed"] == 1
        assert [path.stem for path in (out / "spool" / "new").iterdir()] == [uid(1)]
        with node(out, [str(pacs)], keep_films=keep):
            until(lambda: len(pacs.got) == 2)
    assert rows_of(out)[uid(1)]["status"] == "ok"


def test_results_that_the_disk_does_not_take_keep_their_film_in_the_queue(tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_pipeline.dicom.listen._PAUSE", 0.1)
    with Inbox() as pacs, node(tmp_path / "out", [str(pacs)]) as one:
        secure, full = one.station.secure, [True]

        def fails(keys):
            if full[0]:
                raise OSError(errno.EIO, "Input/output error")
            secure(keys)

        monkeypatch.setattr(one.station, "secure", fails)
        assert send(one.port, dicom_film(1)) == [0]
        until(lambda: one.problem)
        assert pacs.got == []
        assert one.spool.waits(uid(1))
        full[0] = False
        until(lambda: pacs.got and len(one.spool) == 0)
    assert len(rows_of(tmp_path / "out")) == 1


def test_of_versions_that_come_close_together_the_last_one_counts(tmp_path):
    out, first, second = tmp_path / "out", dicom_film(1), dicom_film(1, PatientID="other")
    with node(out) as one:
        send(one.port, first)
        until(lambda: one.counts["ok"] == 1 and len(one.spool) == 0)
    before = rows_of(out)[uid(1)]["sha256"]
    waiting = opened(out)
    port = waiting.start()
    assert send(port, second, first) == [0, 0]  # nothing is judged between them
    assert waiting.counts["again"] == 0
    with node(out, listener=waiting):
        until(lambda: len(waiting.spool) == 0)
    assert rows_of(out)[uid(1)]["sha256"] == before


def test_a_port_that_is_taken_is_named_and_the_folder_let_go_of(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with Inbox() as pacs, pytest.raises(NodeError, match="--port"):
            _listening(opened(tmp_path, [str(pacs)], port=other.getsockname()[1]), "CXR", "127.0.0.1")
    with node(tmp_path) as one:
        assert send(one.port, dicom_film(1)) == [0]
