"""Decoders that crash or hang cost their film alone."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from cxr_pipeline.data.radiograph import RadiographError, read
from cxr_pipeline.results.folder import rows
from cxr_pipeline.run import isolation
from cxr_pipeline.run.helper import Process
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.isolation import IsolatedReader, TriesFolder
from cxr_pipeline.run.runner import Runner
from tests.data.test_dicom import dicom
from tests.pipeline.fake_chain import chain, write_film


@pytest.fixture
def compressed(tmp_path):
    """A film in RLE, which needs a decoder."""
    path = dicom(tmp_path / "rle.dcm", np.random.default_rng(0).integers(0, 4096, (64, 80)))
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    return path


@pytest.fixture
def reader():
    made = IsolatedReader(seconds=30)
    yield made
    made.close()


def test_it_reads_what_read_reads(reader, compressed):
    one, two = reader(compressed, id="x"), read(compressed, id="x")
    np.testing.assert_array_equal(one.pixels, two.pixels)
    assert (one.id, one.meta, one.bits) == (two.id, two.meta, two.bits)


def test_what_the_decoder_says_comes_through(reader, compressed):
    data = compressed.read_bytes()
    compressed.write_bytes(data[: len(data) // 2])
    with pytest.raises(RadiographError, match=compressed.name) as caught:
        reader(compressed)
    assert not caught.value.refused


def test_every_format_is_read_elsewhere_and_comes_back_whole(tmp_path, reader):
    path = write_film(tmp_path / "a.png")
    one, two = reader(path), read(path)
    np.testing.assert_array_equal(one.pixels, two.pixels)
    one.pixels[0, 0] = 0.5  # the run owns them: no helper writes there again
    kept = one.pixels.copy()
    reader(path)
    np.testing.assert_array_equal(one.pixels, kept)
    with pytest.raises(RadiographError, match="no such file"):
        reader(tmp_path / "gone.dcm")
    assert len(reader._all) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can limit a process's memory")
def test_a_film_that_needs_too_much_memory_is_failed_and_the_helper_goes_on(tmp_path):
    large = tmp_path / "large.png"
    cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (4000, 4000)).astype(np.uint8))[1].tofile(large)
    small = IsolatedReader(seconds=60, bytes=60_000_000)
    try:
        with pytest.raises(RadiographError, match="memory") as caught:
            small(large)
        assert caught.value.code == "too_large"
        assert small(write_film(tmp_path / "a.png")).size
    finally:
        small.close()


def test_a_film_that_killed_the_run_twice_is_left_out(tmp_path):
    path, tries = write_film(tmp_path / "a.png"), TriesFolder(tmp_path / "trying")
    for _ in range(2):  # two runs that were killed at it
        tries.begin(str(path))
    reader = IsolatedReader(tries=tries)
    try:
        with pytest.raises(RadiographError, match="killed 2 times") as caught:
            reader(path)
        assert caught.value.code == "killed_the_run"
        assert reader(path).size  # what ended well is forgotten
    finally:
        reader.close()
    assert not (tmp_path / "trying").exists()


def test_a_crash_costs_the_film_alone(reader, compressed):
    reader(compressed)
    (helper,) = reader._all
    os.kill(helper._process.pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, helper._process.kill)
    killer.start()
    assert reader(compressed).size == (64, 80)  # it may have died of something else: another one tries
    assert reader._all != [helper]


def test_a_film_that_crashes_two_helpers_is_failed(reader, compressed, monkeypatch):
    reader(compressed)

    def dies(helper, question, seconds):
        helper._process.kill()
        raise EOFError

    monkeypatch.setattr(isolation._Helper, "ask", dies)
    with pytest.raises(RadiographError, match="decoder crashed"):
        reader(compressed)
    monkeypatch.undo()
    assert reader(compressed).size == (64, 80)


def test_a_hang_ends_at_the_limit(reader, compressed):
    reader(compressed)
    (helper,) = reader._all
    os.kill(helper._process.pid, signal.SIGSTOP)
    reader.seconds = 0.3
    with pytest.raises(RadiographError, match=r"longer than 0\.3 s"):
        reader(compressed)
    reader.seconds = 30
    assert reader(compressed).size == (64, 80)


def test_a_reader_that_hangs_in_the_run_itself_costs_its_films_alone(tmp_path):
    folder = tmp_path / "films"
    for number in range(12):
        write_film(folder / f"{number:02}.png", number)
    for name in ("03_hangs", "04_hangs", "05_hangs"):
        write_film(folder / f"{name}.png")
    never = threading.Event()

    def reader(path, id):
        if id.endswith("hangs"):
            never.wait()
        return read(path, id=id)

    runner = Runner(chain(), tmp_path / "out", workers=2, batch_size=2, reader=reader, seconds_a_film=0.3)
    begun = time.monotonic()
    try:
        summary = runner.run(find_inputs([folder]))
    finally:
        never.set()
    assert summary.counts == {"ok": 12, "refused": 0, "failed": 3}
    assert time.monotonic() - begun < 60
    slow = [row for row in rows(tmp_path / "out") if row["status"] == "failed"]
    assert {row["id"] for row in slow} == {"03_hangs", "04_hangs", "05_hangs"}
    assert all("longer than" in row["error"] for row in slow)


@pytest.mark.skipif(sys.platform == "win32", reason="its line is no socket there")
def test_a_stranger_that_calls_first_does_not_keep_the_helper_out():
    helper = Process()
    try:
        for word in (b"", b"\0\0\0\7nothing"):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(helper._listener.address)
                stranger.sendall(word)
        assert helper.connection is not None
        assert helper.alive
    finally:
        helper.stop()
