"""The commands as a person types them, on small synthetic films: train, run, evaluate, and a kill in between."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_pipeline.cli.main import _call
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.models.store import shipped
from cxr_pipeline.stages import load_chain
from tests.tiny import TINY


def pipeline(*arguments, check=0, **options):
    done = subprocess.run(
        [sys.executable, "-m", "cxr_pipeline.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == check, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def called(capsys, *arguments, check=0):
    """The same without a process of its own, where that is not what a test is about."""
    code = _call([str(one) for one in arguments])
    printed = capsys.readouterr()
    assert code == check, f"exit code {code}\n{printed.out}\n{printed.err}"
    return printed


def rows_of(folder):
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Five good films of several formats and six bad files, in folders with the same names."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "ward").mkdir()
    for number, name in enumerate(["a.png", "b.jpg", "c.tif", "ward/a.png", "ward/d.bmp"]):
        pixels = make_film(number, label=("TB", "NORM", "NTB")[number % 3], size=(140 + 10 * number, 150)).pixels
        image = np.round(pixels * (65535 if name.endswith("c.tif") else 255))
        image = image.astype(np.uint16 if name.endswith("c.tif") else np.uint8)
        cv2.imencode(Path(name).suffix, image)[1].tofile(folder / name)
    whole = (folder / "b.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not a picture")
    cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tofile(folder / "dot.png")
    cv2.imencode(".png", np.full((90, 90), 7, np.uint8))[1].tofile(folder / "grey.png")
    (folder / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 50)
    return folder


BAD = {"cut.jpg", "empty.png", "text.png", "dot.png", "grey.png", "broken.dcm"}


@pytest.fixture(scope="module")
def finished(films, tiny_chain, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "run"
    asked = ("--outputs", "all", "--native-heatmaps")
    pipeline("run", films, "--out", out, "--weights", tiny_chain, *asked, check=1)
    return out


def test_every_good_film_is_done_and_every_bad_one_named(finished):
    table = rows_of(finished)
    first = "image,id,status,error,width,height,lung_fraction,p_TB,p_NTB,p_NORM,label,tb_score,regions"
    assert ",".join(table[0]).startswith(first)
    assert len(table) == 11
    assert len({row["id"].lower() for row in table}) == 11
    for row in table:
        name = Path(row["image"]).name
        if name in BAD:
            assert row["status"] in ("failed", "refused")
            assert name in row["error"]
        else:
            assert row["status"] == "ok", row["error"]
            assert abs(sum(float(row[f"p_{c}"]) for c in ("TB", "NTB", "NORM")) - 1) < 1e-3
            assert row["screen"] in ("positive", "negative", "unsure")
            if row["screen"] != "unsure":
                assert (float(row["tb_score"]) >= 50) == (row["screen"] == "positive")
            assert row["label"] in ("TB", "NTB", "NORM")


def test_pictures_are_in_native_pixels(finished):
    (row,) = [row for row in rows_of(finished) if row["image"].endswith("b.jpg")]
    for folder in ("masks", "heatmaps"):
        image = cv2.imread(str(finished / folder / f"{row['id']}.png"), cv2.IMREAD_UNCHANGED)
        assert image.shape == (int(row["height"]), int(row["width"])) == (150, 150)
    assert set(np.unique(cv2.imread(str(finished / "masks" / f"{row['id']}.png"), 0))) <= {0, 255}
    assert (finished / "crops" / f"{row['id']}.png").is_file()
    assert (finished / "overlays" / f"{row['id']}.jpg").is_file()


def test_regions_are_coco(finished):
    regions = json.loads((finished / "regions.json").read_text())
    by_id = {image["id"]: image for image in regions["images"]}
    counts = dict.fromkeys(by_id, 0)
    for box in regions["annotations"]:
        image = by_id[box["image_id"]]
        x, y, w, h = box["bbox"]
        assert 0 <= x <= x + w <= image["width"]
        assert 0 <= y <= y + h <= image["height"]
        assert 0 <= box["score"] <= 1
        counts[box["image_id"]] += 1
    assert {category["name"] for category in regions["categories"]} >= {"TB", "NTB"}
    assert sum(counts.values()) == sum(int(row["regions"] or 0) for row in rows_of(finished))


def test_run_json_says_what_made_it(finished):
    made = json.loads((finished / "run.json").read_text())
    text = json.dumps(made)
    assert "research" in text.lower()
    assert "onnxruntime" in text


def test_the_same_command_again_does_nothing_new(films, tiny_chain, finished):
    before = {p: p.stat().st_mtime_ns for p in (finished / "masks").iterdir()}
    pipeline("run", films, "--out", finished, "--weights", tiny_chain, check=1)
    assert {p: p.stat().st_mtime_ns for p in (finished / "masks").iterdir()} == before


def test_stage_by_stage_equals_the_whole_chain_at_once(films, tiny_chain, finished, tmp_path):
    for stage in ("segment", "classify", "localize"):
        asked = ("--outputs", "all", "--native-heatmaps")  # as `finished`
        pipeline("run", films, "--out", tmp_path, "--weights", tiny_chain, "--stage", stage, *asked, check=1)
    assert (tmp_path / "regions.json").read_bytes() == (finished / "regions.json").read_bytes()
    assert (tmp_path / "results.csv").read_bytes() == (finished / "results.csv").read_bytes()


def test_evaluate_each_stage(samples, tiny_chain, tmp_path):
    names = {
        "segment": ("dice", "iou", "hd95_px"),
        "classify": ("accuracy", "balanced_accuracy", "auc_tb", "sensitivity", "specificity", "ece"),
        "localize": ("hit_rate", "iou", "ap50", "cam_in_lungs"),
    }
    for stage, figures in names.items():
        out = tmp_path / stage
        pipeline(
            "evaluate", "--stage", stage, "--data", samples, "--split", "all", "--out", out, "--weights", tiny_chain
        )
        metrics = json.loads((out / "metrics.json").read_text())
        for name in figures:
            assert set(metrics[name]) == {"value", "ci95", "n"}
        assert metrics["split"] == "all"
        assert len(metrics["split_hash"]) == 16
        assert list(out.glob("*.png"))
    metrics = json.loads((tmp_path / "classify" / "metrics.json").read_text())
    whole = sum(map(sum, metrics["confusion_matrix"]["counts"]))
    assert (tmp_path / "classify" / "confusion.png").is_file()
    counted = [figures for figures in metrics["per_class"].values() if figures["support"]]
    for name in ("precision", "recall", "f1"):
        assert set(metrics[name]) == {"value", "ci95", "n"}
        assert metrics[name]["n"] == whole == metrics["n_judged"]
        assert metrics[name]["value"] == pytest.approx(np.mean([one[name] or 0 for one in counted]), abs=1e-5)
    for name, figures in metrics["per_class"].items():
        with (tmp_path / "classify" / "films.csv").open() as file:
            films = [film for film in csv.DictReader(file) if film["status"] == "ok"]
        right = [(film["label"] == name) == (film["predicted"] == name) for film in films]
        assert figures["accuracy"] == pytest.approx(np.mean(right), abs=1e-5)


def bare(samples, folder, **columns):
    """A copy of the samples' manifest, without boxes, with other columns where given."""
    table = read_manifest(samples).table.assign(**columns)
    for column in ("image", "mask"):
        table[column] = [str(samples.parent / value) if value else "" for value in table[column]]
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.mark.parametrize(
    ("stage", "columns", "says"),
    [
        ("segment", {"mask": ""}, "has a lung mask"),
        ("classify", {"label": ""}, "has one of the classes TB, NTB, NORM"),
        ("localize", {}, "has a lesion box"),
    ],
)
def test_films_without_truth_cannot_be_judged(stage, columns, says, samples, tiny_chain, tmp_path, capsys):
    out = tmp_path / "out"
    call = ["--split", "all", "--out", out, "--weights", tiny_chain]
    table = read_manifest(samples).table
    data = bare(samples, tmp_path, **columns)
    printed = called(capsys, "evaluate", "--stage", stage, "--data", data, *call, check=2).err
    assert f"no film of the selection {says}" in printed
    assert f"synthetic test {(table['split'] == 'test').sum()}" in printed
    assert "No film of the manifest has it" in printed
    assert not out.exists()


