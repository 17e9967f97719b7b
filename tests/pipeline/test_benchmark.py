"""`pipeline benchmark` measures what it says; how fast that is, is no test's business."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from cxr_pipeline import stages
from cxr_pipeline.cli.main import _call
from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.models.store import shipped

pytestmark = pytest.mark.skipif(not shipped(), reason="no weights are shipped")


@pytest.fixture
def films(tmp_path):
    for number in range(3):
        film = make_film(number, label="TB", size=(200, 220)).pixels
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.round(film * 255).astype(np.uint8))
    return str(tmp_path)


def test_every_part_of_every_film_is_counted(films, capsys):
    assert _call(["benchmark", films, "--runtime", "onnx", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["films"] == 3
    assert set(printed["runtimes"]) == {"onnx"}
    measured = printed["runtimes"]["onnx"]
    assert set(measured["seconds"]) == {"read", *stages.names(), "write", "total"}
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    assert measured["first_result_seconds"] <= 3 / measured["images_per_second"] + 0.1
    assert measured["peak_memory_mb"] > 50


def test_it_reads_as_a_table(films, capsys):
    assert _call(["benchmark", films, "--runtime", "onnx"]) == 0
    printed = capsys.readouterr().out
    assert "3 films" in printed
    assert "images/s" in printed


def test_films_that_fail_are_counted_and_slow_it_down(films, tmp_path, capsys):
    for number in range(5):
        (tmp_path / f"broken{number}.png").write_text("no film")
    assert _call(["benchmark", films, "--runtime", "onnx", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    measured = printed["runtimes"]["onnx"]
    assert printed["films"] == 8
    assert measured["counts"] == {"ok": 3, "refused": 0, "failed": 5}
    assert measured["images_per_second"] <= 3 / measured["seconds"]["total"]


def test_a_film_that_fails_is_named(tmp_path, capsys):
    (tmp_path / "broken.png").write_text("no film")
    assert _call(["benchmark", str(tmp_path / "broken.png"), "--runtime", "onnx"]) == 1
    printed = capsys.readouterr().out
    assert "0.0" in printed
    assert "0 ok, 0 refused, 1 failed" in printed
    assert "broken.png: its content is no image" in printed


def test_nothing_to_measure_is_said(films, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert _call(["benchmark", str(tmp_path / "empty")]) == 2
    assert "no films in" in capsys.readouterr().err
    assert _call(["benchmark", films, "--weights", "nonsense"]) == 2
    assert "cannot be measured" in capsys.readouterr().err


def test_a_runtime_that_cannot_run_is_named(films, capsys):
    assert _call(["benchmark", films, "--runtime", "onnx", "--weights", films]) == 2
    assert "onnx cannot be measured" in capsys.readouterr().err
