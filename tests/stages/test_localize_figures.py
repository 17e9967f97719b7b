"""Fitting and evaluation of localization on made films, where the right answer is known."""

from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest

from cxr_pipeline.configs.schema import Config
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.stages.localize import Localize, choose
from cxr_pipeline.stages.localize_figures import films_with_lesions, fit_constant_guess, lesions_of
from tests.stages.fake_chain import (
    DECISIONS,
    FakeClassify,
    FakeSegment,
    chained,
    localize,
)

# --- fitting -------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    """Writes films, manifest and boxes: rows of (id, label, split, patient, boxes relative to the film, source)."""

    def write(rows, size=(240, 200)):
        (tmp_path / "images").mkdir(exist_ok=True)
        grey = np.random.default_rng(0).integers(40, 200, size).astype(np.uint8)
        films, boxes = ["image,label,patient,source,split"], ["image,finding,x,y,w,h"]
        for name, label, split, patient, lesions, source in rows:
            cv2.imwrite(str(tmp_path / f"images/{name}.png"), grey)
            films.append(f"images/{name}.png,{label},{patient},{source},{split}")
            for x, y, w, h in lesions:
                boxes.append(f"images/{name}.png,x,{x * size[1]},{y * size[0]},{w * size[1]},{h * size[0]}")
        (tmp_path / "manifest.csv").write_text("\n".join(films) + "\n")
        (tmp_path / "boxes.csv").write_text("\n".join(boxes) + "\n")
        return read_manifest(tmp_path / "manifest.csv")

    return write


def boxed_spot(record_of, threshold):
    """The box, relative to the film, that a stage with this threshold finds."""
    record = localize(threshold=threshold).run([record_of()])[0]
    x, y, w, h = record.regions[0].box
    height, width = record.radiograph.size
    return x / width, y / height, w / width, h / height


def planted(x, y, label="TB", spread=0.05):
    return label, {"TB": [(x, y, spread, 1.0)]}


def test_fit_finds_the_planted_threshold_and_counts_only_labelled_films_of_val(dataset, tmp_path):
    places = {f"v{i}": (x, y) for i, (x, y) in enumerate([(0.3, 0.3), (0.7, 0.4), (0.3, 0.6), (0.7, 0.7)])}
    # predicted normal, all of them: the fit judges the labelled class's map all the same
    plan = {name: planted(x, y, "NORM") for name, (x, y) in places.items()}
    plan |= {name: planted(0.3, 0.3) for name in ("t0", "n0", "plain")}
    rows = []
    for name, (x, y) in places.items():
        lesion = boxed_spot(lambda x=x, y=y: chained([(x, y, 0.05, 1.0)], size=(240, 200)), 0.3)
        rows.append((name, "TB", "val", name, [lesion], "a"))
    rows += [
        ("t0", "TB", "train", "t0", [(0.2, 0.2, 0.2, 0.2)], "a"),
        ("n0", "NORM", "val", "n0", [(0.6, 0.6, 0.1, 0.1)], "a"),
        ("plain", "TB", "val", "plain", [], "a"),
    ]
    config = Config(localize={"thresholds": [0.1, 0.3, 0.5, 0.7], "min_areas": [0.0, 0.001, 0.9]})
    classify = FakeClassify(plan)
    out = tmp_path / "localize"
    assert Localize.train(dataset(rows), config, out, [FakeSegment(), classify]) == out
    assert classify.calls == 4  # the chain runs once a film
    card = json.loads((out / "card.json").read_text())
    floor = card["decisions"].pop("floor")  # all four maps have the same height, 1
    assert floor == pytest.approx(1.0, abs=0.05)
    assert card["decisions"] == DECISIONS | {"threshold": 0.3, "min_area": 0.001}
    assert card["training"]["n"] == 4
    assert card["training"]["chain"] == {"segment": "fake-segment", "classify": "fake-classify"}
    assert card["training"]["split_hash"]
    tried = list(csv.DictReader((out / "fit.csv").open()))
    assert len(tried) == 12
    best = next(row for row in tried if float(row["threshold"]) == 0.3 and float(row["min_area"]) == 0.001)
    assert float(best["iou"]) == pytest.approx(1.0, abs=0.02)
    assert float(best["iou50_rate"]) == 1.0
    stage = Localize.load(out)
    assert stage.threshold == 0.3
    assert stage.fingerprint == Localize.load(out, runtime="keras").fingerprint
    guess = card["training"]["constant_guess"]
    assert guess["n"] == 1
    assert guess["point"] == pytest.approx([0.3, 0.3], abs=0.02)
    assert guess["box"] == pytest.approx([0.2, 0.2, 0.2, 0.2], abs=0.001)