def test_films_without_truth_are_told_where_there_are_others(samples, tiny_chain, tmp_path, capsys):
    table = read_manifest(samples).table
    in_test = table["split"] == "test"
    data = bare(samples, tmp_path, mask=table["mask"].where(~in_test, ""))
    call = ["evaluate", "--stage", "segment", "--data", data, "--out", tmp_path / "out", "--weights", tiny_chain]
    printed = called(capsys, *call, check=2).err
    assert "Films that have it: synthetic train" in printed
    assert f"synthetic val {(table['split'] == 'val').sum()}" in printed


def test_training_passes_over_a_split_without_truth(samples, tiny_chain, tiny_config, tmp_path, caplog):
    from cxr_pipeline.train.training import train

    shutil.copytree(tiny_chain, tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / "localize")
    train(bare(samples, tmp_path), tiny_config, tmp_path / "w", "localize")
    assert json.loads((tmp_path / "w" / "localize" / "card.json").read_text())["figures"] == {}
    assert not (tmp_path / "w" / "localize" / "evaluation").exists()
    assert "no film" not in caplog.text


def test_films_of_the_training_are_named(samples, tiny_chain, tmp_path):
    out = tmp_path / "out"
    table = read_manifest(samples).table
    count = {split: int((table["split"] == split).sum()) for split in ("train", "val", "test")}
    call = ["--data", samples, "--out", out, "--weights", tiny_chain]
    for split, used_to, word in (("train", "train", "trained on"), ("val", "choose", "chosen and calibrated on")):
        printed = pipeline("evaluate", "--stage", "classify", *call, "--split", split).stderr
        for stage in ("segment", "classify"):
            films = f"synthetic {split} ({count[split]} here)"
            assert f"warning: {stage} was {word} films of these sources and splits: {films}" in printed
        entry = {"split": split, "source": "synthetic", "films": count[split], "used_to": used_to}
        seen = json.loads((out / "metrics.json").read_text())["seen"]
        assert seen == [{"stage": stage, **entry} for stage in ("segment", "classify")]
    printed = pipeline("evaluate", "--stage", "classify", *call, "--split", "test").stderr
    assert "warning" not in printed
    assert json.loads((out / "metrics.json").read_text())["seen"] == []


