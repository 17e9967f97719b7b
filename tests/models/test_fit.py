"""A training that is cut off and started again ends like an undisturbed one."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from models.backend import keras

k = keras()

from data.batches import Batches  # noqa: E402
from models.fit import Phase, TrainingError, average_with_start, fit, set_batchnorm_momentum  # noqa: E402


def make_model():
    k.utils.set_random_seed(3)
    entry = k.Input((16, 16, 1))
    x = k.layers.Conv2D(4, 3, name="encoder")(entry)
    x = k.layers.BatchNormalization()(x)
    x = k.layers.Dropout(0.3)(k.layers.GlobalAveragePooling2D()(k.layers.ReLU()(x)))
    return k.Model(entry, k.layers.Dense(2, activation="softmax")(x))


def make_batches(seed, shuffle):
    draw = np.random.default_rng(seed)
    level = draw.integers(40, 215, (20, 1, 1))
    images = np.clip(level + draw.integers(-30, 30, (20, 16, 16)), 0, 255).astype(np.uint8)
    targets = np.eye(2, dtype=np.float32)[(images.mean((1, 2)) > 127).astype(int)]
    return Batches(
        images, images, targets, lambda i, m: i[..., None] / np.float32(255), batch_size=4, shuffle=shuffle, seed=1
    )


def freeze(frozen):
    def prepare(model):
        model.get_layer("encoder").trainable = not frozen

    return prepare


PHASES = [
    Phase("head", 2, 1e-2, prepare=freeze(True)),
    Phase("fine", 3, 1e-2, ema=0.9, prepare=freeze(False)),
]


def run(out, stop_at=None, settings="a", start=None, phases=PHASES):
    seen = []

    def on_batch(phase, epoch, batch, batches):
        seen.append((phase, epoch, batch))
        if (phase, epoch, batch) == stop_at:
            raise KeyboardInterrupt

    model = make_model()
    history = fit(
        model,
        phases,
        make_batches(0, True),
        make_batches(1, False),
        out,
        loss="categorical_crossentropy",
        metrics=lambda: [k.metrics.CategoricalAccuracy(name="accuracy")],
        monitor="val_loss",
        mode="min",
        settings=settings,
        start=start and (lambda: start(model)),
        on_batch=on_batch,
    )
    return model, history, seen


@pytest.mark.parametrize("stop_at", [("head", 0, 2), ("head", 1, 3), ("fine", 0, 1), ("fine", 2, 4)])
def test_interrupted_training_ends_like_an_undisturbed_one(tmp_path, stop_at):
    whole, history, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=stop_at)
    again, resumed, _ = run(tmp_path / "cut")
    assert [row["epoch"] for row in resumed] == [1, 2, 3, 4, 5]
    assert [row["phase"] for row in resumed] == [row["phase"] for row in history]
    for one, two in zip(history, resumed, strict=True):
        assert {n: v for n, v in one.items() if n != "phase"} == pytest.approx(
            {n: v for n, v in two.items() if n != "phase"}, abs=1e-5
        )
    for one, two in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    with (tmp_path / "cut" / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5


def test_a_start_is_made_once_and_counts_as_the_first_epoch(tmp_path):
    calls = []

    def start(model):
        calls.append(1)
        model.set_weights([w + 0.25 if w.ndim == 2 else w for w in model.get_weights()])
        return {"loss": 0.5}

    whole, history, _ = run(tmp_path / "whole", start=start)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=("head", 0, 2), start=start)
    again, resumed, _ = run(tmp_path / "cut", start=start)
    assert len(calls) == 2
    assert [row["phase"] for row in resumed] == ["start", "head", "head", "fine", "fine", "fine"]
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in history], abs=1e-5)
    for one, two in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_finished_training_does_nothing_more(tmp_path):
    first, history, _ = run(tmp_path)
    second, again, seen = run(tmp_path)
    assert seen == []
    assert again == history
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_best_epoch_is_restored(tmp_path):
    model, history, _ = run(tmp_path)
    model.compile(loss="categorical_crossentropy")
    best = min(row["val_loss"] for row in history if row["phase"] == "fine")
    assert model.evaluate(make_batches(1, False), verbose=0, return_dict=True)["loss"] == pytest.approx(best, abs=1e-5)


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=("fine", 1, 1))
    with pytest.raises(TrainingError, match="another --out"):
        run(tmp_path, settings="b")


def test_training_changes_weights_and_learns(tmp_path):
    model, history, _ = run(tmp_path)
    before = make_model().get_weights()
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, model.get_weights(), strict=True))
    assert history[-1]["loss"] < history[0]["loss"]


def test_batchnorm_momentum_is_set_in_nested_models():
    inner = k.Sequential([k.Input((4,)), k.layers.BatchNormalization(momentum=0.999, name="bn")])
    outer = k.Sequential([k.Input((4,)), inner])
    set_batchnorm_momentum(outer, 0.9)
    assert inner.get_layer("bn").momentum == 0.9


def test_averaging_with_the_start_lies_between_both(tmp_path):
    kept = {}

    def start(model):
        kept["start"] = [weight * 0 + 0.25 for weight in model.get_weights()]
        model.set_weights(kept["start"])
        return {"loss": 1.0}

    model, _, _ = run(tmp_path, start=start)
    tuned = model.get_weights()
    average_with_start(model, tmp_path, 0.25)
    for before, after, now in zip(kept["start"], tuned, model.get_weights(), strict=True):
        np.testing.assert_allclose(now, 0.25 * before + 0.75 * after, rtol=1e-5)


def test_a_start_alone_may_be_called_again(tmp_path):
    def start(model):
        model.set_weights([weight + 0.25 for weight in model.get_weights()])
        return {"loss": 1.0}

    first, history, _ = run(tmp_path, start=start, phases=[])
    again, resumed, _ = run(tmp_path, start=start, phases=[])
    assert [row["phase"] for row in history] == [row["phase"] for row in resumed] == ["start"]
    for one, two in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
