"""`pipeline train` and `pipeline evaluate` as a person or a program calls them."""

from __future__ import annotations

import re

import pytest

from tests.pipeline.test_cli_run import call


def test_training_without_internet_is_explained(tmp_path, films, monkeypatch, capsys):
    import cxr_pipeline.train.training
    from cxr_pipeline.models.backbones.encoder_weights import EncoderWeightsError

    def offline(*_, **__):
        raise EncoderWeightsError("no internet, no weights")

    monkeypatch.setattr(cxr_pipeline.train.training, "train", offline)
    assert call("train", "--data", films, "--out", tmp_path / "w") == 2
    assert capsys.readouterr().err == "Error: no internet, no weights\n"


def test_a_file_that_ends_too_soon_is_an_error_and_no_stop(tmp_path, films, monkeypatch, capsys):
    """click takes an EOFError for a person who closed the input."""
    import cxr_pipeline.train.training

    def damaged(*_, **__):
        raise EOFError("marshal data too short")

    monkeypatch.setattr(cxr_pipeline.train.training, "train", damaged)
    assert call("train", "--data", films, "--out", tmp_path / "w") == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("Error: unexpected EOFError: marshal data too short.")
    assert "Stopped" not in said


def test_train_gets_what_was_asked(tmp_path, films, monkeypatch, capsys):
    import cxr_pipeline.train.training

    asked = []
    monkeypatch.setattr(
        cxr_pipeline.train.training, "train", lambda *arguments, overwrite: asked.append((*arguments, overwrite))
    )
    out = tmp_path / "w"
    assert (
        call(
            "train",
            "--data",
            films,
            "--out",
            out,
            "--stage",
            "classify",
            "--set",
            "seed=5",
            "--set",
            "segment.fit.epochs=2",
        )
        == 0
    )
    ((data, config, where, stage, overwrite),) = asked
    assert (data, where, stage, overwrite) == (films, out, "classify", False)
    assert (config.seed, config.segment.fit.epochs, config.name) == (5, 2, "tb")
    assert f"--weights {out}" in capsys.readouterr().out


def test_calibrate_says_what_to_do_with_a_finished_folder(tmp_path, films, monkeypatch, capsys):
    import cxr_pipeline.train.calibration

    fitted = {"threshold": 0.2, "threshold_ci95": [0.1, 0.3], "films": {"n": 120}, "figures": {}}
    monkeypatch.setattr(cxr_pipeline.train.calibration, "calibrate", lambda *_, **__: fitted)
    assert call("calibrate", "--data", films, "--out", tmp_path / "ours.yaml") == 0
    assert f"pipeline screen DIR --site {tmp_path / 'ours.yaml'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("split", "asked_split"), [([], "test"), (["--split", "all"], None), (["--split", "val"], "val")]
)
def test_evaluate_gets_what_was_asked(tmp_path, films, monkeypatch, capsys, split, asked_split):
    import cxr_pipeline.train.evaluation

    asked = []

    def judge(*arguments, **options):
        asked.append((arguments, options))
        return {
            "dice": {"value": 0.951, "ci95": [0.94, 0.96], "n": 12},
            "iou": {"value": None, "ci95": [None, None], "n": 0},
        }

    monkeypatch.setattr(cxr_pipeline.train.evaluation, "evaluate", judge)
    assert (
        call("evaluate", "--stage", "segment", "--data", films, "--out", tmp_path / "e", "--source", "x", *split) == 0
    )
    options = {"split": asked_split, "source": "x", "weights": "tb", "runtime": "onnx", "site": None, "refuse": True}
    assert asked == [(("segment", films, tmp_path / "e"), options)]
    printed = capsys.readouterr().out
    assert re.search(r"dice +0\.951 +0\.940 to 0\.960 +n 12", printed)
    assert str(tmp_path / "e" / "metrics.json") in printed


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--split", "val"], "no film has split 'val'. Splits there (test: 1); sources there: here. "),
        (["--split", "all", "--source", "x"], "no film has source 'x'. "),
        (["--source", "x"], "no film has split 'test' and source 'x'. "),
    ],
)
def test_no_film_to_evaluate_names_what_was_asked(tmp_path, films, weights, capsys, asked, message):
    (films / "manifest.csv").write_text("image,label,source,split\nf0.png,TB,here,test\n")
    call_options = ["--stage", "segment", "--data", films, "--out", tmp_path / "e", "--weights", weights]
    assert call("evaluate", *call_options, *asked) == 2
    assert message in capsys.readouterr().err
