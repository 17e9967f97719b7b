"""Classification networks by name. Every one has a layer "pool", whose input is its feature map, and a dense layer
"logits" without activation; inputs are (N, size, size, channels) float32 in [0, 1], outputs (N, classes) probabilities:
of a softmax, or of a sigmoid each where films may have several labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr_pipeline.models.backbones.encoder_weights import application, resolve

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
    multi_label: bool = False,
) -> K.Model:
    """MobileNetV2 (Sandler et al. 2018), global average pooling, one dense layer.

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
        encoder_weights: see `models.backbones.encoder_weights.resolve`.
        cut: name of the encoder's layer to stop at, such as "block_12_add" (stride 16); None takes it whole (stride
            32).
        nearby: folder beside which ImageNet weights may lie.
        multi_label: a sigmoid for each class in place of a softmax over all.
    """
    film, rgb, lungs = _inputs(size, channels, pool)
    encoder = _encoder("MobileNetV2", size, encoder_weights, nearby, cut, alpha=alpha)
    features = encoder(_scaled(rgb, 2.0, -1.0))
    return _averaged(film, features, lungs, "mobilenetv2", classes, dropout, head_l2, pool, multi_label)


def densenet121(
    size: int,
    channels: int,
    classes: int,
    *,
    dropout: float = 0.0,
    head_l2: float = 0.0,
    pool: str = "all",
    encoder_weights: str | None = None,
    cut: str | None = None,
    nearby: Path | None = None,
    multi_label: bool = False,
    **_: object,
) -> K.Model:
    """DenseNet121 (Huang et al. 2017), global average pooling, one dense layer: CheXNet (Rajpurkar et al. 2017)."""
    from cxr_pipeline.models.backend import keras

    film, rgb, lungs = _inputs(size, channels, pool)
    encoder = _encoder("DenseNet121", size, encoder_weights, nearby, cut)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, that its weights expect
    scaled = keras().layers.Normalization(mean=mean, variance=[d * d for d in deviation], name="to_encoder_range")(rgb)
    return _averaged(film, encoder(scaled), lungs, "densenet121", classes, dropout, head_l2, pool, multi_label)


def efficientnetb0(
    size: int,
    channels: int,
    classes: int,
    *,
    dropout: float = 0.5,
    pool: str = "all",
    encoder_weights: str | None = None,
    cut: str | None = None,
    nearby: Path | None = None,
    multi_label: bool = False,
    **_: object,
) -> K.Model:
    """EfficientNetB0 (Tan and Le 2019), global average pooling, dropout, four dense layers."""
    film, rgb, lungs = _inputs(size, channels, pool)
    encoder = _encoder("EfficientNetB0", size, encoder_weights, nearby, cut)
    features = encoder(_scaled(rgb, 255.0, 0.0))  # it scales to its own range inside
    return _deep(film, features, lungs, "efficientnetb0", classes, (256, 128, 64), dropout, pool, multi_label)


def sequential_cnn(
    size: int,
    channels: int,
    classes: int,
    *,
    dropout: float = 0.5,
    pool: str = "all",
    multi_label: bool = False,
    **_: object,
) -> K.Model:
    """Four blocks of convolution and max-pooling on RGB, flattened, and two dense layers; made for 150x150."""
    from cxr_pipeline.models.backend import keras

    layers = keras().layers
    film, features, lungs = _inputs(size, channels, pool)
    for number, filters in enumerate((32, 64, 128, 128), start=1):
        features = layers.Conv2D(filters, 3, activation="relu", name=f"block{number}_conv")(features)
        features = layers.MaxPooling2D(name=f"block{number}_pool")(features)
    flatten = pool == "all"
    return _deep(film, features, lungs, "sequential_cnn", classes, (256,), dropout, pool, multi_label, flatten)


def chexpert_cnn(
    size: int,
    channels: int,
    classes: int,
    *,
    dropout: float = 0.2,
    pool: str = "all",
    multi_label: bool = True,
    **_: object,
) -> K.Model:
    """Five blocks of convolution, batch normalisation, max-pooling and dropout, 16 to 256 deep, on 512x512x1."""
    from cxr_pipeline.models.backend import keras

    k = keras()
    film, rgb, lungs = _inputs(size, channels, pool)
    features = rgb if channels > 1 else k.ops.split(film, film.shape[-1], axis=-1)[0]
    for number, filters in enumerate((16, 32, 64, 128, 256), start=1):
        features = k.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"block{number}_conv")(features)
        features = k.layers.BatchNormalization(name=f"block{number}_norm")(features)
        features = k.layers.ReLU(name=f"block{number}_relu")(features)
        features = k.layers.MaxPooling2D(name=f"block{number}_pool")(features)
        features = k.layers.SpatialDropout2D(dropout / 2, name=f"block{number}_dropout")(features)
    return _deep(film, features, lungs, "chexpert_cnn", classes, (128,), dropout, pool, multi_label)


def _inputs(size: int, channels: int, pool: str) -> tuple[K.KerasTensor, K.KerasTensor, K.KerasTensor | None]:
    """The input (grey, and the lungs where anything needs them), it as RGB in [0, 1], and the lungs alone."""
    from cxr_pipeline.models.backend import keras

    k = keras()
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
    return film, rgb, lungs[0] if lungs else None


def _scaled(rgb: K.KerasTensor, scale: float, offset: float) -> K.KerasTensor:
    from cxr_pipeline.models.backend import keras

    return keras().layers.Rescaling(scale, offset, name="to_encoder_range")(rgb)


def _encoder(
    name: str, size: int, weights: str | None, nearby: Path | None, cut: str | None, alpha: float | None = None
) -> K.Model:
    """A network of keras.applications without its top, up to the layer `cut`, as a layer named "encoder"."""
    from cxr_pipeline.models.backend import keras

    encoder = application(name, resolve(weights, name, alpha, nearby), size, alpha)
    if cut is not None:
        encoder = keras().Model(encoder.input, encoder.get_layer(cut).output)
    encoder.name = "encoder"
    return encoder


def _averaged(
    film: K.KerasTensor,
    features: K.KerasTensor,
    lungs: K.KerasTensor | None,
    name: str,
    classes: int,
    dropout: float,
    head_l2: float,
    pool: str,
    multi_label: bool,
) -> K.Model:
    """The model of a feature map: averaged, one dense layer."""
    from cxr_pipeline.models.backend import keras

    k = keras()
    if pool != "all":
        features = _over_lungs(features, lungs, pool)
    pooled = k.layers.GlobalAveragePooling2D(name="pool")(features)
    # Channels of one scale, so that one learning rate and one penalty fit all. Its moments are set by
    # models.training.probe.solve_head and then stay; until then it changes nothing.
    scaled = k.layers.BatchNormalization(center=False, scale=False, trainable=False, name="standardize")(pooled)
    # The loss of several labels is their mean (models.training.losses), the solved head's their sum
    # (models.training.probe): one penalty.
    penalty = k.regularizers.L2(head_l2 / classes if multi_label else head_l2)
    head = k.layers.Dense(classes, kernel_regularizer=penalty, name="logits")
    logits = head(k.layers.Dropout(dropout, name="dropout")(scaled))
    return k.Model(film, _probabilities(logits, multi_label), name=f"{name}_classifier")


def _deep(
    film: K.KerasTensor,
    features: K.KerasTensor,
    lungs: K.KerasTensor | None,
    name: str,
    classes: int,
    hidden: tuple[int, ...],
    dropout: float,
    pool: str,
    multi_label: bool,
    flatten: bool = False,
) -> K.Model:
    """The model of a feature map: averaged or flattened, dropout, dense layers of `hidden` units, and the last one."""
    from cxr_pipeline.models.backend import keras

    k = keras()
    if pool != "all":
        features = _over_lungs(features, lungs, pool)
    layer = k.layers.Flatten(name="pool") if flatten else k.layers.GlobalAveragePooling2D(name="pool")
    values = k.layers.Dropout(dropout, name="dropout")(layer(features))
    for number, units in enumerate(hidden, start=1):
        values = k.layers.Dense(units, activation="relu", name=f"dense{number}")(values)
    logits = k.layers.Dense(classes, name="logits")(values)
    return k.Model(film, _probabilities(logits, multi_label), name=f"{name}_classifier")


def _probabilities(logits: K.KerasTensor, multi_label: bool) -> K.KerasTensor:
    from cxr_pipeline.models.backend import keras

    layers = keras().layers
    layer = layers.Activation("sigmoid", name="probabilities") if multi_label else layers.Softmax(name="probabilities")
    return layer(logits)


def _over_lungs(features: K.KerasTensor, lungs: K.KerasTensor, pool: str) -> K.KerasTensor:
    """Features (N, h, w, C) weighted so that their plain average is that over the lungs, or over each zone in turn.

    With "zones" the result is (N, h, w, 6 C): every zone has channels of its own, zero elsewhere. Grad-CAM on it
    has its closed form, as on any map that is averaged and then goes through one dense layer.
    """
    from cxr_pipeline.models.backend import keras

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


NETWORKS: dict[str, Callable[..., K.Model]] = {
    "mobilenetv2": mobilenetv2_classifier,
    "efficientnetb0": efficientnetb0,
    "densenet121": densenet121,
    "sequential_cnn": sequential_cnn,
    "chexpert_cnn": chexpert_cnn,
}


def build_classifier(network: str, size: int, channels: int, classes: int, **settings: object) -> K.Model:
    """The network registered under a name; `settings` as `mobilenetv2_classifier` takes them, where they apply.

    Raises:
        ValueError: no such network; names those that exist.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(sorted(NETWORKS))}. Received: {network!r}")
    return NETWORKS[network](size, channels, classes, **settings)


