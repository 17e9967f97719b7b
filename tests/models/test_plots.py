"""Every plot is drawn from what an evaluation may hand over, odd cases among it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_pipeline.models.figures import plots
from cxr_pipeline.models.figures.metrics import Figure

Y = np.array([True, False, True, False])
SCORE = np.array([0.9, 0.2, 0.4, 0.6])
HISTORY = "epoch,phase,loss,val_loss,val_accuracy\n1,start,0.5,0.6,0.7\n2,fine,0.4,0.5,0.8\n"

CASES = {
    "curves": lambda path, folder: plots.training_curves(folder / "history.csv", path),
    "roc": lambda path, _: plots.roc_and_precision_recall({"a": (Y, SCORE), "one class": (Y | True, SCORE)}, 0.5, path),
    "roc of nothing": lambda path, _: plots.roc_and_precision_recall({}, 0.5, path),
    "reliability": lambda path, _: plots.reliability(np.array([0.0, 0.5, 1.0]), np.array([0, 1, 1]), path),
    "confusion": lambda path, _: plots.confusion(np.array([[3, 1], [0, 0]]), ["TB", "NORM"], path),
    "confusion of labels": lambda path, _: plots.confusion_of_labels(
        {f"Label {n}": np.array([[n, 1], [0, 0]]) for n in range(14)}, path
    ),
    "confusion of no label": lambda path, _: plots.confusion_of_labels({}, path),
    "scores": lambda path, _: plots.score_histogram({"TB": 100 * SCORE, "NORM": np.zeros(0)}, 0.5, path),
    "sheet": lambda path, _: plots.contact_sheet(
        [np.zeros((9, 30), np.uint8), np.zeros((300, 20, 3), np.uint8)], ["Lungenflügel", "b" * 99], path
    ),
    "films": lambda path, _: plots.films_by_class({"a, train": {"TB": 3}, "a, test": {"TB": 1, "NORM": 0}}, path),
    "sheet of nothing": lambda path, _: plots.contact_sheet([], [], path),
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures in place of their files."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize("case", CASES)
def test_it_draws_a_picture(case, tmp_path):
    (tmp_path / "history.csv").write_text(HISTORY)
    path = tmp_path / "deep" / "plot.png"
    assert CASES[case](path, tmp_path) == path
    picture = cv2.imread(str(path))
    assert picture is not None
    assert min(picture.shape[:2]) > 20
    assert picture.min() < picture.max() or case == "sheet of nothing"


FIGURE = Figure(0.5, 0.4, 0.6, 3)
OF_NAMES = {  # every plot that shows names of classes, sources, runs or files
    "roc": lambda name, path: plots.roc_and_precision_recall({name: (Y, SCORE)}, 0.5, path, name),
    "confusion": lambda name, path: plots.confusion(np.eye(2, dtype=int), [name, "NORM"], path),
    "confusion of labels": lambda name, path: plots.confusion_of_labels({name: np.eye(2, dtype=int)}, path),
    "scores": lambda name, path: plots.score_histogram({name: 100 * SCORE}, 0.5, path),
    "films": lambda name, path: plots.films_by_class({name: {name: 3}, "b": {"NORM": 1}}, path),
    "label counts": lambda name, path: plots.label_counts(np.eye(2), np.ones((2, 2)), [name, "b"], path),
    "labels": lambda name, path: plots.per_label({name: {"auc": FIGURE, "support": 3, "prevalence": FIGURE}}, path),
    "roc of labels": lambda name, path: plots.several_roc({name: (Y, SCORE)}, path),
    "compared": lambda name, path: plots.compared_curves([(name, [{"val_loss": 1.0}] * 2)], ["loss"], path),
    "sheet": lambda name, path: plots.contact_sheet([np.zeros((9, 9), np.uint8)], [name], path),
}


@pytest.mark.parametrize("case", OF_NAMES)
def test_a_name_is_never_read_as_a_formula(case, tmp_path):
    path = OF_NAMES[case](r"a $\foo$ b", tmp_path / "plot.png")
    assert cv2.imread(str(path)).min() < 255


@pytest.mark.parametrize(
    ("history", "drawn"),
    [
        (HISTORY, {"loss": {"train": 2, "val": 2}, "accuracy": {"val": 2}}),
        (
            "epoch,phase,loss,val_loss,val_accuracy\n1,start,0.5,0.6,0.7\n",
            {"loss": {"train": 1, "val": 1}, "accuracy": {"val": 1}},
        ),
        (
            "epoch,phase,loss,val_loss,accuracy,val_accuracy,learning_rate\n1,start,0.5,0.6,,0.7,\n2,fine,1,1,1,1,0.1\n",
            {"loss": {"train": 2, "val": 2}, "accuracy": {"train": 1, "val": 2}},
        ),
    ],
)
def test_curves_show_all_that_the_history_has(history, drawn, tmp_path, monkeypatch):
    """Metrics that only val has among it, as a training without epochs leaves them: a point each."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    (tmp_path / "history.csv").write_text(history)
    plots.training_curves(tmp_path / "history.csv", tmp_path / "curves.png")
    found = {}
    for axis in figures[0].axes:
        curves = [line for line in axis.lines if line.get_label() in ("train", "val")]
        assert all(line.get_marker() == "o" for line in curves)
        found[axis.get_title()] = {line.get_label(): int(np.isfinite(line.get_ydata()).sum()) for line in curves}
    assert found == drawn


