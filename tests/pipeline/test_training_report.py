"""The report of a training."""

from __future__ import annotations

import base64
import json

import cv2
import numpy as np
import pytest

from cxr_pipeline.cli import main as cli
from cxr_pipeline.models.figures.plots import training_curves
from cxr_pipeline.report.page import ReportError
from cxr_pipeline.report.training import is_training, write_training_report
from tests.pipeline.report_reader import opened


def figure(value, low, high, n=40):
    return {"value": value, "ci95": [low, high], "n": n}


METRICS = {
    "stage": "classify",
    "split": "test",
    "split_hash": "abcd",
    "n_films": 41,
    "n_judged": 40,
    "patients": 39,
    "sources": {"shenzhen": 41},
    "date": "2025-01-02",
    "threshold": 0.14,
    "positive": "TB",
    "auc_tb": figure(0.83, 0.76, 0.9),
    "ece": figure(None, None, None, 0),
    "confusion_matrix": {"classes": ["TB", "NORM"], "counts": [[17, 3], [9, 11]]},
    "per_class": {"TB": {"precision": 0.65, "recall": 0.85, "f1": 0.74, "support": 20}},
    "by_source": {"a<b": {"auc_tb": figure(0.71, 0.6, 0.8)}, "c": {"auc_tb": figure(0.9, 0.8, 1.0)}},
}
FILMS = """image,patient,source,label,status,p_TB,p_NORM,predicted
good.png,p1,c,TB,ok,0.9,0.1,TB
<b>bad.png,p2,c,TB,ok,0.05,0.95,NORM
fair.png,p3,c,NORM,ok,0.4,0.6,TB
unread.png,p4,c,TB,failed,,,
"""


def picture(path, size=(60, 90)):
    path.write_bytes(cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8))[1].tobytes())


@pytest.fixture
def trained(tmp_path):
    """What a training of two stages leaves, as far as the report reads it."""
    folder = tmp_path / "w"
    for name in ("segment", "classify"):
        (folder / name / "evaluation" / "test").mkdir(parents=True)
        training = {"films": {"train": {"n": 80, "by_source": {"shenzhen": 80}}}, "epochs": 2}
        card = {"stage": name, "decisions": {"size": 64}, "licence": "MIT", "training": training, "figures": {}}
        (folder / name / "card.json").write_text(json.dumps(card))
        history = "epoch,phase,loss,dice,val_loss,val_dice\n1,fit,0.9,0.5,0.8,0.6\n2,fit,0.5,0.7,0.85,0.65\n"
        (folder / name / "history.csv").write_text(history)
        (folder / name / "config.yaml").write_text("size: 64  # <small>\n")
    (folder / "classify" / "done").touch()
    training_curves(folder / "classify" / "history.csv", folder / "classify" / "curves.png")
    test = folder / "classify" / "evaluation" / "test"
    (test / "metrics.json").write_text(json.dumps(METRICS))
    (test / "films.csv").write_text(FILMS)
    for name in ("roc", "reliability", "scores", "confusion", "worst"):
        picture(test / f"{name}.png")
    return folder


def test_it_shows_what_the_training_left(trained):
    page = opened(write_training_report(trained))
    text = (trained / "report.html").read_text()
    for message in (
        "0.830 (0.760 to 0.900), n 40",
        "40 judged of 41, of 39 patients",
        "0.14 (TB score 14.0)",
        '<th scope="row">TB</th><td>17</td><td>3</td>',
        "best val_loss 0.800 in epoch 1; best val_dice 0.650 in epoch 2",
        "Not trained here: localize",
        "size: 64  # &lt;small&gt;",
        "a&lt;b",
    ):
        assert message in text, message
    images = [given for tag, given in page.tags if tag == "img"]
    assert len(images) == 6
    texts = " ".join(given["alt"] for given in images)
    assert "ROC and precision-recall curves of TB on the test films: auc_tb 0.830 (0.760 to 0.900)" in texts
    for given in images:
        kind, _, data = given["src"].partition(";base64,")
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert kind in ("data:image/png", "data:image/jpeg")
    assert ("script", {}) not in page.tags