def test_films_and_boxes_of_other_diseases_are_left_out_where_the_config_says_what_the_classes_are(dataset):
    data = dataset(
        [
            ("mine", "TB", "val", "a", [(0.1, 0.1, 0.2, 0.2), (0.6, 0.6, 0.2, 0.2)], "s"),
            ("unnamed", "TB", "val", "b", [(0.3, 0.3, 0.2, 0.2)], "s"),
            ("other", "", "val", "c", [(0.5, 0.5, 0.2, 0.2)], "s"),
        ]
    )
    data.boxes["finding"] = ["Tuberculosis/Active", "Mass", "Lesion", "Mass"]
    rows = {row["image"][7:-4]: row for row in data.table.to_dict("records")}

    def judged(stage):
        return {
            name: len(lesions_of(data, rows[name], stage)[1])
            for name in rows
            if rows[name]["image"] in set(films_with_lesions(data, stage).table["image"])
        }

    assert judged(localize()) == {"mine": 2, "unnamed": 1, "other": 1}
    assert judged(localize(class_of={"TB": ["Tuberculosis"]})) == {"mine": 1, "unnamed": 1}


def test_choice_takes_the_largest_area_that_costs_next_to_nothing():
    table = [
        {"threshold": 0.3, "min_area": 0.0, "iou": 0.300},
        {"threshold": 0.5, "min_area": 0.0, "iou": 0.400},
        {"threshold": 0.5, "min_area": 0.01, "iou": 0.397},
        {"threshold": 0.5, "min_area": 0.02, "iou": 0.390},
        {"threshold": 0.7, "min_area": 0.04, "iou": 0.399},
    ]
    assert choose(table) == (0.5, 0.01)


def test_without_val_boxes_the_configs_values_stand(dataset, tmp_path):
    data = dataset([("a", "TB", "val", "a", [], "s"), ("b", "NORM", "train", "b", [], "s")])
    config = Config(localize={"threshold": 0.45, "min_area": 0.015})
    Localize.train(data, config, tmp_path / "out", [FakeSegment(), FakeClassify({})])
    stage = Localize.load(tmp_path / "out")
    assert (stage.threshold, stage.min_area) == (0.45, 0.015)
    assert "not fitted" in stage.card["training"]["fitted"]
    assert stage.card["training"]["constant_guess"] is None


def test_constant_guess_is_what_most_films_share(dataset):
    rows = [(f"a{i}", "TB", "train", f"a{i}", [(0.2 + 0.005 * i, 0.2, 0.2, 0.2)], "s") for i in range(6)]
    rows += [(f"b{i}", "TB", "train", f"b{i}", [(0.6, 0.7, 0.2, 0.1)], "s") for i in range(3)]
    guess = fit_constant_guess(dataset(rows))
    assert guess["n"] == 9
    x, y = guess["point"]
    assert 0.225 <= x <= 0.4
    assert 0.2 <= y <= 0.4
    assert all(Box(*guess["box"]).iou(Box(*row[4][0])) >= 0.5 for row in rows[:6])


# --- evaluation ----------------------------------------------------------------------------------------------------


