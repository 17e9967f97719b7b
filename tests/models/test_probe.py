"""The solved last layer is the optimum, and a second call takes the features that the first one kept."""

from __future__ import annotations

import os

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cxr_pipeline.models.backend import keras

k = keras()

from cxr_pipeline.data.batches import Batches  # noqa: E402
from cxr_pipeline.models.classifier import build_classifier  # noqa: E402
from cxr_pipeline.models.training.features import FeatureCache  # noqa: E402
from cxr_pipeline.models.training.probe import Lesions, solve_head  # noqa: E402

CLASSES = 3


def make_model():
    k.utils.set_random_seed(2)
    return build_classifier("mobilenetv2", 64, 1, CLASSES, alpha=0.35, cut="block_3_expand_relu")


def make_batches(prior=0.0, weights=None):
    draw = np.random.default_rng(4)
    labels = np.arange(48) % CLASSES
    images = np.clip(60 * labels[:, None, None] + draw.normal(60, 60, (48, 64, 64)), 0, 255).astype(np.uint8)
    priors = np.zeros((48, CLASSES), np.float32)
    priors[:, 0] = prior
    return Batches(
        images,
        images > 99,
        np.eye(CLASSES, dtype=np.float32)[labels],
        lambda image, mask: image[..., None] / np.float32(255),
        batch_size=12,
        weights=weights,
        beside={"prior": priors},
    )


def answers(model, batches):
    return np.concatenate([np.asarray(model(batches[i][0]["crop"])) for i in range(len(batches))])


def solve(model, batches, folder, l2=0.01, **more):
    return solve_head(model, batches, FeatureCache(folder), passes=1, l2=l2, label_smoothing=0.0, **more)


def test_it_is_the_logistic_regression_on_the_pooled_features(tmp_path):
    model, batches = make_model(), make_batches()
    loss = solve(model, batches, tmp_path, l2=0.01)
    pooled = k.Model(model.input, model.get_layer("standardize").output)
    x, labels = answers(pooled, batches), np.arange(48) % CLASSES
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
    peer = LogisticRegression(C=1 / (2 * 0.01 * 48), max_iter=5000, tol=1e-8).fit(x, labels)
    np.testing.assert_allclose(answers(model, batches), peer.predict_proba(x), atol=2e-3)
    ours = -np.log(answers(model, batches)[np.arange(48), labels]).mean()
    assert loss == pytest.approx(ours, abs=1e-3)


def test_several_labels_are_solved_as_they_are_trained(tmp_path):
    """The solved head is where the training's own loss, penalty and all, has no slope."""
    from cxr_pipeline.models.training.losses import KnownLabelsCrossEntropy

    k.utils.set_random_seed(2)
    model = build_classifier(
        "mobilenetv2",
        64,
        1,
        CLASSES,
        alpha=0.35,
        cut="block_3_expand_relu",
        head_l2=0.01,
        multi_label=True,
        dropout=0.0,
    )
    batches = make_batches()
    weights = np.array([[0.3, 0.7], [0.5, 0.5], [0.6, 0.4]], np.float32)
    reached = solve(model, batches, tmp_path, l2=0.01, several=weights)
    loss = KnownLabelsCrossEntropy(weights.tolist())
    head = model.get_layer("logits")

    def total():
        values = [float(loss(batches[i][1], model(batches[i][0]["crop"]))) for i in range(len(batches))]
        return np.mean(values), np.mean(values) + sum(map(float, model.losses))

    entropy, best = total()
    assert reached == pytest.approx(entropy, abs=1e-3)
    kernel, bias = head.get_weights()
    draw = np.random.default_rng(0)
    for scale in (0.9, 1.1):
        head.set_weights([kernel * scale, bias])
        assert total()[1] > best - 1e-5
    for _ in range(3):
        head.set_weights([kernel + draw.normal(0, 0.02, kernel.shape), bias])
        assert total()[1] > best - 1e-5


def test_what_the_prior_says_is_not_learned(tmp_path):
    """With the odds of class 0 given beforehand as far too high, the layer learns them lower, and the other way."""
    high, low = make_model(), make_model()
    solve(high, make_batches(prior=2.0), tmp_path / "high")
    solve(low, make_batches(prior=-2.0), tmp_path / "low")
    batches = make_batches()
    assert answers(high, batches)[:, 0].mean() < answers(low, batches)[:, 0].mean() - 0.1


def test_films_without_weight_have_no_say(tmp_path):
    weights = np.where(np.arange(48) % CLASSES == 2, 0, 1).astype(np.float32)
    model = make_model()
    solve(model, make_batches(weights=weights), tmp_path)
    assert (answers(model, make_batches()).argmax(1) != 2).all()


