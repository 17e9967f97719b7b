"""A last layer that is fitted again, with other settings, sends no film through the encoder once more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.classifier import with_prior
from cxr_pipeline.models.training.errors import TrainingError
from cxr_pipeline.models.training.fit import judged
from cxr_pipeline.stages import classify_training
from cxr_pipeline.stages.classify import Classify
from cxr_pipeline.stages.classify_training import ClassifyTraining

SMALL = [
    "classify.network=mobilenetv2",
    "classify.alpha=0.35",
    "classify.cut=block_3_expand_relu",
    "classify.encoder_weights=null",
    "classify.size=64",
    "classify.lungs=none",
    "classify.pool=all",
    "classify.fit.epochs=0",
]


@pytest.fixture
def train(samples, tmp_path, monkeypatch):
    """Trains the last layer in a folder of that name; returns the training, its history, and how many films it saw.

    All that goes through the network is made by `encoder_input`.
    """
    seen = []
    real = classify_training.encoder_input
    monkeypatch.setattr(classify_training, "encoder_input", lambda *film, **how: seen.append(1) or real(*film, **how))

    def trained(name, *settings):
        seen.clear()
        config = load_config("tb", [*SMALL, f"cache={tmp_path / 'cache'}", *settings])
        (tmp_path / name).mkdir()
        training = ClassifyTraining(read_manifest(samples, classes=config.classes), config, tmp_path / name, ())
        training.prepare()
        training.build()
        return training, training.fine_tune(), len(seen)

    return trained


@pytest.mark.parametrize("head", ["solved", "two_steps"])
def test_each_film_passes_through_the_encoder_once_for_all_settings_of_the_last_layer(train, head):
    first, (row,), films = train("first", f"classify.head={head}", "classify.head_passes=2")
    passes = 2 if head == "solved" else 1
    assert films == passes * 12 + 3  # of train and val
    more = ["classify.head_l2=0.9", "classify.label_smoothing=0.2", "classify.balance=none"]
    _, (other,), films = train("second", f"classify.head={head}", "classify.head_passes=2", *more)
    assert films == 0
    assert other.keys() == row.keys()
    # What the kept features give is what the whole network gives.
    whole = with_prior(first.model, multi_label=False)
    whole.compile(loss=first.task.loss(), weighted_metrics=[first.task.metric()], jit_compile=False)
    for name, value in judged(whole, first.val).items():
        assert row[name] == pytest.approx(value, abs=1e-4)


def test_another_size_is_another_look_at_the_films(train):
    train("first", "classify.head_passes=1")
    assert train("second", "classify.head_passes=1", "classify.size=72")[2] == 12 + 3


def test_a_head_in_two_steps_that_nothing_could_calibrate_is_refused_before_it_begins(samples):
    config = load_config("tb", [*SMALL, "classify.fit.leave_out=[]"])
    data = read_manifest(samples, classes=config.classes)
    data.table["source"] = "one"
    with pytest.raises(TrainingError, match=r"classify.head is two_steps.*--set classify.head=solved"):
        Classify.require(data, config)
    Classify.require(data, load_config("tb", [*SMALL, "classify.head=solved"]))
    data.table["source"] = ["one", "two"] * (len(data) // 2)
    Classify.require(data, config)


def test_a_class_without_films_is_named_before_anything_is_trained(samples, caplog):
    config = load_config("tb", [*SMALL, "classify.head=solved", "classify.fit.leave_out=[jsrt]"])
    data = read_manifest(samples, classes=config.classes)
    data.table.loc[data.table["label"] == "NTB", "source"] = "jsrt"
    Classify.require(data, config)
    texts = [record.getMessage() for record in caplog.records]
    advice = r"(left out: jsrt). To train on them too: --set classify.fit.leave_out=[]"
    assert texts == [f"no film of split {split!r} is NTB {advice}" for split in ("train", "val")]


def test_films_without_lungs_are_named_as_what_is_lacking(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(classify_training, "crops_of", lambda *_: SimpleNamespace(rows=[]))
    config = load_config("tb", SMALL)
    with pytest.raises(TrainingError, match="lungs were found on none of the 12 films of split 'train'"):
        ClassifyTraining(read_manifest(samples), config, tmp_path, ()).prepare()
