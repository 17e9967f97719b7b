"""A training that is cut off and started again ends like an undisturbed one."""

from __future__ import annotations

import csv
import shutil
from typing import get_args

import numpy as np
import pytest

from cxr_pipeline.configs.fit import Fit
from cxr_pipeline.configs.schema import ClassifyConfig, SegmentConfig
from cxr_pipeline.models.backend import keras

k = keras()

from cxr_pipeline.data.batches import Batches  # noqa: E402
from cxr_pipeline.models.training.fit import Objective, Phase, Training, TrainingError, set_batchnorm_momentum  # noqa: E402
from cxr_pipeline.models.training.losses import classification_loss, segmentation_loss  # noqa: E402
from cxr_pipeline.models.training.optimizers import OPTIMIZERS, make_optimizer, plateau_rate, stalled  # noqa: E402


def make_model(penalty=0.0):
    k.utils.set_random_seed(3)
    entry = k.Input((16, 16, 1))
    x = k.layers.Conv2D(4, 3, name="encoder")(entry)
    x = k.layers.BatchNormalization()(x)
    x = k.layers.Dropout(0.3)(k.layers.GlobalAveragePooling2D()(k.layers.ReLU()(x)))
    return k.Model(entry, k.layers.Dense(2, activation="softmax", kernel_regularizer=k.regularizers.L2(penalty))(x))


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


def make_training(out, stop_at=None, settings="a", start=None, phases=PHASES, penalty=0.0, keep_start=False):
    seen = []

    def on_batch(phase, epoch, batch, batches):
        seen.append((phase, epoch, batch))
        if (phase, epoch, batch) == stop_at:
            raise KeyboardInterrupt

    model = make_model(penalty)
    metrics = lambda: [k.metrics.CategoricalAccuracy(name="accuracy")]  # noqa: E731
    training = Training(
        model,
        Objective("categorical_crossentropy", metrics, "val_loss", "min"),
        make_batches(0, True),
        make_batches(1, False),
        out,
        phases=phases,
        settings=settings,
        start=start and (lambda: start(model)),
        keep_start=keep_start,
        on_batch=on_batch,
    )
    return training, seen