def test_started_again_it_takes_the_finished_passes(tmp_path):
    one, two, seen = make_model(), make_model(), []
    solve(one, make_batches(), tmp_path)
    solve(two, make_batches(), tmp_path, on_batch=lambda *done: seen.append(done))
    assert not seen
    np.testing.assert_array_equal(one.get_layer("logits").get_weights()[0], two.get_layer("logits").get_weights()[0])


@pytest.mark.parametrize(
    ("change", "made_again"),
    [
        ({}, False),
        ({"prior": 1.5}, False),
        ({"weights": np.linspace(0.5, 1.5, 48).astype(np.float32)}, False),
        ({"brighter": True}, True),
    ],
)
def test_trainings_share_features_of_the_same_films_whatever_else_differs(tmp_path, change, made_again):
    solve(make_model(), make_batches(), tmp_path)
    seen = []
    brighter = change.pop("brighter", False)
    batches = make_batches(**change)
    if brighter:
        batches.images = batches.images.copy()
        batches.images[7, 0, 0] ^= 1
    alone, shared = make_model(), make_model()
    loss = solve(shared, batches, tmp_path, l2=0.1, on_batch=lambda *done: seen.append(done))
    assert bool(seen) is made_again
    assert loss == solve(alone, batches, tmp_path / "alone", l2=0.1)
    for one, two in zip(alone.get_weights(), shared.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_another_encoder_or_another_look_at_the_films_makes_features_anew(tmp_path):
    solve(make_model(), make_batches(), tmp_path)
    other, seen = make_model(), []
    encoder = other.get_layer("encoder")
    encoder.set_weights([weight + 0.01 for weight in encoder.get_weights()])
    solve(other, make_batches(), tmp_path, on_batch=lambda *done: seen.append(done))
    assert len(seen) == 4
    solve_head(
        make_model(),
        make_batches(),
        FeatureCache(tmp_path, "other lungs"),
        passes=1,
        l2=0.01,
        label_smoothing=0.0,
        on_batch=lambda *done: seen.append(done),
    )
    assert len(seen) == 8


@pytest.mark.parametrize("damage", [lambda content: content[:-200], lambda content: b"", lambda content: b"x" * 99])
def test_damaged_features_are_made_again(tmp_path, damage):
    one, two, seen = make_model(), make_model(), []
    solve(one, make_batches(), tmp_path)
    (kept,) = tmp_path.glob("features-*.npz")
    kept.write_bytes(damage(kept.read_bytes()))
    left = tmp_path / f".{kept.name}.0123abcd.part"  # of a training that was killed
    left.touch()
    os.utime(left, (0, 0))
    solve(two, make_batches(), tmp_path, on_batch=lambda *done: seen.append(done))
    assert seen
    assert not left.exists()
    np.testing.assert_array_equal(one.get_layer("logits").get_weights()[0], two.get_layer("logits").get_weights()[0])


def test_where_lesions_lie_moves_the_weights_of_these_zones(tmp_path):
    """Zones whose features tell a lesion from none get weights that do; unknown ones and weight 0 change nothing."""
    draw = np.random.default_rng(8)
    lungs = np.ones((48, 96, 96), np.uint8)
    images = draw.normal(100, 20, (48, 96, 96))
    sick = np.arange(48) % 2 == 0
    images[sick, :32, :48] += draw.normal(0, 60, (24, 32, 48))  # a rough right upper zone
    images = np.clip(images, 0, 255).astype(np.uint8)
    targets = np.eye(3, dtype=np.float32)[np.zeros(48, int)]  # all of one class: films alone teach nothing

    def solved(zones, weight, name):
        k.utils.set_random_seed(2)
        model = build_classifier("mobilenetv2", 96, 1, 3, cut="block_3_expand_relu", pool="zones")
        batches = Batches(
            images,
            lungs,
            targets,
            lambda i, m: np.stack([i / np.float32(255), m.astype(np.float32)], -1),
            batch_size=12,
            beside={"prior": np.zeros((48, 3), np.float32)},
        )
        solve(model, batches, tmp_path / name, lesions=Lesions(zones, 0, 2, weight))
        scores = np.concatenate([np.asarray(model(batches[i][0]["crop"])) for i in range(4)])
        return np.log(scores[:, 0] / scores[:, 2])

    zones = np.full((48, 6), np.nan, np.float32)
    unknown = solved(zones, 1.0, "unknown")
    zones[:, 0] = sick
    informed = solved(zones, 1.0, "told")
    np.testing.assert_allclose(solved(zones, 0.0, "weightless"), unknown, atol=1e-3)
    assert informed[sick].min() > informed[~sick].max()
