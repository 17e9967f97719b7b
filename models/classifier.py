"""A classifier: a backbone, a pooling and a head. Inputs are (N, size, size, channels) float32 in [0, 1], outputs
(N, classes) probabilities: of a softmax, or of a sigmoid each where films may have several labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.models.backbones import find_backbone
from cxr_pipeline.models.backbones.base import ENCODER, NetworkError
from cxr_pipeline.models.backbones.encoder_weights import require_weights
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.gradcam import LOGITS, POOL
from cxr_pipeline.models.heads import Deep
from cxr_pipeline.models.pooling import find_pooling
from cxr_pipeline.models.training.errors import TrainingError

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.configs.schema import ClassifyConfig

# Settings of the section `classify` that a network may take; others of its own stand in `network_settings`.
_COMMON = ("alpha", "cut", "encoder_weights", "dropout", "head_l2")


def build_classifier(
    network: str,
    size: int,
    channels: int,
    classes: int,
    *,
    pool: str = "all",
    multi_label: bool = False,
    nearby: Path | None = None,
    **settings: Any,
) -> K.Model:
    """The classifier on the backbone of a name.

    Args:
        network: a name, or "package.module:build"; see `models.backbones`.
        size: side of the square input, in pixels.
        channels: what the backbone sees: 1 (grey) or 2 (grey and lung mask).
        classes: number of outputs.
        pool: a name of `models.pooling.POOLINGS`. Where it needs the lungs, the input has the lung mask as its second
            channel, whether the backbone sees it or not.
        multi_label: a sigmoid for each class in place of a softmax over all.
        nearby: folder beside which ImageNet weights may lie.
        settings: of the backbone and its head, such as `alpha`, `cut`, `encoder_weights`, `dropout`.

    Raises:
        NetworkError: no such network or setting; names those that exist.
        EncoderWeightsError: there are no such weights to start from.
    """
    k = keras()
    backbone, pooling = find_backbone(network), find_pooling(pool)
    backbone.check(settings, network)
    film = k.Input((size, size, max(channels, 2 if pooling.needs_lungs else 1)), name="crop")
    grey, *lungs = k.ops.split(film, film.shape[-1], axis=-1)
    seen = grey if backbone.grey and channels == 1 else _rgb(film, grey, channels)
    features = backbone.features(seen, settings, nearby)
    if len(features.shape) != 4:
        raise NetworkError(
            f"the network {network} must give a feature map (N, h, w, C). Received: shape {tuple(features.shape)}"
        )
    if pooling.weigh is not None:
        features = pooling.weigh(features, lungs[0])
    if pooling.pooled is not None:
        if isinstance(backbone.head, Deep):
            raise NetworkError(f"pool {pool!r} needs a network with an averaged head. Received: {network!r}")
        features = pooling.pooled(features, lungs[0])
    taken = {name: value for name, value in settings.items() if name in backbone.head.settings}
    logits = backbone.head.logits(features, classes, taken, weighted=pooling.needs_lungs, multi_label=multi_label)
    name = network.replace(":", "_").replace(".", "_")
    return k.Model(film, _probabilities(logits, multi_label), name=f"{name}_classifier")


def network_settings(section: ClassifyConfig) -> dict[str, Any]:
    """What a config says to its network: the settings of `classify` that the network takes, and `network_settings`.

    Raises:
        NetworkError: there is no such network, or a setting that it does not take was changed from its default.
    """
    backbone, default = find_backbone(section.network), type(section)()
    known = backbone.settings
    backbone.check(section.network_settings, section.network)
    for name in _COMMON:
        value = getattr(section, name)
        if name not in known and value is not None and value != getattr(default, name):
            raise NetworkError(
                f"the network {section.network} takes no setting {name!r}: leave classify.{name} at its default, "
                f"{getattr(default, name)!r}. Received: {value!r}. It takes: {', '.join(sorted(known))}"
            )
    return {name: getattr(section, name) for name in _COMMON if name in known} | section.network_settings


def require_network(section: ClassifyConfig, nearby: Path | None) -> None:
    """Refuse a network that could not be built or trained as the config says, before films are read.

    Args:
        nearby: folder beside which ImageNet weights may lie.

    Raises:
        NetworkError: see `network_settings`. EncoderWeightsError: see `encoder_weights.require_weights`.
        TrainingError: a head that is trained and not solved, and no epochs to train it in.
    """
    settings = network_settings(section)
    backbone = find_backbone(section.network)
    if isinstance(backbone.head, Deep) and not section.fit.epochs:
        raise TrainingError(
            f"classify.fit.epochs is 0, but {section.network} has a deep head, which is trained and not solved. "
            "Give it epochs"
        )
    if backbone.application is not None:
        require_weights(settings.get("encoder_weights"), backbone.application, settings.get("alpha"), nearby)
    if backbone.require is not None:
        backbone.require(settings)


def _rgb(film: K.KerasTensor, grey: K.KerasTensor, channels: int) -> K.KerasTensor:
    """Three channels (N, size, size, 3) of the input: the grey one repeated, or made of it and the lungs."""
    k = keras()
    if channels == 1:
        return k.layers.Concatenate(name="to_rgb")([grey, grey, grey])
    adapt = k.layers.Conv2D(3, 1, use_bias=False, name="to_rgb")
    rgb = adapt(film)
    kernel = np.zeros((1, 1, channels, 3), np.float32)  # starts as the grey channel three times; the rest is learned
    kernel[0, 0, 0] = 1.0
    adapt.set_weights([kernel])
    return rgb


def _probabilities(logits: K.KerasTensor, multi_label: bool) -> K.KerasTensor:
    layers = keras().layers
    layer = layers.Activation("sigmoid", name="probabilities") if multi_label else layers.Softmax(name="probabilities")
    return layer(logits)


def with_prior(model: K.Model, multi_label: bool) -> K.Model:
    """The model as it is trained: a second input "prior" (N, classes), added to the logits. It shares all layers."""
    return _trained(model.input, model.get_layer(LOGITS).output, multi_label)


def head_with_prior(model: K.Model, multi_label: bool) -> K.Model:
    """As `with_prior`, of what comes after the layer "pool": "crop" is pooled features (N, C)."""
    k = keras()
    head = k.Model(model.get_layer(POOL).output, model.get_layer(LOGITS).output)
    pooled = k.Input(head.input.shape[1:], name="crop")
    return _trained(pooled, head(pooled), multi_label)


def _trained(crop: K.KerasTensor, logits: K.KerasTensor, multi_label: bool) -> K.Model:
    k = keras()
    prior = k.Input(logits.shape[1:], name="prior")
    # In float32: in half precision a certain answer rounds to 1, and its loss is infinite.
    probabilities = (
        k.layers.Activation("sigmoid", dtype="float32") if multi_label else k.layers.Softmax(dtype="float32")
    )
    answer = probabilities(k.layers.Add(dtype="float32")([logits, prior]))
    return k.Model({"crop": crop, "prior": prior}, answer, name="training")


def has_encoder(model: K.Model) -> bool:
    """Whether a classifier has a layer named "encoder", which may come pretrained."""
    return any(layer.name == ENCODER for layer in model.layers)


def free_encoder(*, batchnorm: bool) -> Callable[[K.Model], None]:
    """What frees the encoder of a model for training.

    Moments that follow the training films make the network fit for exactly their mix of hospitals.

    Args:
        batchnorm: whether its BatchNormalization is trained too; one that came pretrained keeps ImageNet's moments.
    """

    def prepare(model: K.Model) -> None:
        if not has_encoder(model):  # all of it is trained from the start
            return
        encoder = model.get_layer(ENCODER)
        encoder.trainable = True
        for layer in encoder.layers:
            if isinstance(layer, keras().layers.BatchNormalization):
                layer.trainable = batchnorm

    return prepare
