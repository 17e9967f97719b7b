"""Tasks beside TB, by config alone: several labels a film, classes made of findings, films without segmentation."""

from __future__ import annotations

import csv
import json
import re

import cv2
import numpy as np
import pytest
import yaml

from cxr_pipeline.cli.main import _call
from cxr_pipeline.configs.schema import ConfigError, load_config, presets
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.train.training import prepare_manifest
from tests.tiny import SMALL

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
    small = [word for line in SMALL if "fit.epochs" not in line for word in ("--set", line)]
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
        assert row["score"] == ""
        assert not {"tb_score", "p_TB", "p_NTB", "p_NORM"} & set(row)
        p = {name: float(row[f"p_{name}"]) for name in TASK["classes"]}
        assert all(0 <= value <= 1 for value in p.values())
        called = [name for name in TASK["classes"] if p[name] >= card[name] - 5e-5]
        assert set(filter(None, row["label"].split("|"))) <= set(called)
    assert not list((tmp_path / "a" / "masks").iterdir())
    assert len(list((tmp_path / "a" / "overlays").iterdir())) == len(rows)
    with (tmp_path / "a" / "journal.jsonl").open() as file:
        entries = [json.loads(line) for line in file]
    assert all(entry["heat"] for entry in entries)
    for entry in entries:
        p = {name: float(entry["row"][f"p_{name}"]) for name in TASK["classes"]}
        called = list(filter(None, entry["row"]["label"].split("|"))) or TASK["classes"]
        assert p[entry["heatmap_label"]] == max(p[name] for name in called)
    text = (tmp_path / "a" / "report.html").read_text()
    for name in TASK["classes"]:
        count = sum(name in row["label"].split("|") for row in rows)
        assert f"<dt>answered {name}</dt><dd>{count}</dd>" in text


@pytest.mark.slow
def test_a_training_of_several_labels_has_a_report(weights):
    assert _call(["report", str(weights)]) == 0
    text = (weights / "report.html").read_text()
    metrics = json.loads((weights / "classify" / "evaluation" / "test" / "metrics.json").read_text())
    for name, figures in metrics["per_class"].items():
        assert f'<th scope="row">{name}</th><td>{figures["auc"]["n"]}</td><td>{figures["support"]}</td>' in text
    assert "Not trained here" not in text


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
    small = [word for line in SMALL if "fit.epochs" not in line for word in ("--set", line)]
    assert _call([*call, *small, "--set", "classify.fit.epochs=0"]) == 2
    assert "sequential_cnn has a deep head" in capsys.readouterr().err


def call_of(task, films, tmp_path, *more):
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    small = [word for line in SMALL for word in ("--set", line)]
    call = ["train", "--data", str(films), "--config", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "w")]
    return [*call, *small, *more]


ONE_CLASS = {
    "classes": ["LIQUID", "SICK", "WELL"],
    "class_of": {"LIQUID": ["Effusion"], "SICK": ["TB"], "WELL": ["NORM"]},
    "positive": "LIQUID",
    "normal": "WELL",
    "classify": {"lungs": "none", "pool": "all", "cut": "block_3_expand_relu", "fit": {"epochs": 1}},
}


SETTINGS = ["seed=5", "val_fraction=0.3", "test_fraction=0.3", "classify.fit.epochs=1"]


@pytest.fixture(scope="module")
def unsplit(films, tmp_path_factory):
    """Films without splits of their own, and weights trained on them: classes that are not among their own values."""
    folder = tmp_path_factory.mktemp("dealt")
    table = read_manifest(films).table.drop(columns="split")
    table.to_csv(folder / "manifest.csv", index=False)
    more = ["--stage", "classify", *(word for setting in SETTINGS for word in ("--set", setting))]
    assert _call(call_of(ONE_CLASS, folder / "manifest.csv", folder, *more)) == 0
    return folder


