"""Every plot is drawn from what an evaluation may hand over, odd cases among it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from models import plots

Y = np.array([True, False, True, False])
SCORE = np.array([0.9, 0.2, 0.4, 0.6])
HISTORY = "epoch,phase,loss,val_loss,val_accuracy\n1,start,0.5,0.6,0.7\n2,fine,0.4,0.5,0.8\n"

CASES = {
    "curves": lambda path, folder: plots.training_curves(folder / "history.csv", path),
    "roc": lambda path, _: plots.roc_and_precision_recall({"a": (Y, SCORE), "one class": (Y | True, SCORE)}, 0.5, path),
    "roc of nothing": lambda path, _: plots.roc_and_precision_recall({}, 0.5, path),
    "reliability": lambda path, _: plots.reliability(np.array([0.0, 0.5, 1.0]), np.array([0, 1, 1]), path),
    "confusion": lambda path, _: plots.confusion(np.array([[3, 1], [0, 0]]), ["TB", "NORM"], path),
    "scores": lambda path, _: plots.score_histogram({"TB": 100 * SCORE, "NORM": np.zeros(0)}, 0.5, path),
    "sheet": lambda path, _: plots.contact_sheet(
        [np.zeros((9, 30), np.uint8), np.zeros((300, 20, 3), np.uint8)], ["Lungenflügel", "b" * 99], path
    ),
    "films": lambda path, _: plots.films_by_class({"a, train": {"TB": 3}, "a, test": {"TB": 1, "NORM": 0}}, path),
    "sheet of nothing": lambda path, _: plots.contact_sheet([], [], path),
}


@pytest.mark.parametrize("case", CASES)
def test_it_draws_a_picture(case, tmp_path):
    (tmp_path / "history.csv").write_text(HISTORY)
    path = tmp_path / "deep" / "plot.png"
    assert CASES[case](path, tmp_path) == path
    picture = cv2.imread(str(path))
    assert picture is not None
    assert min(picture.shape[:2]) > 20
    assert picture.min() < picture.max() or case == "sheet of nothing"


def test_a_contact_sheet_shows_each_picture_in_its_place(tmp_path):
    shades = [np.full((50, 50), grey, np.uint8) for grey in (10, 90, 170)]
    sheet = cv2.imread(str(plots.contact_sheet(shades, ["", "", ""], tmp_path / "s.png", tile=64, columns=2)), 0)
    assert [int(sheet[y, x]) for y, x in ((32, 32), (32, 96), (116, 32))] == [10, 90, 170]
