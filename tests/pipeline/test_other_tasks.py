"""Tasks beside TB, by config alone: several labels a film, classes made of findings, films without segmentation."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from configs.schema import ConfigError, load_config, presets
from data.manifest import read_manifest
from pipeline.cli import _call
from tests.tiny import TINY

TASK = {
    "name": "findings",
    "classes": ["Nodule", "Effusion", "Tuberculosis"],
    "multi_label": True,
    "positive": None,
    "normal": None,
    "classify": {"network": "sequential_cnn", "lungs": "none", "pool": "all", "fit": {"epochs": 1}},
}


@pytest.fixture(scope="module")
def films(samples, tmp_path_factory):
    """The synthetic films with findings: several on some, none on the normal ones, and unknown ones."""
    manifest = read_manifest(samples)
    table = manifest.table.copy()
    for column in ("image", "mask"):
        table[column] = [str(samples.parent / value) if value else "" for value in table[column]]
    findings = {"TB": "Tuberculosis", "NTB": "Nodule|Effusion", "NORM": ""}
    table["findings"] = [findings[label] for label in table["label"]]
    out = tmp_path_factory.mktemp("findings") / "manifest.csv"
    table.to_csv(out, index=False)
    manifest.boxes.assign(
        image=[str(samples.parent / name) for name in manifest.boxes["image"]], finding="Tuberculosis"
    ).to_csv(out.with_name("boxes.csv"), index=False)
    return out


@pytest.fixture(scope="module")
def weights(films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    small = [word for line in TINY if "fit.epochs" not in line for word in ("--set", line)]
    small += ["--set", "classify.fit.batch_size=4"]
    out = folder / "w"
    assert _call(["train", "--data", str(films), "--config", str(folder / "task.yaml"), "--out", str(out), *small]) == 0
    return out


@pytest.mark.slow
def test_without_segmentation_there_is_no_such_stage(weights):
    assert not (weights / "segment").exists()
    assert (weights / "classify" / "labels.png").is_file()
    decisions = json.loads((weights / "classify" / "card.json").read_text())["decisions"]
    assert decisions["multi_label"]
    assert set(decisions["thresholds"]) == set(TASK["classes"])


@pytest.mark.slow
def test_a_run_gives_every_label_its_column(films, weights, tmp_path):
    images = films.parent / "manifest.csv"
    assert _call(["run", str(images), "--out", str(tmp_path / "a"), "--weights", str(weights)]) == 0
    with (tmp_path / "a" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    card = json.loads((weights / "classify" / "card.json").read_text())["decisions"]["thresholds"]
    for row in rows:
        assert row["tb_score"] == row["p_TB"] == ""
        p = {name: float(row[f"p_{name}"]) for name in TASK["classes"]}
        assert all(0 <= value <= 1 for value in p.values())
        called = [name for name in TASK["classes"] if p[name] >= card[name] - 5e-5]
        assert set(filter(None, row["label"].split("|"))) <= set(called)
    assert not list((tmp_path / "a" / "masks").iterdir())
    assert len(list((tmp_path / "a" / "overlays").iterdir())) == len(rows)
    assert len(list((tmp_path / "a" / "heatmaps").iterdir())) == len(rows)


@pytest.mark.slow
def test_regions_of_any_label_that_is_asked_for(films, weights, tmp_path, capsys):
    call = ["run", str(films), "--weights", str(weights), "--label"]
    assert _call([*call, "Effusion", "--out", str(tmp_path / "a")]) == 0
    regions = json.loads((tmp_path / "a" / "regions.json").read_text())
    names = {category["id"]: category["name"] for category in regions["categories"]}
    assert {names[one["category_id"]] for one in regions["annotations"]} == {"Effusion"}
    assert _call([*call, "Hernia", "--out", str(tmp_path / "b")]) == 2
    assert "Nodule, Effusion, Tuberculosis" in capsys.readouterr().err


@pytest.mark.slow
def test_every_label_is_judged_on_the_films_where_it_is_known(films, weights, tmp_path):
    data = ["--data", str(films), "--split", "all", "--weights", str(weights)]
    assert _call(["evaluate", "--stage", "classify", *data, "--out", str(tmp_path / "c")]) == 0
    metrics = json.loads((tmp_path / "c" / "metrics.json").read_text())
    for name in ("auc", "average_precision", "accuracy", "precision", "recall", "f1"):
        assert set(metrics[name]) == {"value", "ci95", "n"}
    truth = read_manifest(films).table
    for name in TASK["classes"]:
        figures = metrics["per_class"][name]
        assert figures["support"] == truth["findings"].str.contains(name).sum()
        assert figures["prevalence"]["value"] == pytest.approx(figures["support"] / metrics["n"], abs=1e-5)
        (right, false), (missed, found) = metrics["confusion_matrices"]["counts"][name]
        assert found + missed == figures["support"]
        assert figures["accuracy"]["value"] == pytest.approx((right + found) / metrics["n"], abs=1e-5)
        assert figures["sensitivity"]["value"] == pytest.approx(found / (found + missed), abs=1e-5)
        assert (figures["precision"]["value"] or 0) == pytest.approx(found / max(found + false, 1), abs=1e-5)
    for name, own in (("precision", "precision"), ("recall", "sensitivity"), ("f1", "f1"), ("accuracy", "accuracy")):
        of_labels = [figures[own]["value"] or 0 for figures in metrics["per_class"].values()]
        assert metrics[name]["value"] == pytest.approx(sum(of_labels) / 3, abs=1e-5)
    assert (tmp_path / "c" / "roc.png").is_file()
    assert (tmp_path / "c" / "confusion.png").is_file()
    assert _call(["evaluate", "--stage", "localize", *data, "--out", str(tmp_path / "l")]) == 0
    where = json.loads((tmp_path / "l" / "metrics.json").read_text())
    assert where["judged_labels"] == ["Tuberculosis"]
    assert where["cam_in_lungs"]["value"] is None  # nobody looked for lungs


def test_a_site_is_not_fitted_to_several_labels(films, weights, capsys):
    assert _call(["calibrate", "--data", str(films), "--weights", str(weights)]) == 2
    assert "several labels" in capsys.readouterr().err


@pytest.mark.slow
def test_classes_are_made_of_labels_and_findings(films, tmp_path):
    task = {
        "classes": ["LIQUID", "SICK", "WELL"],
        "class_of": {"LIQUID": ["Effusion"], "SICK": ["TB"], "WELL": ["NORM"]},
        "positive": "LIQUID",
        "normal": "WELL",
        "classify": {"lungs": "none", "pool": "all"},
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    small = [word for line in TINY for word in ("--set", line)]
    out = tmp_path / "w"
    call = ["--data", str(films), "--config", str(tmp_path / "task.yaml"), "--out", str(out), "--stage", "classify"]
    assert _call(["train", *call, *small]) == 0
    at = ["--data", str(films), "--split", "all", "--weights", str(out), "--out", str(tmp_path / "e")]
    assert _call(["evaluate", "--stage", "classify", *at]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    table = read_manifest(films).table
    assert metrics["per_class"]["LIQUID"]["support"] == (table["label"] == "NTB").sum()
    assert "auc_liquid" in metrics


def test_all_presets_are_valid():
    assert {"tb", "covid_tb", "pneumonia", "pneumonia_mobilenetv2", "nih14", "chexpert"} <= set(presets())
    for name in presets():
        load_config(name)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["positive=null"], "positive may be null"),
        (["multi_label=true"], "set normal to null"),
        (["classify.lungs=none"], "classify.pool to all"),
        (["class_of={CANCER: [Mass]}"], "class_of must name classes"),
        (["normal=null", "multi_label=true"], "assumed_mix"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings, says):
    with pytest.raises(ConfigError, match=says):
        load_config("tb", settings)


def test_a_deep_head_without_epochs_is_refused(films, tmp_path, capsys):
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    call = ["train", "--data", str(films), "--config", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "w")]
    small = [word for line in TINY if "fit.epochs" not in line for word in ("--set", line)]
    assert _call([*call, *small, "--set", "classify.fit.epochs=0"]) == 2
    assert "sequential_cnn has a deep head" in capsys.readouterr().err
