"""What a training is given: the manifest with splits, before any stage sees it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from cxr_pipeline.configs.schema import Config, load_config
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.store import write_card
from cxr_pipeline.models.training.errors import TrainingError
from cxr_pipeline.train import training
from cxr_pipeline.train.training import prepare_manifest


def manifest(folder, *rows):
    for row in rows:
        (folder / row.split(",")[0]).touch()
    (folder / "manifest.csv").write_text("\n".join(["image,label,patient,split", *rows]) + "\n")
    return folder / "manifest.csv"


def test_splits_are_made_only_where_there_are_none(tmp_path):
    rows = [f"{n}.png,{('TB', 'NORM')[n % 2]},p{n // 2}," for n in range(60)]
    table = prepare_manifest(manifest(tmp_path, *rows), Config())[0].table
    assert set(table["split"]) == {"train", "val", "test"}
    assert table.groupby("patient")["split"].nunique().max() == 1


def test_films_without_a_split_are_counted_aloud(tmp_path, caplog):
    rows = ["a.png,TB,1,train", "b.png,NORM,2,val", "c.png,TB,3,", "d.png,NORM,4,"]
    with caplog.at_level(logging.WARNING):
        table = prepare_manifest(manifest(tmp_path, *rows), Config())[0].table
    assert list(table["split"]) == ["train", "val", "", ""]
    assert "2 of 4 films have no split, and take no part" in caplog.text


def test_a_patient_in_two_splits_stops_the_training(tmp_path):
    path = manifest(tmp_path, "a.png,TB,1,train", "b.png,TB,1,test")
    with pytest.raises((TrainingError, ValueError), match="'?1'? .*in .*split"):
        prepare_manifest(path, Config())


def test_what_a_killed_training_left_half_written_goes_when_it_goes_on(tmp_path):
    weights, out = tmp_path / "weights" / "segment", tmp_path / "out"
    weights.mkdir(parents=True)
    write_card(weights, {"decisions": {}})
    left = out / "segment" / ".model.keras.0123abcd.part"
    left.parent.mkdir(parents=True)
    left.touch()
    config = load_config("tb", [f"segment.weights={weights.parent}"])
    training._train_stage("segment", read_manifest(manifest(tmp_path, "a.png,TB,1,train")), config, out, "", None)
    assert not left.exists()


CODE = """
import sys
from cxr_pipeline.cli.main import _call
code = _call(sys.argv[1:])
print(code, *sorted({"tensorflow", "keras", "torch"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["classify.encoder_weights=none.h5"], "the network chest cannot start from 'none.h5'"),
        (
            ["classify.network=mobilenetv2", "classify.encoder_weights=none.h5"],
            "no encoder weights at 'none.h5'",
        ),
        (["segment.encoder_weights=none.h5"], "no encoder weights at 'none.h5'"),
        (["classify.network=tests.models.no_such:build", "segment.weights=tb"], "cannot be imported"),
        (["classify.network_settings={dropuot: 1}", "segment.weights=tb"], "'dropuot'. Did you mean dropout?"),
        (["classes=[SICK, WELL]", "positive=SICK", "normal=WELL", "classify.assumed_mix=null"], "SICK"),
    ],
)
def test_what_cannot_be_trained_is_said_before_tensorflow_starts(samples, tmp_path, settings, says):
    more = [
        word
        for one in [*["segment.encoder_weights=null"] * ("segment" not in settings[0]), *settings]
        for word in ("--set", one)
    ]
    call = ["train", "--data", str(samples), "--config", "tb", "--out", str(tmp_path / "w"), *more]
    answer = subprocess.run([sys.executable, "-c", CODE, *call], capture_output=True, text=True, check=True)
    assert answer.stdout == "2\n"
    assert says in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "w").exists()
