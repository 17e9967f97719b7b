"""Classification networks by name. Every one has a layer "pool", whose input is its feature map, and a
dense layer "logits"; inputs are (N, size, size, channels) float32 in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.encoder_weights import mobilenetv2, resolve

if TYPE_CHECKING:
    import keras as K


def mobilenetv2_classifier(
    size: int,
    channels: int,
    classes: int,
    *,
    alpha: float = 0.35,
    dropout: float = 0.2,
    head_l2: float = 0.0,
    pool: str = "all",
    encoder_weights: str | None = None,
    cut: str | None = None,
    nearby: Path | None = None,
) -> K.Model:
    """MobileNetV2 (Sandler et al. 2018), global average pooling, one dense layer, softmax.

    Args:
        size: side of the square input, in pixels.
        channels: what the encoder sees: 1 (grey) or 2 (grey and lung mask).
        classes: number of outputs.
        alpha: width of the network.
        dropout: share of features dropped before the dense layer in training.
        head_l2: penalty on the squared weights of the dense layer.
        pool: "all" averages the features over the crop; "lungs" over the lungs, so that neither what lies beside them
            nor how much of the crop they fill has a say, and the maps stay inside them. The input then has the lung
            mask as its second channel, whether the encoder sees it or not. "zones" averages over each of the six lung
            zones on its own (thirds of the crop's height, its two sides): where a lung looks dense says as much as how.
        encoder_weights: see `models.encoder_weights.resolve`.
        cut: name of the encoder's layer to stop at, such as "block_12_add" (stride 16); None takes it whole (stride
            32).
        nearby: folder beside which ImageNet weights may lie.
    """
    from models.backend import keras

    k = keras()
    encoder = mobilenetv2(resolve(encoder_weights, alpha, nearby), alpha, size)
    if cut is not None:
        encoder = k.Model(encoder.input, encoder.get_layer(cut).output)
    encoder.name = "encoder"
    film = k.Input((size, size, max(channels, 1 if pool == "all" else 2)), name="crop")
    grey, *lungs = k.ops.split(film, film.shape[-1], axis=-1)
    if channels == 1:
        rgb = k.layers.Concatenate(name="to_rgb")([grey, grey, grey])
    else:  # starts as the grey channel three times; what the mask adds is learned
        adapt = k.layers.Conv2D(3, 1, use_bias=False, name="to_rgb")
        rgb = adapt(film)
        kernel = np.zeros((1, 1, channels, 3), np.float32)
        kernel[0, 0, 0] = 1.0
        adapt.set_weights([kernel])
    features = encoder(k.layers.Rescaling(2.0, -1.0, name="to_encoder_range")(rgb))
    if pool != "all":
        features = _over_lungs(features, lungs[0], pool)
    pooled = k.layers.GlobalAveragePooling2D(name="pool")(features)
    # Channels of one scale, so that one learning rate and one penalty fit all. Its moments are set by
    # models.probe.solve_head and then stay; until then it changes nothing.
    scaled = k.layers.BatchNormalization(center=False, scale=False, trainable=False, name="standardize")(pooled)
    head = k.layers.Dense(classes, kernel_regularizer=k.regularizers.L2(head_l2), name="logits")
    logits = head(k.layers.Dropout(dropout, name="dropout")(scaled))
    return k.Model(film, k.layers.Softmax(name="probabilities")(logits), name="mobilenetv2_classifier")


def _over_lungs(features: K.KerasTensor, lungs: K.KerasTensor, pool: str) -> K.KerasTensor:
    """Features (N, h, w, C) weighted so that their plain average is that over the lungs, or over each zone in turn.

    With "zones" the result is (N, h, w, 6 C): every zone has channels of its own, zero elsewhere. Grad-CAM on it
    has its closed form, as on any map that is averaged and then goes through one dense layer.
    """
    from models.backend import keras

    k = keras()
    height, width, channels = features.shape[1:]
    share = k.layers.AveragePooling2D(lungs.shape[1] // height, name="lung_share")(lungs)
    if pool == "zones":
        share = share * lung_zones(height, width)
    weight = share / (k.ops.mean(share, axis=(1, 2), keepdims=True) + 1e-3)  # mean 1 over the crop
    if pool == "lungs":
        return k.layers.Multiply(name="lung_features")([features, weight])
    by_zone = k.ops.expand_dims(features, 3) * k.ops.expand_dims(weight, 4)
    return k.layers.Reshape((height, width, 6 * channels), name="zone_features")(by_zone)


def lung_zones(height: int, width: int) -> np.ndarray:
    """Which of the six zones each place of a crop belongs to, (1, height, width, 6) float32, one of the six 1.

    Upper, middle and lower third on the left of the picture (the patient's right), then on its right.
    """
    row = 3 * np.arange(height) // height
    side = 2 * np.arange(width) // width
    return np.eye(6, dtype=np.float32)[row[:, None] + 3 * side[None, :]][None]


NETWORKS: dict[str, Callable[..., K.Model]] = {"mobilenetv2": mobilenetv2_classifier}


def build_classifier(network: str, size: int, channels: int, classes: int, **settings: object) -> K.Model:
    """The network registered under a name.

    Raises:
        ValueError: no such network; names those that exist.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(sorted(NETWORKS))}. Received: {network!r}")
    return NETWORKS[network](size, channels, classes, **settings)