@pytest.mark.skipif("tb" not in shipped(), reason="no weights are shipped")
def test_the_shipped_lungs_have_seen_montgomery(samples, tmp_path):
    from cxr_pipeline.train.evaluation import seen_in_training

    chain = load_chain("tb")
    films = read_manifest(bare(samples, tmp_path, source="montgomery", split="external"))
    entry = {"split": "external", "source": "montgomery", "films": 18, "used_to": "train"}
    assert seen_in_training(chain, films) == [{"stage": "segment", **entry}]
    assert seen_in_training(chain, read_manifest(bare(samples, tmp_path, source="new", split="external"))) == []


def test_films_that_the_chain_refuses_are_judged_on_request(samples, tiny_chain, tmp_path, capsys):
    shutil.copytree(tiny_chain, tmp_path / "weights")
    card = tmp_path / "weights" / "segment" / "card.json"
    facts = json.loads(card.read_text())
    facts["decisions"]["min_fraction"] = 2  # no film has so much lung
    card.write_text(json.dumps(facts))
    command = [
        "evaluate",
        "--stage",
        "classify",
        "--data",
        samples,
        "--split",
        "all",
        "--weights",
        tmp_path / "weights",
    ]
    judged = {}
    for flag in ([], ["--no-refuse"]):
        called(capsys, *command, "--out", tmp_path / f"out{len(flag)}", *flag)
        judged[len(flag)] = json.loads((tmp_path / f"out{len(flag)}" / "metrics.json").read_text())
    assert judged[0]["n_judged"] == 0
    assert "refuse" not in judged[0]
    assert judged[1]["n_judged"] == judged[1]["n_films"] > 0
    assert judged[1]["refuse"] is False


def test_training_leaves_what_it_promises(tiny_chain):
    assert (tiny_chain / "config.yaml").is_file()
    for stage in ("segment", "classify"):
        for name in ("config.yaml", "train.log", "history.csv", "curves.png", "model.keras", "model.onnx", "card.json"):
            assert (tiny_chain / stage / name).is_file(), (stage, name)
        card = json.loads((tiny_chain / stage / "card.json").read_text())
        assert card["figures"]["test"]["n"] > 0