def with_prior(model: K.Model, multi_label: bool) -> K.Model:
    """The model as it is trained: a second input, added to the logits. Layers and weights are the same ones."""
    from cxr_pipeline.models.backend import keras
    from cxr_pipeline.models.gradcam import LOGITS

    k = keras()
    logits = model.get_layer(LOGITS).output
    prior = k.Input(logits.shape[1:], name="prior")
    # In float32: in half precision a certain answer rounds to 1, and its loss is infinite.
    probabilities = (
        k.layers.Activation("sigmoid", dtype="float32") if multi_label else k.layers.Softmax(dtype="float32")
    )
    answer = probabilities(k.layers.Add(dtype="float32")([logits, prior]))
    return k.Model({"crop": model.input, "prior": prior}, answer, name="training")


def free_encoder(*, batchnorm: bool) -> Callable[[K.Model], None]:
    """What frees the encoder of a model for training; its BatchNorm moments stay ImageNet's where it came pretrained.

    Moments that follow the training films make the network fit for exactly their mix of hospitals.
    """
    from cxr_pipeline.models.backend import keras

    def prepare(model: K.Model) -> None:
        encoder = next((layer for layer in model.layers if layer.name == "encoder"), None)
        if encoder is None:  # a network without one, all of which is trained from the start
            return
        encoder.trainable = True
        for layer in encoder.layers:
            if isinstance(layer, keras().layers.BatchNormalization):
                layer.trainable = batchnorm

    return prepare
