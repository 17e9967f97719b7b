"""Evidence: how places of the lungs are joined to a film's answer, its maps, and the head fitted in two steps."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.models.backbones.chest import CHANNELS, load_features
from cxr_pipeline.models.backbones.encoder_weights import EncoderWeightsError
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.classifier import build_classifier
from cxr_pipeline.models.export import save_bundle
from cxr_pipeline.models.gradcam import gradient_maps, has_linear_head, maps_layer
from cxr_pipeline.models.store import KERAS_FILE, load_keras, open_network
from cxr_pipeline.models.training.errors import TrainingError
from cxr_pipeline.models.training.two_steps import TwoSteps

SIZE = 64


@pytest.fixture(scope="module")
def model():
    keras().utils.set_random_seed(3)
    model = build_classifier("chest", SIZE, 1, 3, pool="evidence", encoder_weights="chest")
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=(len(CHANNELS), 3))
    kernel[:, 0], kernel[:, 1] = 1, -1  # so that one of the two has heat, whatever the evidence
    model.get_layer("logits").set_weights([kernel, draw.normal(size=3)])
    model.get_layer("standardize").set_weights([draw.normal(size=5), draw.uniform(0.5, 2, 5)])
    return model


@pytest.fixture(scope="module")
def films():
    draw = np.random.default_rng(1)
    lungs = np.zeros((3, SIZE, SIZE), np.float32)
    lungs[:, 8:56, 8:28] = lungs[:, 8:56, 36:56] = 1
    return np.stack([draw.random((3, SIZE, SIZE), np.float32) * (0.2 + 0.8 * lungs), lungs], axis=-1)


def test_the_head_is_linear_and_its_maps_are_grad_cam(model, films):
    assert has_linear_head(model)
    closed = keras().Model(model.input, maps_layer(model))(films).numpy()
    assert closed.shape == (3, SIZE // 16, SIZE // 16, 3)
    assert closed.max() > 0
    np.testing.assert_allclose(closed, gradient_maps(model, films), atol=1e-6)


def test_a_stored_network_can_be_stored_again(model, films, tmp_path):
    """As `pipeline export` does: its operations have names by then, which those of the maps must not take."""
    save_bundle(model, tmp_path)
    again = load_keras(tmp_path / KERAS_FILE)
    save_bundle(again, tmp_path / "again")
    answers = [open_network(folder)(films) for folder in (tmp_path, tmp_path / "again")]
    for name in ("logits", "maps"):
        np.testing.assert_allclose(answers[0][name], answers[1][name], atol=1e-5)


def test_there_is_no_heat_beside_the_lungs(model, films):
    left = films.copy()
    left[..., 32:, 1] = 0
    maps = keras().Model(model.input, maps_layer(model))(left).numpy()
    assert maps[:, :, 2:].max() == 0
    assert maps[:, :, :2].max() > 0


def test_what_lies_beside_the_lungs_has_no_say_in_the_pooling(films):
    """It is the log of the mean of exp(evidence) over the lungs, plus their mean context."""
    k = keras()
    model = build_classifier("chest", SIZE, 1, 3, pool="evidence", encoder_weights="chest")
    parts = k.Model(
        model.input,
        [model.get_layer(name).output for name in ("evidence_and_context", "lung_share", "pool")],
    )
    both, share, pooled = (np.asarray(part) for part in parts(films))
    weight = share / share.sum(axis=(1, 2), keepdims=True)
    evidence, context = both[..., :5], both[..., 5:]
    expected = np.log((np.exp(evidence) * weight).sum(axis=(1, 2))) + (context * weight).sum(axis=(1, 2))
    np.testing.assert_allclose(pooled, expected, atol=0.01)


def test_features_of_another_file_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(EncoderWeightsError, match="lacks encoder/0"):
        load_features(str(tmp_path / "other.npz"))
    with pytest.raises(EncoderWeightsError, match="imagenet"):
        load_features("imagenet")


def hospitals(draw, shift=3.0, n=120):
    """Films of four hospitals with two classes each; one feature is shifted by hospital and tells no class."""
    classes = {"a": (0, 2), "b": (0, 2), "c": (1, 2), "d": (1, 2)}
    x, y, sources = [], [], []
    for place, (name, both) in enumerate(classes.items()):
        for label in both:
            films = draw.normal(size=(n, 4))
            films[:, 0] += 2.0 * (label == 0)  # evidence of class 0
            films[:, 1] += 2.0 * (label != 2)  # evidence of anything abnormal
            films[:, 3] += shift * place  # where the film is from
            x.append(films)
            y += [label] * n
            sources += [name] * n
    return np.concatenate(x), np.array(y), np.array(sources)


def test_two_steps_hold_at_a_hospital_left_out():
    x, y, sources = hospitals(np.random.default_rng(0))
    logits = TwoSteps(["TB", "NTB", "NORM"], "NORM", sources).left_out(x, y)
    assert np.isfinite(logits).all()
    recall = [(logits[y == c].argmax(axis=1) == c).mean() for c in range(3)]
    assert min(recall) > 0.7


def test_where_a_film_is_from_gets_little_weight():
    x, y, sources = hospitals(np.random.default_rng(1))
    kernel, _ = TwoSteps(["TB", "NTB", "NORM"], "NORM", sources).fit(x, y, sources)
    assert abs(kernel[3]).max() < 0.25 * abs(kernel[1]).max()
    assert kernel[0, 0] > kernel[0, 1]  # evidence of TB speaks for TB against the other kind
    assert (kernel[:, 2] == 0).all()  # the normal class is what the others are measured against


def test_a_source_that_alone_has_a_class_is_not_left_out():
    x, y, sources = hospitals(np.random.default_rng(2))
    kept = sources != "d"
    logits = TwoSteps(["TB", "NTB", "NORM"], "NORM", sources[kept]).left_out(x[kept], y[kept])
    assert np.isnan(logits[sources[kept] == "c"]).all()  # only c has class 1 now
    assert np.isfinite(logits[sources[kept] == "a"]).all()


def test_two_steps_need_films_for_both_questions():
    with pytest.raises(TrainingError, match="0 of 4 films are abnormal"):
        TwoSteps(["TB", "NORM"], "NORM", np.array(["a"] * 4)).fit(
            np.zeros((4, 2)), np.ones(4, int), np.array(["a"] * 4)
        )