def test_a_training_killed_in_the_middle_of_an_epoch_ends_like_an_undisturbed_one(
    samples, tiny_chain, tmp_path, capsys
):
    settings = [part for line in TINY for part in ("--set", line)]
    command = ["train", "--stage", "segment", "--data", samples, "--config", "tb", "--out", tmp_path, *settings]
    child = subprocess.Popen(
        [sys.executable, "-m", "cxr_pipeline.cli.main", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    history = tmp_path / "segment" / "history.csv"
    while child.poll() is None and not history.is_file():
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)  # the second epoch has begun
    child.wait()
    called(capsys, *command)
    with history.open() as file, (tiny_chain / "segment" / "history.csv").open() as whole:
        resumed, undisturbed = list(csv.DictReader(file)), list(csv.DictReader(whole))
    assert len(resumed) == len(undisturbed) == 2
    for one, two in zip(resumed, undisturbed, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-3)
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), rel=1e-2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nowhere", "--out", "x"], "nowhere"),
        (["run", ".", "--out", "x", "--weights", "none-such"], "none-such"),
        (["run", ".", "--out", "x", "--stage", "detect"], "segment"),
        (["train", "--data", ".", "--out", "x", "--set", "classify.alfa=1"], "classify.alfa"),
        (["evaluate", "--stage", "segment", "--data", ".", "--out", "x", "--weights", "none-such"], "none-such"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_why(tmp_path, arguments, says):
    done = pipeline(*arguments, check=2, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_training_without_a_usable_split_is_named(tmp_path, samples):
    table = read_manifest(samples).table.assign(split="test")
    for column in ("image", "mask"):
        table[column] = [str(samples.parent / value) for value in table[column]]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    done = pipeline(
        "train", "--data", tmp_path / "manifest.csv", "--out", tmp_path / "o", "--stage", "segment", check=2
    )
    assert "train" in done.stderr


@pytest.fixture(scope="module")
def unmasked(samples, tmp_path_factory):
    """The synthetic films without their masks, as most hospitals have theirs."""
    table = read_manifest(samples).table.assign(mask="")
    table["image"] = [str(samples.parent / value) for value in table["image"]]
    out = tmp_path_factory.mktemp("unmasked") / "manifest.csv"
    table.to_csv(out, index=False)
    return out


@pytest.mark.parametrize("alone", [[], ["--stage", "classify"]])
def test_films_without_masks_are_trained_on_with_lungs_from_elsewhere(unmasked, tiny_chain, tmp_path, capsys, alone):
    small = [word for line in TINY for word in ("--set", line)]
    taken = ["--set", f"segment.weights={tiny_chain}", "--set", "segment.margin=0.1", *alone]
    called(capsys, "train", "--data", unmasked, "--out", tmp_path / "w", *small, *taken)
    mine, theirs = (bundle / "segment" for bundle in (tmp_path / "w", tiny_chain))
    assert (mine / "model.onnx").read_bytes() == (theirs / "model.onnx").read_bytes()
    card, origin = (json.loads((bundle / "card.json").read_text()) for bundle in (mine, theirs))
    assert card["taken_from"] == str(tiny_chain)
    assert card["figures"] == origin["figures"]
    assert card["decisions"] == origin["decisions"] | {"margin": 0.1}
    assert (tmp_path / "w" / "localize").exists() is not bool(alone)
    called(capsys, "report", tmp_path / "w")
    assert f"taken from {tiny_chain}" in (tmp_path / "w" / "report.html").read_text(encoding="utf-8")
    only = ["--stage", "classify"] if alone else []
    called(capsys, "run", unmasked, "--out", tmp_path / "out", "--weights", tmp_path / "w", *only)
    assert len(rows_of(tmp_path / "out")) == 18


@pytest.mark.parametrize(
    ("setting", "says"),
    [(["--config", "tb"], "segment.weights=tb"), (["--set", "segment.weights=none-such"], "none-such")],
)
def test_films_without_masks_and_lungs_say_what_to_do(unmasked, tmp_path, setting, says):
    done = pipeline("train", "--data", unmasked, "--out", tmp_path / "w", *setting, check=2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
