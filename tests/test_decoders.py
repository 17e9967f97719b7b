"""Processes that decode films pass from test to test only where a fresh one would be the same."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from cxr_pipeline.data.radiograph import RadiographError
from cxr_pipeline.run.isolation import IsolatedReader
from tests.decoders import Pool, lent_by
from tests.pipeline.fake_chain import write_film


@pytest.fixture
def pool():
    made = Pool()
    with lent_by(made):
        yield made
    made.close()


def asked(film):
    """The process that reads a film for a reader of its own."""
    reader = IsolatedReader()
    try:
        assert reader(film).size == (72, 96)
        return reader._all[0]._process.pid
    finally:
        reader.close()


def test_it_goes_to_the_next_reader_unless_folder_or_environment_differ(pool, tmp_path, monkeypatch):
    film = write_film(tmp_path / "a.png")
    first = asked(film)
    assert asked(film) == first
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert asked("a.png") != first
    with monkeypatch.context() as patch:
        patch.setenv("CXR_SITE_SECRET", "another")
        assert asked(film) != first
    assert asked(film) == first


@pytest.mark.skipif(sys.platform == "win32", reason="no process can be held there")
def test_one_that_is_ended_in_the_middle_of_a_film_really_ends(pool, tmp_path):
    film = write_film(tmp_path / "a.png")
    first = asked(film)
    reader = IsolatedReader()
    reader(film)
    (helper,) = reader._all
    assert helper._process.pid == first
    os.kill(first, signal.SIGSTOP)
    reader.seconds = 0.1
    with pytest.raises(RadiographError, match="longer than"):
        reader(film)
    assert helper._process.returncode == -signal.SIGKILL
    with pytest.raises(OSError, match="closed"):
        helper.ask((str(film), None, None), 1)
    reader.close()
    assert asked(film) != first
