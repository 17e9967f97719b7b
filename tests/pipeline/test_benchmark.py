"""`pipeline benchmark` measures what it says; how fast that is, is no test's business."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from data.synthetic import make_film
from models.weights import shipped
from pipeline.cli import _call

pytestmark = pytest.mark.skipif(not shipped(), reason="no weights are shipped")


@pytest.fixture
def films(tmp_path):
    for number in range(3):
        film = make_film(number, label="TB", size=(200, 220)).pixels
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.round(film * 255).astype(np.uint8))
    return str(tmp_path)


def test_every_part_of_every_film_is_counted(films, capsys):
    assert _call(["benchmark", films, "--runtime", "onnx", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["films"] == 3
    assert set(said["runtimes"]) == {"onnx"}
    measured = said["runtimes"]["onnx"]
    assert set(measured["seconds"]) == {"read", "segment", "classify", "localize", "write", "total"}
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    assert measured["first_result_seconds"] <= 3 / measured["images_per_second"] + 0.1
    assert measured["peak_memory_mb"] > 50


def test_it_reads_as_a_table(films, capsys):
    assert _call(["benchmark", films, "--runtime", "onnx"]) == 0
    said = capsys.readouterr().out
    assert "3 films" in said
    assert "images/s" in said


def test_a_runtime_that_cannot_run_is_named(films, capsys):
    assert _call(["benchmark", films, "--runtime", "onnx", "--weights", films]) == 2
    assert "onnx cannot be measured" in capsys.readouterr().err