def run(out, *args, **options):
    training, seen = make_training(out, *args, **options)
    return training.model, training.run(), seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed training: its model, its history and its folder; not to be changed."""
    out = tmp_path_factory.mktemp("whole")
    model, history, _ = run(out)
    return model, history, out


@pytest.mark.parametrize("stop_at", [("head", 0, 2), ("head", 1, 3), ("fine", 0, 1), ("fine", 2, 4)])
def test_interrupted_training_ends_like_an_undisturbed_one(tmp_path, stop_at, whole):
    undisturbed, history, _ = whole
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=stop_at)
    again, resumed, _ = run(tmp_path / "cut")
    assert [row["epoch"] for row in resumed] == [1, 2, 3, 4, 5]
    assert [row["phase"] for row in resumed] == [row["phase"] for row in history]
    for one, two in zip(history, resumed, strict=True):
        assert {n: v for n, v in one.items() if n != "phase"} == pytest.approx(
            {n: v for n, v in two.items() if n != "phase"}, abs=1e-5
        )
    for one, two in zip(undisturbed.get_weights(), again.get_weights(), strict=True):
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


def test_a_finished_training_does_nothing_more(tmp_path, whole):
    first, history, out = whole
    second, again, seen = run(shutil.copytree(out, tmp_path / "again"))
    assert seen == []
    assert again == history
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_best_epoch_is_restored(whole):
    trained, history, _ = whole
    model = make_model()
    model.set_weights(trained.get_weights())
    model.compile(loss="categorical_crossentropy")
    best = min(row["val_loss"] for row in history if row["phase"] == "fine")
    assert model.evaluate(make_batches(1, False), verbose=0, return_dict=True)["loss"] == pytest.approx(best, abs=1e-5)


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=("fine", 1, 1))
    with pytest.raises(TrainingError, match="another --out"):
        run(tmp_path, settings="b")


def test_what_a_start_keeps_belongs_to_its_settings(tmp_path):
    def killed(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, start=killed)
    with pytest.raises(TrainingError, match="another --out"):
        run(tmp_path, settings="b", start=lambda model: {"loss": 1.0})


def test_the_loss_of_the_history_is_without_the_penalty_on_weights(tmp_path):
    model, history, _ = run(tmp_path, penalty=1.0)
    model.compile(loss="categorical_crossentropy")
    judged = model.evaluate(make_batches(1, False), verbose=0, return_dict=True)["loss"]
    penalty = float(model.losses[0])
    assert penalty > 0.05
    best = min(row["val_loss"] for row in history if row["phase"] == "fine")
    assert judged == pytest.approx(best + penalty, abs=1e-5)


def test_training_changes_weights_and_learns(whole):
    model, history, _ = whole
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

    training, _ = make_training(tmp_path, start=start, keep_start=True)
    training.run()
    model = training.model
    tuned = model.get_weights()
    training.average_with_start(0.25)
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


def choices(section, field):
    return get_args(section.model_fields[field].annotation)


def rate_after(phase, steps):
    """The rate of a phase of 2 epochs of 10 steps once `steps` are done."""
    optimizer = make_optimizer(phase, 10)
    optimizer.build([k.Variable([1.0])])
    optimizer.iterations.assign(steps)
    return float(k.ops.convert_to_numpy(optimizer.learning_rate))


@pytest.mark.parametrize(
    ("schedule", "final", "expected"),
    [  # rates at the start, half way and at the end
        ("constant", None, [1e-2, 1e-2, 1e-2]),
        ("constant", 1e-3, [1e-2, 1e-2, 1e-2]),
        ("cosine", None, [1e-2, (1e-2 + 1e-4) / 2, 1e-4]),
        ("cosine", 2e-3, [1e-2, 6e-3, 2e-3]),
        ("exponential", None, [1e-2, 1e-3, 1e-4]),
        ("exponential", 1e-6, [1e-2, 1e-4, 1e-6]),
        ("plateau", 1e-3, [1e-2, 1e-2, 1e-2]),  # by epoch, see below
    ],
)
def test_the_rate_follows_the_schedule(schedule, final, expected):
    phase = Phase("fit", 2, 1e-2, schedule, final_learning_rate=final)
    assert [rate_after(phase, steps) for steps in (0, 10, 20)] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("figures", "mode", "expected"),
    [  # patience 2, floor 0.2
        ([], "min", 1.0),
        ([5, 4, 3, 2], "min", 1.0),
        ([5, 5], "min", 1.0),
        ([5, 5, 6], "min", 0.5),
        ([5, 5, 6, 4, 4], "min", 0.5),
        ([5, 5, 5, 5, 5], "min", 0.25),
        ([5] * 20, "min", 0.2),
        ([1, 2, 3], "max", 1.0),
        ([3, 2, 2.9], "max", 0.5),
        ([3, float("nan"), float("nan")], "max", 0.5),
        ([float("nan"), 3, 2, 1], "min", 1.0),
    ],
)
def test_a_plateau_halves_the_rate(figures, mode, expected):
    phase = Phase("fit", 9, 1.0, "plateau", final_learning_rate=0.2, plateau_patience=2)
    assert plateau_rate(phase, figures, mode) == expected


@pytest.mark.parametrize(
    ("figures", "mode", "expected"),
    [
        ([], "min", False),
        ([5, 5], "min", False),
        ([5, 5, 5], "min", True),
        ([5, 6, 4, 7], "min", False),
        ([5, 6, 4, 7, 4], "min", True),
        ([5, 6, 7], "max", False),
        ([7, 5, 6], "max", True),
    ],
)
def test_early_stopping_counts_epochs_without_improvement(figures, mode, expected):
    assert stalled(Phase("fit", 9, 1.0, early_stopping=2), figures, mode) is expected
    assert stalled(Phase("fit", 9, 1.0), figures, mode) is False


# A rate of this size makes val_loss go up and down: the rate falls and both phases end before their last epoch.
RESTLESS = [
    Phase("head", 9, 0.5, "plateau", plateau_patience=1, early_stopping=2, prepare=freeze(True)),
    Phase("fine", 9, 0.5, "plateau", plateau_patience=1, early_stopping=1, ema=0.5, prepare=freeze(False)),
]


@pytest.fixture(scope="module")
def restless(tmp_path_factory):
    return run(tmp_path_factory.mktemp("restless"), phases=RESTLESS)


def test_plateau_and_early_stopping_take_effect(restless):
    _, history, _ = restless
    for phase in RESTLESS:
        rows = [row for row in history if row["phase"] == phase.name]
        figures = [row["val_loss"] for row in rows]
        assert len(rows) < phase.epochs
        assert min(range(len(rows)), key=figures.__getitem__) == len(rows) - 1 - phase.early_stopping
        assert [row["learning_rate"] for row in rows] == pytest.approx(
            [plateau_rate(phase, figures[:done], "min") for done in range(len(rows))], rel=1e-6
        )
    assert min(row["learning_rate"] for row in history) < 0.5


@pytest.mark.parametrize("which", ["before the stop of head", "after the stop of head"])
def test_resumed_with_plateau_and_early_stopping_ends_like_an_undisturbed_one(tmp_path, restless, which):
    whole, history, seen = restless
    heads = [entry for entry in seen if entry[0] == "head"]
    stop_at = heads[-1] if which.startswith("before") else seen[len(heads)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=stop_at, phases=RESTLESS)
    again, resumed, _ = run(tmp_path, phases=RESTLESS)
    assert [row["phase"] for row in resumed] == [row["phase"] for row in history]
    assert [row["learning_rate"] for row in resumed] == [row["learning_rate"] for row in history]
    assert [row["val_loss"] for row in resumed] == pytest.approx([row["val_loss"] for row in history], rel=1e-4)
    for one, two in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_a_training_that_stopped_early_does_nothing_more(tmp_path):
    phases = [Phase("head", 9, 1e-9, early_stopping=1, schedule="constant", weight_decay=0, prepare=freeze(True))]
    _, history, _ = run(tmp_path, phases=phases)
    _, again, seen = run(tmp_path, phases=phases)
    assert seen == []
    assert again == history


def test_the_settings_and_what_they_name_agree():
    assert choices(Fit, "optimizer") == tuple(OPTIMIZERS)
    for schedule in choices(Fit, "schedule"):
        make_optimizer(Phase("fit", 1, 1e-3, schedule), 1)
    for name in choices(ClassifyConfig, "loss"):
        for multi_label in (False, True):
            assert classification_loss(name, multi_label, 0.1).get_config()["label_smoothing"] == 0.1
    for name in choices(SegmentConfig, "loss"):
        segmentation_loss(name)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0, 1e-2])
def test_weight_decay_reaches_every_optimizer(name, decay):
    weights = k.Variable(np.ones(4, np.float32))
    optimizer = make_optimizer(Phase("fit", 1, 0.1, "constant", optimizer=name, weight_decay=decay), 1)
    optimizer.apply([k.ops.zeros(4)], [weights])
    np.testing.assert_allclose(k.ops.convert_to_numpy(weights), 1 - 0.1 * decay, rtol=1e-6)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"adamw, adam, sgd, rmsprop.*'lion'"):
        make_optimizer(Phase("fit", 1, 1e-3, optimizer="lion"), 1)
    with pytest.raises(ValueError, match=r"constant, cosine, plateau, exponential.*'step'"):
        make_optimizer(Phase("fit", 1, 1e-3, "step"), 1)
    with pytest.raises(ValueError, match=r"cross_entropy, focal.*'hinge'"):
        classification_loss("hinge", False)
    with pytest.raises(ValueError, match=r"dice_cross_entropy, dice, cross_entropy, focal.*'hinge'"):
        segmentation_loss("hinge")


def test_losses_take_the_values_of_their_formulas():
    truth, guess = np.array([[1.0, 0.0]]), np.array([[0.8, 0.2]])
    losses = {
        (name, several): float(classification_loss(name, several)(truth, guess))
        for name in ("cross_entropy", "focal", "generalized_cross_entropy")
        for several in (False, True)
    }
    entropy = -np.log(0.8)
    assert losses == pytest.approx(
        {
            ("cross_entropy", False): entropy,
            ("cross_entropy", True): entropy,
            ("focal", False): 0.2**2 * entropy,
            ("focal", True): 0.2**2 * entropy,
            ("generalized_cross_entropy", False): (1 - 0.8**0.7) / 0.7,
            ("generalized_cross_entropy", True): (1 - 0.8**0.7) / 0.7,
        },
        rel=1e-4,
    )
    smooth = classification_loss("generalized_cross_entropy", False, 0.1)(truth, guess)
    assert float(smooth) == pytest.approx((0.95 * (1 - 0.8**0.7) + 0.05 * (1 - 0.2**0.7)) / 0.7, rel=1e-4)
    mask, found = np.ones((1, 2, 2, 1), np.float32), np.full((1, 2, 2, 1), 0.8, np.float32)
    dice = 1 - (2 * 3.2 + 1) / (4 + 3.2 + 1)
    expected = {
        "dice_cross_entropy": dice + entropy,
        "dice": dice,
        "cross_entropy": entropy,
        "focal": 0.2**2 * entropy,
    }
    assert {name: float(segmentation_loss(name)(mask, found)) for name in expected} == pytest.approx(expected, rel=1e-4)
