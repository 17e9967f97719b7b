"""The pictures of a classify evaluation: which films are shown as the worst, and what is said of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_pipeline.models.figures import plots
from cxr_pipeline.stages.classify_figures import caption, figures, refusals, worst_first
from cxr_pipeline.stages.decisions import Rules
from cxr_pipeline.stages.sets import Sets

CLASSES = ["TB", "NTB", "NORM"]
THRESHOLD = 0.14
RULES = Rules("TB", THRESHOLD, "NORM", sets=Sets(0.1, positive=0.1, negative=0.3))


def film(name, label, tb, ntb=0.0, source="a"):
    """A film as `Classify.evaluate` tells of it; its label is wrong in several ways."""
    norm = 1 - tb - ntb
    predicted = "TB" if tb >= THRESHOLD else "NTB" if ntb > norm else "NORM"
    p = {"p_TB": tb, "p_NTB": ntb, "p_NORM": norm}
    row = {"image": f"{name}.png", "patient": name, "source": source, "label": label, "status": "ok"}
    answer = RULES.decide({"TB": tb, "NTB": ntb, "NORM": norm})
    return row | p | {"predicted": predicted, "screen": answer.screen, "score": answer.score}


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
    assert names(worst_first(FILMS, "TB", lambda film: film)) == ORDER


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_a_few_can_be_kept_while_films_pass_by(count, seed):
    kept = []
    for number in np.random.default_rng(seed).permutation(len(FILMS)):
        kept = worst_first([*kept, FILMS[number]], "TB", lambda film: film)[:count]
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
    tiles = [(one, np.zeros((9, 9), np.uint8)) for one in worst_first(films, "TB", lambda film: film)]
    figures(films, tiles, CLASSES, RULES, tmp_path)
    assert curves == [names]
    assert cv2.imread(str(tmp_path / "worst.png")) is not None


def test_label_and_screen_are_measured_apart(tmp_path):
    out = figures(FILMS, [], CLASSES, RULES, tmp_path)
    assert out["recall_tb"].value == pytest.approx(1 / 3)  # of the label: right TB alone
    assert out["recall_norm"].value == pytest.approx(1 / 4)
    assert out["balanced_accuracy"].value == pytest.approx((1 / 3 + 0 + 1 / 4) / 3)
    assert out["sensitivity"].value == pytest.approx(1 / 3)  # of the threshold, whatever is unsure
    assert out["specificity"].value == pytest.approx(2 / 5)
    assert out["unsure"].value == pytest.approx(3 / 8)  # 0.15, 0.2 and 0.13 lie between 0.1 and 0.3
    assert out["error_decided"].value == pytest.approx(3 / 5)  # 0.9, 0.5 and 0.01
    assert out["auc_abnormal"].n == len(FILMS)
    assert out["risk"] == 0.1


def test_a_cut_off_moves_the_screen_and_not_the_label(tmp_path):
    higher = Rules("TB", THRESHOLD, "NORM", cutoff=90)
    films = [one | {"screen": higher.screen({n: one[f"p_{n}"] for n in CLASSES})} for one in FILMS]
    out = figures(films, [], CLASSES, higher, tmp_path)
    assert out["sensitivity"].value == 0
    assert out["specificity"].value == pytest.approx(4 / 5)  # 0.9 alone has more than 90
    assert out["unsure"].value == 0
    assert out["cutoff"] == 90


def test_refusals_are_counted_by_class_and_source():
    films = [FILMS[0], FILMS[1], FILMS[5] | {"status": "refused"}, film("b", "TB", 0.3, source="b")]
    counted = {(one["source"], one["label"]): (one["films"], one["refused"].value) for one in refusals(films)}
    assert counted[("all", "TB")] == (3, pytest.approx(1 / 3))
    assert counted[("a", "TB")] == (2, 0.5)
    assert counted[("b", "TB")] == (1, 0)
    assert counted[("all", "NORM")] == (1, 0)