@pytest.mark.slow
def test_classes_are_made_of_labels_and_findings(films, unsplit, tmp_path):
    at = ["--data", str(films), "--split", "all", "--weights", str(unsplit / "w"), "--out", str(tmp_path)]
    assert _call(["evaluate", "--stage", "classify", *at]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    table = read_manifest(films).table
    assert metrics["per_class"]["LIQUID"]["support"] == (table["label"] == "NTB").sum()
    assert "auc_liquid" in metrics


@pytest.mark.slow
def test_a_training_judges_its_classes_on_test(unsplit):
    metrics = json.loads((unsplit / "w" / "classify" / "evaluation" / "test" / "metrics.json").read_text())
    assert metrics["n_judged"] == 6
    assert {name: one["support"] for name, one in metrics["per_class"].items()} == {"LIQUID": 2, "SICK": 2, "WELL": 2}


def judged_into(unsplit, out):
    return ["--data", str(unsplit / "manifest.csv"), "--weights", str(unsplit / "w"), "--out", str(out)]


@pytest.mark.slow
def test_films_are_dealt_out_again_as_in_the_training(unsplit, tmp_path):
    at = judged_into(unsplit, tmp_path)
    assert _call(["evaluate", "--stage", "classify", *at]) == 0
    own = unsplit / "w" / "classify" / "evaluation" / "test" / "films.csv"
    judged, trained = ({row["image"] for row in csv.DictReader(path.open())} for path in (tmp_path / "films.csv", own))
    assert judged == trained


@pytest.mark.slow
def test_finished_weights_are_not_replaced_unasked(unsplit, capsys):
    call = call_of(ONE_CLASS, unsplit / "manifest.csv", unsplit, "--stage", "classify", "--set", "seed=5")
    before = (unsplit / "w" / "classify" / "model.onnx").read_bytes()
    assert _call(call) == 2
    printed = capsys.readouterr().err
    assert "val_fraction 0.3 (now 0.15)" in printed
    assert "--overwrite" in printed
    assert (unsplit / "w" / "classify" / "model.onnx").read_bytes() == before


@pytest.mark.slow
def test_a_refused_training_leaves_the_finished_one_alone(unsplit, capsys):
    """Films of one class alone cannot be trained on, with --overwrite neither."""
    stage = unsplit / "w" / "classify"
    kept = sorted(path.relative_to(stage) for path in stage.rglob("*"))
    before = (stage / "config.yaml").read_bytes()
    path = unsplit / "one.csv"
    lines = (unsplit / "manifest.csv").read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line for line in lines if ",NORM," in line)]))
    assert _call(call_of(ONE_CLASS, path, unsplit, "--stage", "classify", "--overwrite")) == 2
    assert "have the positive class, LIQUID" in capsys.readouterr().err
    assert sorted(path.relative_to(stage) for path in stage.rglob("*")) == kept
    assert (stage / "config.yaml").read_bytes() == before


@pytest.mark.slow
def test_all_films_of_a_training_are_known_as_such(unsplit, tmp_path):
    at = judged_into(unsplit, tmp_path)
    assert _call(["evaluate", "--stage", "classify", *at, "--split", "all"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["n_films"] == 18
    assert {one["split"]: one["films"] for one in metrics["seen"]} == {"train": 6, "val": 6}


@pytest.mark.slow
def test_a_training_of_an_older_version_is_known_again(unsplit, caplog):
    """It told its films by their splits alone."""
    path = unsplit / "w" / "classify" / "config.yaml"
    now = path.read_text()
    config = load_config(unsplit / "task.yaml", [*SMALL, *SETTINGS])
    manifest, _ = prepare_manifest(unsplit / "manifest.csv", config)
    path.write_text(now.replace(now.splitlines()[-1], f"# films and splits: {manifest.split_hash()}"))
    more = [word for setting in SETTINGS for word in ("--set", setting)]
    try:
        with caplog.at_level("INFO"):
            assert _call(call_of(ONE_CLASS, unsplit / "manifest.csv", unsplit, "--stage", "classify", *more)) == 0
    finally:
        path.write_text(now)
    assert "trained already" in caplog.text


@pytest.mark.slow
def test_changed_labels_are_another_training(unsplit, capsys):
    path = unsplit / "manifest.csv"
    whole = path.read_text()
    path.write_text(whole.replace(",TB,", ",x,").replace(",NORM,", ",TB,").replace(",x,", ",NORM,"))
    more = ["--set", "seed=5", "--set", "val_fraction=0.3", "--set", "test_fraction=0.3"]
    more += ["--set", "classify.fit.epochs=1"]
    try:
        assert _call(call_of(ONE_CLASS, path, unsplit, "--stage", "classify", *more)) == 2
    finally:
        path.write_text(whole)
    assert "other films, labels or splits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["classify.fit.sources=[elsewhere]"], r"of the sources elsewhere.*sources there: synthetic.*sources=null"),
        (["positive=WELL", "normal=LIQUID", "class_of={LIQUID: [Effusion], WELL: [x]}"], "0 of .* have the positive"),
    ],
)
def test_a_training_without_films_says_what_is_there(films, tmp_path, capsys, settings, says):
    more = [word for line in settings for word in ("--set", line)]
    assert _call(call_of(ONE_CLASS, films, tmp_path, "--stage", "classify", *more)) == 2
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.slow
def test_weights_without_segmentation_have_no_such_stage_to_ask_for(films, weights, tmp_path, capsys):
    for call in (["run", str(films)], ["evaluate", "--data", str(films), "--split", "all"]):
        assert _call([*call, "--stage", "segment", "--weights", str(weights), "--out", str(tmp_path)]) == 2
        assert "have no stage 'segment'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_chain_that_checks_no_films_says_so_and_goes_by_the_header(weights, tmp_path, capsys):
    grey = np.tile(np.arange(120, dtype=np.uint8), (120, 1))
    cv2.imencode(".png", grey)[1].tofile(tmp_path / "film.png")
    cv2.imencode(".png", grey[:60])[1].tofile(tmp_path / "small.png")
    call = ["run", str(tmp_path / "film.png"), str(tmp_path / "small.png"), "--weights", str(weights)]
    assert _call([*call, "--out", str(tmp_path / "a")]) == 1
    assert "Films are not checked" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "a" / "results.csv").open()))
    assert [row["status"] for row in rows] == ["ok", "refused"]
    assert rows[1]["error"].startswith("too_small")
    assert _call([*call, "--out", str(tmp_path / "b"), "--no-refuse"]) == 0
    assert "Films are not checked" in json.loads((tmp_path / "a" / "run.json").read_text())["unchecked"]
