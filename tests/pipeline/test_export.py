"""Exported networks answer like the Keras model, or are not left behind."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cxr_pipeline import export
from cxr_pipeline.cli import export as command
from cxr_pipeline.cli.main import _call
from cxr_pipeline.models.store import open_network, shipped
from cxr_pipeline.stages.segment import Segment

pytestmark = pytest.mark.skipif(not shipped(), reason="no weights are shipped")


def test_the_command_offers_what_there_is():
    assert tuple(export.FORMATS) == command.FORMATS


def test_what_another_program_must_set_for_the_same_answers_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "export", lambda *_: [])
    assert _call(["export", "--to", "openvino", "--out", str(tmp_path)]) == 0
    assert '"INFERENCE_PRECISION_HINT": "f32"' in capsys.readouterr().out
    assert _call(["export", "--to", "onnx", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def kept_networks(tmp_path_factory):
    """The Keras models are opened once for all formats, and the SavedModel that TFLite is made of is written once."""
    folder, write = tmp_path_factory.mktemp("written"), export._write_saved_model

    def copied(bundle, path):
        if not (folder / bundle.name).exists():
            write(bundle, folder / bundle.name)
        shutil.copytree(folder / bundle.name, path)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_keras", "open_network"):
            patch.setattr(export, name, cache(getattr(export, name)))
        patch.setattr(export, "_write_saved_model", copied)
        patch.setitem(export.FORMATS, "saved_model", replace(export.FORMATS["saved_model"], write=copied))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("to", export.FORMATS)
def test_the_written_networks_answer_like_the_keras_model(to, kept_networks, tmp_path, capsys):
    assert _call(["export", "--to", to, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"segment", "classify"}
    assert "segment: " in printed
    assert "logits" in printed
    assert "maps" in printed


def test_a_network_that_answers_otherwise_is_not_left_and_an_earlier_one_stays(tmp_path, monkeypatch, capsys):
    def spoiled(path):
        network = export.FORMATS["onnx"].open(path)
        return lambda batch: {name: value + 0.01 for name, value in network(batch).items()}

    bad = export.Format("{stage}.onnx", export.FORMATS["onnx"].write, spoiled)
    monkeypatch.setitem(export.FORMATS, "openvino", bad)
    (tmp_path / "segment.onnx").write_text("earlier")
    (tmp_path / ".segment.onnx.0123abcd.part").mkdir()  # of a killed process
    assert _call(["export", "--to", "openvino", "--out", str(tmp_path)]) == 2
    assert "segment.onnx does not answer like the Keras model: lungs differs by 0.01" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["segment.onnx"]
    assert (tmp_path / "segment.onnx").read_text() == "earlier"


def test_no_network_is_left_out_where_the_weights_refuse_the_synthetic_films(tmp_path, monkeypatch):
    def without_lungs(self, records):
        self.network(np.zeros((1, 256, 256, 1), np.float32))
        return [record.refuse("no_lungs") for record in records]

    monkeypatch.setattr(Segment, "run", without_lungs)
    monkeypatch.setattr(export, "open_network", lambda bundle, runtime: open_network(bundle))  # spares TensorFlow
    segment, classify = export.export("tb", "onnx", tmp_path)
    assert (segment.stage, classify.stage) == ("segment", "classify")
    assert set(classify.differences) == {"logits", "maps"}


def test_files_and_folders_of_an_earlier_export_are_replaced_and_the_named_one_comes_last(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(export.os, "replace", lambda a, b, inner=export.os.replace: (moved.append(b.name), inner(a, b)))
    for content in ("one", "two"):
        with export._aside(tmp_path / "a.xml") as folder:
            (folder / "a.xml").write_text(content)
            (folder / "a.bin").write_text(content)
            (folder / "more").mkdir()
            (folder / "more" / "x").write_text(content)
    assert moved[2] == moved[5] == "a.xml"
    assert (tmp_path / "more" / "x").read_text() == (tmp_path / "a.bin").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.xml", "more"]


def test_the_bound_is_a_share_of_the_values():
    batch = np.zeros((1, 2, 2, 1), np.float32)

    def network(values):
        return lambda _: {"logits": np.array(values, np.float32)}

    assert export._compared(network([1000.0]), network([1000.9]), batch, "a")["logits"] == pytest.approx(0.9, abs=1e-3)
