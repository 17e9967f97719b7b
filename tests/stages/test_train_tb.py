"""The training of what ships: films that taught the features are answered by twins that never saw their hospital."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.store import read_card, write_card
from cxr_pipeline.stages.classify_training import LEFT_OUT
from tests.stages.test_classify_training import SMALL

COLUMNS = ["image", "patient", "source", "label", "TB", "NTB", "NORM"]
FOLDER = Path(__file__).parent.parent.parent / "docs" / "experiments"


@pytest.fixture(scope="module")
def train_tb():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("train_tb")


@pytest.fixture
def two_hospitals(samples, tmp_path):
    """The samples as films of two sources, each with all classes in train."""
    table = pd.read_csv(samples, dtype=str, keep_default_na=False)
    table["source"] = np.where(table.groupby(["split", "label"]).cumcount() % 2, "a", "b")
    for column in ("image", "mask"):
        table[column] = [str(samples.parent / name) for name in table[column]]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


def test_a_twin_answers_the_films_of_its_hospital_alone(train_tb, two_hospitals, tmp_path, monkeypatch):
    config = load_config("tb", [*SMALL, f"cache={tmp_path / 'cache'}"])
    data = read_manifest(two_hospitals, classes=config.classes)
    training = train_tb.WithTwins(data, config, tmp_path, ())
    training.table = tmp_path / "left_out.csv"
    training.prepare()
    training.build()
    training.fine_tune()
    own = np.load(tmp_path / LEFT_OUT)
    sources = np.array([row["source"] for row in training.crops["train"].rows])

    # A twin with the same features gives the same answers.
    np.testing.assert_allclose(training._answers_of("a", config.classify.encoder_weights), own, atol=1e-5)

    class Twin:
        """Answers with how long the name of its features is."""

        def __init__(self, _data, config, out, _chain):
            self.features, self.out = config.classify.encoder_weights, out

        def prepare(self):
            assert self.cache == training.cache

        def build(self):
            assert self.out != training.out

        def start(self):
            np.save(self.out / LEFT_OUT, np.full_like(own, len(self.features)))

    training.twins = {"a": "without.npz"}
    monkeypatch.setattr(train_tb, "ClassifyTraining", Twin)
    training.calibrate(training.task.decisions()["offsets"])
    table = pd.read_csv(training.table)
    assert set(table["source"]) == set(sources)
    assert (table.loc[table["source"] == "a", list(config.classes)] == len("without.npz")).all(axis=None)
    np.testing.assert_allclose(table.loc[table["source"] == "b", list(config.classes)], own[sources == "b"], atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / LEFT_OUT), table[list(config.classes)], atol=1e-6)


def test_figures_of_films_left_out_are_counted_by_source(train_tb):
    decisions = {
        "classes": ["TB", "NTB", "NORM"],
        "positive": "TB",
        "normal": "NORM",
        "temperature": 2.0,
        "offsets": {"TB": 0.0, "NTB": 0.0, "NORM": 0.0},
        "threshold": 0.5,
    }
    sure = {"TB": (9.0, 0.0, 0.0), "NTB": (0.0, 9.0, 0.0), "NORM": (0.0, 0.0, 9.0)}
    rows = [
        (f"{source}{label}{n}", f"{source}{label}{n}", source, label, *sure["NORM" if n < wrong else label])
        for source, label, wrong in [("a", "TB", 10), ("a", "NORM", 0), ("b", "NTB", 20), ("b", "NORM", 0)]
        for n in range(40)
    ]
    rows.append(("lost", "lost", "a", "TB", np.nan, np.nan, np.nan))  # its source could not be left out
    rows += [(f"few{n}", f"few{n}", "c", "TB", *sure["TB"]) for n in range(5)]
    found = train_tb.figures_of(pd.DataFrame(rows, columns=COLUMNS), decisions)
    values = {source: {name: figure["value"] for name, figure in of.items()} for source, of in found.items()}
    assert values == {
        "a": {
            "auc_tb_against_norm": 0.875,
            "sensitivity": 0.75,
            "recall_TB": 0.75,
            "specificity_norm": 1.0,
            "recall_NORM": 1.0,
        },
        "b": {
            "auc_ntb_against_norm": 0.75,
            "specificity_ntb": 1.0,
            "recall_NTB": 0.5,
            "specificity_norm": 1.0,
            "recall_NORM": 1.0,
        },
        "c": {},
    }
    assert {figure["n"] for name, figure in found["a"].items() if name != "auc_tb_against_norm"} == {40}
    low, high = found["a"]["sensitivity"]["ci95"]
    assert 0.5 < low < 0.75 < high < 0.95
    assert json.loads(json.dumps(found)) == found


def test_the_training_is_the_usual_one_but_for_the_twins(train_tb, two_hospitals, tmp_path, monkeypatch):
    usual = train_tb.classify_training.ClassifyTraining
    decisions = {"classes": ["TB", "NTB", "NORM"], "positive": "TB", "normal": "NORM", "temperature": 1.0}
    decisions |= {"offsets": dict.fromkeys(decisions["classes"], 0.0), "threshold": 0.5}

    def train(data, config, out):
        training = train_tb.classify_training.ClassifyTraining
        assert issubclass(training, train_tb.WithTwins)
        assert training.twins == {"a": "without.npz"}
        pd.DataFrame([("x", "x", "a", "TB", 1.0, 0.0, 0.0)], columns=COLUMNS).to_csv(training.table, index=False)
        for stage in ("segment", "classify", "localize"):
            (out / stage).mkdir()
            (out / stage / "model.keras").touch()
            write_card(out / stage, {"stage": stage, "decisions": decisions, "figures": {"test": 1}, "training": {}})

    monkeypatch.setattr(train_tb, "train", train)
    with pytest.raises(CxrError, match=r"no film of train is of the source A\. Sources of .*: a, b"):
        train_tb.train_with_twins(two_hospitals, load_config("tb"), tmp_path / "out", {"A": "without.npz"})
    train_tb.train_with_twins(two_hospitals, load_config("tb"), tmp_path / "out", {"a": "without.npz"})
    card, regions = (read_card(tmp_path / "out" / stage) for stage in ("classify", "localize"))
    assert card["figures"] == {"test": 1, "left_out": {"by_source": {"a": {}}}}
    assert "Films of a are answered by a twin" in card["training"]["left_out"]
    assert card["licence"].startswith("MIT")
    assert regions["licence"].startswith("MIT")
    assert regions["figures"] == {"test": 1}
    assert train_tb.classify_training.ClassifyTraining is usual
    assert "twin" not in train_tb.told({})
    with pytest.raises(CxrError, match="holds a training already"):  # by other twins, perhaps
        train_tb.train_with_twins(two_hospitals, load_config("tb"), tmp_path / "out", {})