def test_the_confusion_of_each_label_has_its_own_table(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.confusion_of_labels({"Nodule": np.array([[30, 10], [1, 3]]), "Mass": np.zeros((2, 2), int)}, tmp_path / "c")
    nodule, mass = figures[0].axes
    assert [text.get_text() for text in nodule.texts] == ["30\n75 %", "10\n25 %", "1\n25 %", "3\n75 %"]
    assert (nodule.get_title(), mass.get_title()) == ("Nodule", "Mass")


def test_a_contact_sheet_shows_each_picture_in_its_place(tmp_path):
    shades = [np.full((50, 50), grey, np.uint8) for grey in (10, 90, 170)]
    sheet = cv2.imread(str(plots.contact_sheet(shades, ["", "", ""], tmp_path / "s.png", tile=64, columns=2)), 0)
    assert [int(sheet[y, x]) for y, x in ((32, 32), (32, 96), (116, 32))] == [10, 90, 170]


def test_a_contact_sheet_says_what_is_drawn_in_it(tmp_path):
    shades = [np.full((50, 50), grey, np.uint8) for grey in (10, 90)]
    plain = cv2.imread(str(plots.contact_sheet(shades, ["a", "b\nc"], tmp_path / "a.png", tile=64, columns=2)))
    legend = [("the truth", (80, 220, 80)), ("what was found", (60, 60, 255)), ("number: Dice", None)]
    bordered = cv2.imread(
        str(plots.contact_sheet(shades, ["a", "b\nc"], tmp_path / "b.png", tile=64, columns=2, legend=legend))
    )
    band = bordered.shape[0] - plain.shape[0]
    assert (bordered[band:] == plain).all()
    for _, colour in legend[:2]:
        assert (bordered[:band] == colour).all(axis=2).sum() > 80
    assert (bordered[:band].max(axis=2) < 80).sum() > 100  # the words
    assert not (bordered[:band, -4:] < 255).any()  # and none beyond the edge


def test_a_caption_that_does_not_fit_ends_in_points(tmp_path):
    assert plots._cut("short", 200) == "short"
    cut = plots._cut("a name that is far too long", 100)
    assert cut.endswith("..")
    assert 80 < plots._width(cut) <= 100


def test_curves_of_fourteen_labels_can_be_told_apart(drawn, tmp_path):
    plots.several_roc({f"label {number}": (Y, SCORE) for number in range(14)}, tmp_path / "roc.png")
    (axis,) = drawn[0].axes
    lines = [line for line in axis.lines if line.get_label().startswith("label")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 14


def test_bars_stand_in_the_row_of_their_label(drawn, tmp_path):
    figures = {
        name: {"auc": Figure(auc, auc - 0.1, auc + 0.1, 9), "prevalence": Figure(auc / 2, 0, 1, 9), "support": 3}
        for name, auc in (("a", 0.8), ("b", 0.6), ("c", float("nan")))
    }
    plots.per_label(figures, tmp_path / "labels.png")
    left, right = drawn[0].axes
    assert left.get_ylim() == right.get_ylim()
    assert [bar.get_width() for bar in right.patches] == [0.3, 0.4]
    assert [bar.get_y() + bar.get_height() / 2 for bar in right.patches] == list(left.get_yticks())


def test_a_legend_of_the_label_counts_hides_no_bar(drawn, tmp_path):
    targets = np.tile([[1, 0], [0, 1], [0, 1]], (5, 1))
    plots.label_counts(targets, np.ones((2, 2)), ["a", "b"], tmp_path / "labels.png")
    (figure,) = drawn
    figure.canvas.draw()
    boxes = [
        legend.get_window_extent() for legend in (*figure.legends, *(a.get_legend() for a in figure.axes)) if legend
    ]
    assert len(boxes) == 1
    bars = [bar.get_window_extent() for axis in figure.axes for bar in axis.patches]
    assert not any(boxes[0].overlaps(bar) for bar in bars)
