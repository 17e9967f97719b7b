"""The node when something breaks: kills, full disks, crashes; nothing is lost and nothing doubled."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pynetdicom")

from cxr_pipeline.cli.hospital import _listening
from cxr_pipeline.dicom import NodeError
from cxr_pipeline.results.reader import rows
from tests.hospital.parts import Inbox, answer_to, dicom_film, node, opened, rows_of, send, uid, until
from tests.pipeline import fake_chain

ROOT = Path(__file__).parents[2]


def test_a_node_killed_again_and_again_answers_every_film_once(tmp_path):
    """The peer keeps what it gets by UID, as a PACS does: an answer may be sent twice, but is the same object."""
    out, films = tmp_path / "out", [dicom_film(n) for n in range(10)]
    left = list(films)
    with Inbox() as pacs:
        for round_ in range(3):
            last = round_ == 2
            command = [sys.executable, "-m", "tests.hospital.parts", str(out), "0", str(pacs), "0.05"]
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