def test_evaluation_on_a_made_case(dataset, tmp_path):
    size = (240, 200)
    right = boxed_spot(lambda: chained([(0.3, 0.3, 0.05, 1.0)], size=size), 0.5)
    left = boxed_spot(lambda: chained([(0.7, 0.6, 0.05, 1.0)], size=size), 0.5)
    away = (0.65, 0.7, 0.1, 0.1)
    rows = [
        ("exact", "TB", "test", "p1", [right], "tbx"),  # hit, IoU 1
        ("wrong", "TB", "test", "p2", [away], "tbx"),  # looks at the other lung
        ("unsure", "TB", "test", "p3", [left], "tbx"),  # right place, but predicted normal
        ("refused", "TB", "test", "p4", [right], "tbx"),  # refused: a miss
        ("other", "NTB", "test", "p5", [left], "nih"),  # judged on its own class's map
        ("normal", "NORM", "test", "p6", [], "tbx"),
        ("unboxed", "TB", "test", "p7", [], "tbx"),
    ]
    data = dataset(rows, size)
    plan = {
        "exact": planted(0.3, 0.3),
        "wrong": planted(0.3, 0.3),
        "unsure": planted(0.7, 0.6, "NORM"),
        "refused": planted(0.3, 0.3),
        "other": ("NTB", {"NTB": [(0.7, 0.6, 0.05, 1.0)], "TB": [(0.3, 0.3, 0.05, 1.0)]}),
    }
    guess = {"point": [right[0] + right[2] / 2, right[1] + right[3] / 2], "box": list(right), "n": 1}
    stage = Localize({"decisions": DECISIONS, "training": {"constant_guess": guess}})
    out = tmp_path / "out"
    out.mkdir()
    figures = stage.evaluate(data, out, [FakeSegment(refuse={"refused"}), FakeClassify(plan)])
    assert figures["judged_labels"] == ["TB"]
    for name, value, n in [
        ("hit_rate", 0.5, 4),
        ("hit_rate_predicted", 0.5, 2),
        ("iou", 0.5, 4),
        ("iou50_rate", 0.5, 4),
    ]:
        assert figures[name].value == pytest.approx(value, abs=0.01), name
        assert figures[name].n == n, name
        assert figures[name].low <= figures[name].value <= figures[name].high, name
    # by score (0.8, 0.8, 0.1) right, wrong, right; of four lesions two are found: (1/1 + 2/3) / 4
    assert figures["ap50"].value == pytest.approx(5 / 12)
    for name in ("cam_in_lungs", "cam_in_lungs_ungated"):
        assert 0.9 < figures[name].value <= 1
        assert figures[name].n == 3
    constant = figures["constant_guess"]
    assert (constant["hit_rate"].value, constant["iou50_rate"].value, constant["hit_rate"].n) == (0.5, 0.5, 4)
    assert constant["iou"].value == pytest.approx(0.5, abs=0.01)
    assert figures["by_source"]["nih"]["hit_rate"].value == 1
    assert figures["by_source"]["tbx"]["hit_rate"].value == 0.5
    assert figures["by_label"]["NTB"]["iou"].value == pytest.approx(1, abs=0.02)
    assert [row["status"] for row in figures["films"]] == ["ok", "ok", "ok", "refused", "ok"]
    assert {"image", "patient", "source", "label", "hit", "iou"} <= set(figures["films"][0])
    for name in ("worst.png", "random.png"):
        top = cv2.imread(str(out / name))[:26]
        for colour in ((80, 220, 80), (60, 60, 255)):  # the legend
            assert (top == colour).all(axis=2).any(), name


def test_evaluation_without_boxes_says_so_instead_of_failing(dataset, tmp_path):
    data = dataset([("a", "TB", "test", "a", [], "s")])
    figures = localize().evaluate(data, tmp_path, [FakeSegment(), FakeClassify({})])
    assert figures["films"] == []
    assert figures["hit_rate"].n == 0
    assert np.isnan(figures["hit_rate"].value)
