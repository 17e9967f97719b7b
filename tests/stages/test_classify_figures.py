"""The pictures of a classify evaluation: which films are shown as the worst, and what is said of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_pipeline.models.figures import plots
from cxr_pipeline.stages.classify_figures import caption, figures, worst_first

CLASSES = ["TB", "NTB", "NORM"]
THRESHOLD = 0.14


def film(name, label, tb, ntb=0.0, source="a"):
    """A film as `Classify.evaluate` tells of it: TB from the threshold on, else the likelier of the others."""
    norm = 1 - tb - ntb
    predicted = "TB" if tb >= THRESHOLD else "NTB" if ntb > norm else "NORM"
    p = {"p_TB": tb, "p_NTB": ntb, "p_NORM": norm}
    row = {"image": f"{name}.png", "patient": name, "source": source, "label": label, "status": "ok"}
    return row | p | {"predicted": predicted}


FILMS = [
    film("right TB", "TB", 0.15),  # hardly probable, and right all the same
    film("certain", "NORM", 0.01),
    film("false alarm 0.2", "NORM", 0.2),
    film("false alarm 0.9", "NORM", 0.9),
    film("false alarm 0.5", "NORM", 0.5),
    film("missed 0.13", "TB", 0.13),
    film("missed 0.01", "TB", 0.01),
    film("other disease missed", "NTB", 0.05, 0.2),
]
ORDER = [
    "missed 0.01",
    "false alarm 0.9",
    "other disease missed",
    "missed 0.13",
    "false alarm 0.5",
    "false alarm 0.2",
    "right TB",
    "certain",
]


def names(films):
    return [one["image"].removesuffix(".png") for one in films]


def test_wrong_answers_come_first_and_each_kind_in_turn():
    assert names(worst_first(FILMS, "TB")) == ORDER


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_a_few_can_be_kept_while_films_pass_by(count, seed):
    kept = []
    for number in np.random.default_rng(seed).permutation(len(FILMS)):
        kept = worst_first([*kept, FILMS[number]], "TB")[:count]
    assert names(kept) == ORDER[:count]


def test_a_caption_says_truth_answer_and_probability():
    assert caption(FILMS[3], "TB") == "truth NORM, answer TB\nTB 0.90: false alarm 0.9"
    assert caption(FILMS[7], "TB") == "truth NTB, answer NORM\nNTB 0.20: other disease missed"


@pytest.fixture
def curves(monkeypatch):
    found = []
    monkeypatch.setattr(plots, "roc_and_precision_recall", lambda curves, *_: found.append(list(curves)))
    return found


@pytest.mark.parametrize(("second", "names"), [("a", ["a"]), ("b", ["all", "a", "b"])])
def test_films_of_one_source_have_one_curve(curves, second, names, tmp_path):
    films = [*FILMS, film("x", "TB", 0.7, source=second), film("y", "NORM", 0.1, source=second)]
    tiles = [(one, np.zeros((9, 9), np.uint8)) for one in worst_first(films, "TB")]
    figures(films, tiles, CLASSES, "TB", "NORM", THRESHOLD, tmp_path)
    assert curves == [names]
    assert cv2.imread(str(tmp_path / "worst.png")) is not None
