"""Where the weights of encoders come from, and what is said where they are not there."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.models.backend import keras

k = keras()

from cxr_pipeline.models import unet  # noqa: E402
from cxr_pipeline.models.backbones.encoder_weights import EncoderWeightsError, application, require_weights, resolve  # noqa: E402
from cxr_pipeline.models.classifier import build_classifier  # noqa: E402


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


def weights_file(tmp_path, alpha):
    source = k.applications.MobileNetV2(weights=None, include_top=False, alpha=alpha, input_shape=(64, 64, 3))
    source.save_weights(tmp_path / "encoder.weights.h5")
    return str(tmp_path / "encoder.weights.h5")


def test_weights_of_another_width_are_found_out_before_they_are_loaded(tmp_path):
    file = weights_file(tmp_path, 0.5)
    require_weights(file, "MobileNetV2", 0.5)
    with pytest.raises(EncoderWeightsError, match=r"does not hold weights of MobileNetV2 1\.3 .*\(3, 3, 3, 40\)"):
        require_weights(file, "MobileNetV2", 1.3)
    with pytest.raises(EncoderWeightsError, match=r"does not hold weights of DenseNet121"):
        require_weights(file, "DenseNet121")
    (tmp_path / "text.weights.h5").write_text("<html>not found</html>")
    with pytest.raises(EncoderWeightsError, match="it is no HDF5 file"):
        require_weights(str(tmp_path / "text.weights.h5"), "MobileNetV2", 0.5)
    with pytest.raises(EncoderWeightsError, match=r"widths 0\.35, 0\.5.*Received: 0\.4"):
        require_weights("imagenet", "MobileNetV2", 0.4)


def test_a_way_to_the_internet_is_looked_for_only_where_it_is_needed(tmp_path, monkeypatch):
    asked = []

    def offline(request, timeout):
        asked.append(request.full_url)
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    require_weights(None, "MobileNetV2", 0.35)
    assert asked == []
    with pytest.raises(EncoderWeightsError, match=r"downloaded \(Network is unreachable\).*mobilenetv2_0\.35"):
        require_weights("imagenet", "MobileNetV2", 0.35)
    assert len(asked) == 1
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5").touch()
    require_weights("imagenet", "MobileNetV2", 0.35)
    assert len(asked) == 1


def test_without_internet_the_settings_to_change_are_named(monkeypatch):
    def offline(**_):
        raise OSError("URL fetch failure")

    monkeypatch.setattr(k.applications, "MobileNetV2", offline)
    text = r"could not be downloaded \(URL.*set segment\.encoder_weights or classify\.encoder_weights to its path.*null"
    text += r".*segment\.weights=tb"
    with pytest.raises(EncoderWeightsError, match=text):
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
        unet.build_unet(64, encoder_weights=str(file), skips="projected", decoder_filters=(8, 8, 8, 8)),
        build_classifier("mobilenetv2", 64, 1, 2, alpha=1.0, encoder_weights=str(file)),
    ):
        (encoder,) = [layer for layer in model.layers if isinstance(layer, k.Model)]
        np.testing.assert_array_equal(encoder.get_layer("block_6_expand").get_weights()[0], wanted)
