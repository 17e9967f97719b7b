"""A short form of `make demo-hospital`: Orthanc, its rule, the shipped weights, a kill."""

from __future__ import annotations

import pytest

pytest.importorskip("pynetdicom")

from tests.hospital import demo, orthanc


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_films_that_orthanc_forwards_are_answered_once_though_the_node_is_killed(tmp_path, capsys):
    if orthanc.missing():
        pytest.skip(orthanc.missing())
    demo.demo(tmp_path, count=4, measured=0)
    said = capsys.readouterr().out
    assert "4 films have their answers, none twice" in said


def test_the_demo_says_why_it_shows_nothing(monkeypatch, capsys):
    monkeypatch.setattr(orthanc, "binary", lambda: None)
    monkeypatch.setattr("sys.argv", ["demo"])
    assert demo.main() == 0
    assert "not installed" in capsys.readouterr().out