def test_the_worst_films_come_first_and_those_unread_not_at_all(trained):
    write_training_report(trained)
    text = (trained / "report.html").read_text()
    worst = text[text.index("The 3 worst films, 2 of them with a wrong answer") :]
    assert worst.index("&lt;b&gt;bad.png") < worst.index("fair.png") < worst.index("good.png")
    assert "<td>c</td><td>TB</td><td>NORM</td><td>0.05</td><td>0.05</td>" in worst
    assert "unread.png" not in worst


LABELS = {
    name: {
        **{kind: figure(*three) for kind in ("auc", "average_precision", "sensitivity", "f1", "prevalence")},
        "threshold": 0.25,
        "support": 7,
    }
    for name, three in (("Effusion", (0.81, 0.7, 0.9, 38)), ("Hernia", (None, None, None, 0)))
}


def test_of_several_labels_a_film_each_has_its_figures(trained):
    several = {name: METRICS[name] for name in METRICS if name not in ("threshold", "positive", "confusion_matrix")}
    several |= {"multi_label": True, "classes": list(LABELS), "per_class": LABELS, "auc": figure(0.81, 0.7, 0.9)}
    test = trained / "classify" / "evaluation" / "test"
    (test / "metrics.json").write_text(json.dumps(several))
    (test / "films.csv").write_text(
        "image,source,label,status,p_Effusion,predicted\na.png,c,Effusion,ok,0.3,Effusion\n"
    )
    for name in ("reliability", "scores", "confusion", "worst"):
        (test / f"{name}.png").unlink()
    picture(test / "labels.png")
    picture(trained / "classify" / "labels.png")
    page = opened(write_training_report(trained))
    text = (trained / "report.html").read_text()
    assert '<th scope="row">Effusion</th><td>38</td><td>7</td><td>0.810 (0.700 to 0.900)</td>' in text
    assert '<th scope="row">Hernia</th><td>0</td><td>7</td><td>none</td>' in text
    assert "worst films" not in text
    texts = " ".join(given["alt"] for tag, given in page.tags if tag == "img")
    assert "ROC curves of the labels on the test films; means over the labels: auc 0.810 (0.700 to 0.900)" in texts
    assert "How often each label is there in the films trained on" in texts


def test_the_positive_class_is_named_whatever_it_is(trained):
    other = {name.replace("_tb", "_pneumonia"): value for name, value in METRICS.items()} | {"positive": "PNEUMONIA"}
    test = trained / "classify" / "evaluation" / "test"
    (test / "metrics.json").write_text(json.dumps(other))
    (test / "films.csv").write_text(FILMS.replace("TB", "PNEUMONIA"))
    page = opened(write_training_report(trained))
    texts = " ".join(given["alt"] for tag, given in page.tags if tag == "img")
    assert "ROC and precision-recall curves of PNEUMONIA on the test films: auc_pneumonia 0.830" in texts
    text = (trained / "report.html").read_text()
    assert "0.14 (PNEUMONIA score 14.0)" in text
    assert "TB score" not in text


def test_the_same_folder_gives_the_same_bytes(trained):
    first = write_training_report(trained).read_bytes()
    assert write_training_report(trained).read_bytes() == first


def test_a_training_that_has_just_begun(trained):
    for path in trained.rglob("evaluation/test/*"):
        path.unlink()
    (trained / "classify" / "curves.png").unlink()
    (trained / "classify" / "history.csv").write_text("epoch,phase,loss\n")
    opened(write_training_report(trained))
    assert "not finished" in (trained / "report.html").read_text()


def test_a_damaged_file_is_named(trained):
    (trained / "classify" / "evaluation" / "test" / "metrics.json").write_text("{")
    with pytest.raises(ReportError, match="cannot be read as a training"):
        write_training_report(trained)
    assert not list(trained.glob("*report*"))


def test_the_command_tells_a_training_from_a_run(trained, tmp_path, capsys):
    assert is_training(trained)
    assert not is_training(tmp_path)
    assert cli._call(["report", str(trained)]) == 0
    assert "Training of a chest X-ray chain" in (trained / "report.html").read_text()
    with pytest.raises(ReportError, match="no trained stage"):
        write_training_report(tmp_path)
