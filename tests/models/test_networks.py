"""The contract that every network passes: build, train a step, save and reload, export, Grad-CAM."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cxr_pipeline.models.backend import keras

k = keras()

from cxr_pipeline.configs.networks import NETWORKS  # noqa: E402
from cxr_pipeline.models import unet  # noqa: E402
from cxr_pipeline.models.backbones import NetworkError, find_backbone  # noqa: E402
from cxr_pipeline.models.classifier import build_classifier  # noqa: E402
from cxr_pipeline.models.export import save_bundle  # noqa: E402
from cxr_pipeline.models.gradcam import gradient_maps, has_linear_head  # noqa: E402
from cxr_pipeline.models.heads import Averaged  # noqa: E402
from cxr_pipeline.models.pooling import lung_zones  # noqa: E402
from cxr_pipeline.models.serving import serving_model  # noqa: E402
from cxr_pipeline.models.store import (  # noqa: E402
    KERAS_FILE,
    SERVING_FILE,
    WeightsError,
    fingerprint,
    load_keras,
    open_network,
    write_card,
)
from cxr_pipeline.models.training.fit import set_batchnorm_momentum  # noqa: E402
from cxr_pipeline.models.training.losses import DiceCrossEntropy  # noqa: E402


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

    @pytest.fixture(scope="class")
    def native(self, bundle):
        """What Keras answers on the batch from the stored file."""
        return open_network(bundle, "keras")(self.batch())

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
    def test_serving_and_keras_agree(self, bundle, native, runtime):
        if runtime == "openvino":
            pytest.importorskip("openvino")
        served = open_network(bundle, runtime)(self.batch())
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

    def test_the_served_file_doubles_a_map_in_one_step(self, bundle):
        onnx = pytest.importorskip("onnx")
        steps = [node.op_type for node in onnx.load(bundle / SERVING_FILE).graph.node]
        assert steps.count("Resize") == 5
        assert "Tile" not in steps

    def test_the_served_file_lays_no_maps_beside_each_other_for_a_convolution(self, bundle):
        onnx = pytest.importorskip("onnx")
        nodes = onnx.load(bundle / SERVING_FILE).graph.node
        convolved = {node.input[0] for node in nodes if node.op_type == "Conv"}
        assert not [node.name for node in nodes if node.op_type == "Concat" and node.output[0] in convolved]
        assert [node.op_type for node in nodes].count("Split") == 4  # of kernels: a stage of the decoder each but one

    def test_size_must_halve_five_times(self):
        with pytest.raises(ValueError, match=r"multiple of 32.*100"):
            unet.build_unet(100)


class TestSmallUnet(NetworkContract):
    """As the lungs that ship: a narrow encoder, its narrow maps, an answer at half of the grid that is doubled."""

    def build(self):
        return unet.build_unet(64, alpha=0.35, skips="projected", decoder_filters=(16, 8, 8, 8), outputs=2)

    def target(self, n):
        return np.repeat(self.batch(n) > 0.5, 2, axis=-1).astype(np.float32)

    def loss(self):
        return DiceCrossEntropy()

    def test_output_has_the_size_of_the_input(self, model):
        assert model.output.shape[1:] == (64, 64, 2)

    def test_the_decoder_sees_narrow_maps(self, model):
        (network,) = [layer for layer in model.layers if isinstance(layer, k.Model)]
        joined = [layer for layer in network.layers if layer.name.endswith("_concat")]
        # block 12, 5, 2 and 0 of MobileNetV2 0.35 have 32, 16, 8 and 8 channels, before the decoder's own are added
        assert [layer.output.shape[-1] for layer in joined] == [112 + 32, 16 + 16, 8 + 8, 8 + 8]

    @pytest.mark.parametrize("filters", [(8, 8, 8), (8,) * 6])
    def test_a_decoder_has_four_or_five_steps(self, filters):
        with pytest.raises(ValueError, match=r"4 or 5 numbers.*8, 8"):
            unet.build_unet(64, decoder_filters=filters)


class TestRegistered(ClassifierContract):
    """Every backbone with a line in the registry, with its own defaults."""

    @pytest.fixture(scope="class", params=sorted(NETWORKS), autouse=True)
    def network(self, request):
        type(self).name = request.param
        type(self).linear_head = isinstance(find_backbone(request.param).head, Averaged)

    @pytest.fixture(scope="class")
    def model(self, network):
        k.utils.set_random_seed(1)
        return jolt(self.build())

    def build(self):
        return build_classifier(self.name, self.size, 1, 3)

    def test_its_settings_are_told_and_others_refused(self):
        backbone = find_backbone(self.name)
        build_classifier(self.name, self.size, 1, 3, **backbone.settings)
        with pytest.raises(NetworkError, match=r"no setting 'dropuot'\. Did you mean dropout\? It takes: .*dropout"):
            build_classifier(self.name, self.size, 1, 3, dropuot=0.1)

    def test_features_are_a_map_that_the_head_pools(self, model):
        assert len(model.get_layer("pool").input.shape) == 4
        assert model.get_layer("logits").output.shape[1:] == (3,)


class TestMobileNetV2WithMaskChannel(ClassifierContract):
    channels = 2

    def build(self):
        return build_classifier("mobilenetv2", 64, 2, 3, alpha=0.35, cut="block_3_expand_relu")


class TestMobileNetV2Cut(ClassifierContract):
    def build(self):
        return build_classifier("mobilenetv2", 64, 1, 3, alpha=0.5, cut="block_5_add")


class TestMobileNetV2PooledOverLungs(ClassifierContract):
    channels = 2
    pool = "lungs"

    def build(self):
        return build_classifier("mobilenetv2", self.size, 1, 3, alpha=0.35, cut="block_6_expand_relu", pool=self.pool)

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
    size = 48  # six places a side, so that thirds are whole
    pool = "zones"


class TestSequentialCnnPooledOverLungs(TestMobileNetV2PooledOverLungs):
    linear_head = False
    size = 96

    def build(self):
        return build_classifier("sequential_cnn", self.size, 1, 3, pool="lungs")


class TestChexpertCnn(ClassifierContract):
    linear_head = False

    def build(self):
        return build_classifier("chexpert_cnn", self.size, 1, 3, multi_label=True)

    def target(self, n):
        return (np.random.default_rng(2).random((n, 3)) > 0.5).astype(np.float32)

    def loss(self):
        return "binary_crossentropy"

    def test_logits_and_probabilities_belong_together(self, model):
        logits = np.asarray(serving_model(model)(self.batch())["logits"])
        np.testing.assert_allclose(np.asarray(model(self.batch())), 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.parametrize("side", [4, 14, 18])
def test_zones_share_the_crop_out(side):
    zones = lung_zones(side, side)[0]
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
    loads = f"[load_keras(Path(path)) for path in {paths!r}]"
    code = f"from pathlib import Path; from cxr_pipeline.models.store import load_keras; {loads}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_unknown_network_is_named():
    with pytest.raises(ValueError, match=r"mobilenetv2.*Received: 'resnet'"):
        build_classifier("resnet", 64, 1, 3)


def test_equal_networks_have_equal_fingerprints_whatever_their_files_are(tmp_path):
    cards = []
    for name in ("a", "b"):
        k.utils.set_random_seed(4)
        model = build_classifier("sequential_cnn", 64, 1, 3)
        for _ in range(name == "b"):  # names of layers and files differ
            build_classifier("sequential_cnn", 64, 1, 3)
        content = save_bundle(model, tmp_path / name)
        write_card(tmp_path / name, {"decisions": {"size": 64}, "content": content})
        cards.append(content)
    assert cards[0]["network"] == cards[1]["network"]
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    serving = tmp_path / "b" / SERVING_FILE
    serving.write_bytes(serving.read_bytes() + b"\x00")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")  # no longer the file that the card knows
    k.utils.set_random_seed(5)
    other = save_bundle(build_classifier("sequential_cnn", 64, 1, 3), tmp_path / "c")
    assert other["network"] != cards[0]["network"]


def test_a_missing_or_damaged_serving_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="missing"):
        open_network(tmp_path)
    (tmp_path / SERVING_FILE).write_bytes(b"no graph")
    with pytest.raises(WeightsError, match=r"model\.onnx cannot be loaded"):
        open_network(tmp_path)
    with pytest.raises(WeightsError, match="'tpu'"):
        open_network(tmp_path, "tpu")
