"""The contract that every network passes: build, train a step, save and reload, export, Grad-CAM."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cxr_pipeline.models.backend import keras

k = keras()

from cxr_pipeline.models import unet  # noqa: E402
from cxr_pipeline.models.backbones import classifiers  # noqa: E402
from cxr_pipeline.models.backbones.encoder_weights import EncoderWeightsError, application, resolve  # noqa: E402
from cxr_pipeline.models.export import save_bundle, serving_model  # noqa: E402
from cxr_pipeline.models.gradcam import gradient_maps, has_linear_head  # noqa: E402
from cxr_pipeline.models.store import KERAS_FILE, SERVING_FILE, WeightsError, load_keras, open_network  # noqa: E402
from cxr_pipeline.models.training.fit import set_batchnorm_momentum  # noqa: E402
from cxr_pipeline.models.training.losses import DiceCrossEntropy, DiceScore  # noqa: E402


def jolt(model):
    """Settle BatchNorm on some input: with random weights and its first moments, signals die on the way."""
    set_batchnorm_momentum(model, 0.0)
    draw = np.random.default_rng(5)
    model(draw.random((8, *model.input.shape[1:])).astype(np.float32) ** 2, training=True)
    return model


class NetworkContract:
    """Subclasses say how to build the network, its input and its target."""

    size, channels = 64, 1

    def build(self):
        raise NotImplementedError

    def target(self, n):
        raise NotImplementedError

    def loss(self):
        return "categorical_crossentropy"

    def batch(self, n=3):
        return np.random.default_rng(1).random((n, self.size, self.size, self.channels)).astype(np.float32)

    @pytest.fixture(scope="class")
    def model(self):
        k.utils.set_random_seed(1)
        return jolt(self.build())

    @pytest.fixture(scope="class")
    def bundle(self, model, tmp_path_factory):
        folder = tmp_path_factory.mktemp("bundle")
        save_bundle(model, folder)
        return folder

    def test_takes_zero_to_one_and_answers_probabilities(self, model):
        answer = np.asarray(model(self.batch()))
        assert answer.dtype == np.float32
        assert answer.min() >= 0
        assert answer.max() <= 1

    def test_input_moves_the_output(self, model):
        one, two = np.asarray(model(self.batch())), np.asarray(model(self.batch() * 0.3))
        assert np.abs(one - two).max() > 1e-4

    def test_learns_from_a_step(self):
        model = self.build()
        model.compile("adam", loss=self.loss(), run_eagerly=True)
        before = model.get_weights()
        loss = model.train_on_batch(self.batch(), self.target(3))
        assert np.isfinite(loss)
        assert any(np.abs(a - b).max() > 0 for a, b in zip(before, model.get_weights(), strict=True))

    @pytest.mark.parametrize("runtime", ["onnx", "openvino"])
    def test_serving_and_keras_agree(self, bundle, runtime):
        if runtime == "openvino":
            pytest.importorskip("openvino")
        batch = self.batch()
        served, native = (open_network(bundle, name)(batch) for name in (runtime, "keras"))
        assert set(served) == set(native)
        for name, value in native.items():
            np.testing.assert_allclose(served[name], value, atol=1e-4, rtol=1e-4)

    def test_the_saved_file_reloads_without_custom_objects(self, model, bundle):
        again = load_keras(bundle / KERAS_FILE)
        for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    def test_batch_equals_single(self, bundle):
        batch = self.batch(4)
        network = open_network(bundle)
        whole = network(batch)
        for name, value in whole.items():
            single = np.concatenate([network(batch[i : i + 1])[name] for i in range(4)])
            np.testing.assert_allclose(single, value, atol=1e-5)

    def test_files_are_stored_small(self, model, bundle):
        whole = 4 * model.count_params()
        assert (bundle / SERVING_FILE).stat().st_size < 0.8 * whole + 300_000


class ClassifierContract(NetworkContract):
    linear_head = True

    def target(self, n):
        return np.eye(3, dtype=np.float32)[np.arange(n) % 3]

    def test_exported_maps_are_gradient_grad_cam(self, model, bundle):
        """Against a gradient tape, on the weights that the bundle holds."""
        assert has_linear_head(model) == self.linear_head
        batch = self.batch()
        expected = gradient_maps(load_keras(bundle / KERAS_FILE), batch)
        exported = open_network(bundle)(batch)["maps"]
        assert exported.shape == expected.shape
        assert expected.max() > 0
        np.testing.assert_allclose(exported, expected, atol=1e-4 * expected.max(), rtol=1e-3)

    def test_logits_and_probabilities_belong_together(self, model):
        batch = self.batch()
        logits = np.asarray(serving_model(model)(batch)["logits"])
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(np.asarray(model(batch)), expected, atol=1e-5)


class TestUnet(NetworkContract):
    def build(self):
        return unet.build_unet(64, decoder_filters=(16, 16, 8, 8, 4))

    def target(self, n):
        return (self.batch(n) > 0.5).astype(np.float32)

    def loss(self):
        return DiceCrossEntropy()

    def test_output_has_the_size_of_the_input(self, model):
        assert model.output.shape[1:] == (64, 64, 1)

    def test_size_must_halve_five_times(self):
        with pytest.raises(ValueError, match=r"multiple of 32.*100"):
            unet.build_unet(100)


class TestMobileNetV2(ClassifierContract):
    def build(self):
        return classifiers.build_classifier("mobilenetv2", 64, 1, 3, alpha=0.35)


class TestMobileNetV2WithMaskChannel(ClassifierContract):
    channels = 2

    def build(self):
        return classifiers.build_classifier("mobilenetv2", 64, 2, 3, alpha=0.35)


class TestMobileNetV2Cut(ClassifierContract):
    def build(self):
        return classifiers.build_classifier("mobilenetv2", 64, 1, 3, alpha=0.5, cut="block_12_add")


class TestMobileNetV2PooledOverLungs(ClassifierContract):
    channels = 2
    pool = "lungs"

    def build(self):
        return classifiers.build_classifier(
            "mobilenetv2", self.size, 1, 3, alpha=0.35, cut="block_13_expand_relu", pool=self.pool
        )

    def batch(self, n=3):
        batch = super().batch(n)
        batch[..., 1] = batch[..., 1] > 0.5
        return batch

    def test_what_lies_beyond_the_lungs_has_no_weight(self, model):
        batch = self.batch()
        batch[:, :, self.size // 2 :, 1] = 0
        maps = np.asarray(serving_model(model)(batch)["maps"])
        half = maps.shape[2] // 2
        assert not maps[:, :, half:].any()
        assert maps[:, :, :half].any()


class TestMobileNetV2PooledOverZones(TestMobileNetV2PooledOverLungs):
    size = 96  # six places a side, so that thirds are whole
    pool = "zones"


class TestEfficientNetB0(ClassifierContract):
    linear_head = False

    def build(self):
        return classifiers.build_classifier("efficientnetb0", self.size, 1, 3)


class TestDenseNet121(ClassifierContract):
    def build(self):
        return classifiers.build_classifier("densenet121", self.size, 1, 3)


class TestSequentialCnn(ClassifierContract):
    linear_head = False

    def build(self):
        return classifiers.build_classifier("sequential_cnn", self.size, 1, 3)


class TestSequentialCnnPooledOverLungs(TestMobileNetV2PooledOverLungs):
    linear_head = False
    size = 96

    def build(self):
        return classifiers.build_classifier("sequential_cnn", self.size, 1, 3, pool="lungs")


class TestChexpertCnn(ClassifierContract):
    linear_head = False

    def build(self):
        return classifiers.build_classifier("chexpert_cnn", self.size, 1, 3, multi_label=True)

    def target(self, n):
        return (np.random.default_rng(2).random((n, 3)) > 0.5).astype(np.float32)

    def loss(self):
        return "binary_crossentropy"

    def test_logits_and_probabilities_belong_together(self, model):
        logits = np.asarray(serving_model(model)(self.batch())["logits"])
        np.testing.assert_allclose(np.asarray(model(self.batch())), 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.parametrize("side", [4, 14, 18])
def test_zones_share_the_crop_out(side):
    zones = classifiers.lung_zones(side, side)[0]
    assert zones.sum(axis=-1).min() == zones.sum(axis=-1).max() == 1
    assert zones[0, 0].tolist() == [1, 0, 0, 0, 0, 0]  # the patient's right upper zone
    assert zones[-1, -1].tolist() == [0, 0, 0, 0, 0, 1]  # the left lower one
    areas = zones.sum(axis=(0, 1))
    assert areas.min() > 0
    np.testing.assert_array_equal(areas[:3], areas[3:])


def test_compiled_models_reopen_in_a_fresh_process(tmp_path):
    """No import of ours but the loader has run there: the losses that a compiled model names must be found."""
    paths = []
    for contract in (TestUnet(), TestMobileNetV2PooledOverZones()):
        model = contract.build()
        model.compile("adam", loss=contract.loss(), jit_compile=False)
        paths.append(str(tmp_path / f"{model.name}.keras"))
        model.save(paths[-1])
    code = f"from pathlib import Path; from models.weights import load_keras; [load_keras(Path(p)) for p in {paths!r}]"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_unknown_network_is_named():
    with pytest.raises(ValueError, match=r"mobilenetv2.*Received: 'resnet'"):
        classifiers.build_classifier("resnet", 64, 1, 3)


def test_encoder_weights_are_looked_for_nearby_first(tmp_path):
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "mobilenetv2_0.35_imagenet_notop.weights.h5"
    file.touch()
    assert resolve("imagenet", "MobileNetV2", 0.35, tmp_path) == str(file)
    assert resolve("imagenet", "MobileNetV2", 1.0, tmp_path) == "imagenet"
    assert resolve("imagenet", "DenseNet121", None, tmp_path) == "imagenet"
    assert resolve(None, "MobileNetV2", 0.35) is None
    with pytest.raises(EncoderWeightsError, match=r"none\.h5.*Set segment\.encoder_weights or classify\."):
        resolve("none.h5", "MobileNetV2", 0.35)


def test_without_internet_the_settings_to_change_are_named(monkeypatch):
    def offline(**_):
        raise OSError("URL fetch failure")

    monkeypatch.setattr(k.applications, "MobileNetV2", offline)
    said = r"could not be downloaded \(URL.*set segment\.encoder_weights or classify\.encoder_weights to its path.*null"
    with pytest.raises(EncoderWeightsError, match=said):
        application("MobileNetV2", "imagenet", 64, 0.35)


def test_encoder_weights_load_into_both_networks(tmp_path):
    """A file saved from one MobileNetV2 arrives, layer by layer, in the UNet's and the classifier's encoder."""
    k.utils.set_random_seed(9)
    source = k.applications.MobileNetV2(weights=None, include_top=False, alpha=1.0, input_shape=(64, 64, 3))
    file = tmp_path / "encoder.weights.h5"
    source.save_weights(file)
    wanted = source.get_layer("block_6_expand").get_weights()[0]
    for model in (
        unet.build_unet(64, encoder_weights=str(file), decoder_filters=(8, 8, 8, 8, 4)),
        classifiers.build_classifier("mobilenetv2", 64, 1, 2, alpha=1.0, encoder_weights=str(file)),
    ):
        (encoder,) = [layer for layer in model.layers if isinstance(layer, k.Model)]
        np.testing.assert_array_equal(encoder.get_layer("block_6_expand").get_weights()[0], wanted)


@pytest.mark.parametrize(
    ("truth", "guess", "expected"),
    [  # (1, 2, 2, 1) each
        ([1, 1, 0, 0], [0.9, 0.8, 0.1, 0.2], 1.0),
        ([1, 1, 0, 0], [0.1, 0.1, 0.9, 0.9], 0.0),
        ([1, 1, 0, 0], [0.9, 0.1, 0.1, 0.1], 2 / 3),
        ([0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1], 1.0),  # empty in both
        ([0, 0, 0, 0], [0.9, 0.1, 0.1, 0.1], 0.0),
    ],
)
def test_dice_score(truth, guess, expected):
    shape = (1, 2, 2, 1)
    metric = DiceScore()
    metric.update_state(np.reshape(truth, shape).astype("float32"), np.reshape(guess, shape).astype("float32"))
    assert float(metric.result()) == pytest.approx(expected)


def test_dice_cross_entropy_prefers_the_truth():
    truth = np.zeros((2, 8, 8, 1), np.float32)
    truth[:, 2:5, 2:5] = 1
    loss = DiceCrossEntropy()
    perfect, half, wrong = (float(loss(truth, g)) for g in (truth, np.full_like(truth, 0.5), 1 - truth))
    assert perfect < 0.01
    assert perfect < half < wrong


def test_a_missing_or_damaged_serving_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="missing"):
        open_network(tmp_path)
    (tmp_path / SERVING_FILE).write_bytes(b"no graph")
    with pytest.raises(WeightsError, match=r"model\.onnx cannot be loaded"):
        open_network(tmp_path)
    with pytest.raises(WeightsError, match="'tpu'"):
        open_network(tmp_path, "tpu")
