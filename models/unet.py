"""The lung segmentation network: segmentation-models' Unet on a MobileNetV2 encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.models.backbones.encoder_weights import EncoderWeightsError, application, require_weights, resolve
from cxr_pipeline.models.backend import keras, segmentation_models

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.configs.schema import SegmentConfig

MOBILENET = "mobilenetv2"
# What the decoder sees of the encoder at strides 16, 8, 4 and 2, and where the encoder ends, at stride 32. MobileNetV2
# widens its maps sixfold within each block: a decoder that looks in there convolves six times as many channels.
_PROJECTED = ("block_12_add", "block_5_add", "block_2_add", "expanded_conv_project_BN")
_END = "block_16_project_BN"
_STEPS = 5  # of a decoder that comes back to the film's grid


def build_unet(
    size: int = 256,
    *,
    encoder: str = MOBILENET,
    alpha: float = 1.0,
    skips: str = "expanded",
    encoder_weights: str | None = None,
    decoder_filters: tuple[int, ...] = (128, 64, 32, 16, 8),
    nearby: Path | None = None,
    outputs: int = 1,
) -> K.Model:
    """A network from films (N, size, size, 1) float32 [0, 1] to probabilities (N, size, size, outputs).

    The grey channel is repeated to the encoder's three and scaled to [-1, 1] inside the network, so that no
    caller can get the input range wrong.

    Args:
        size: side of the square, a multiple of 32 (the encoder halves it five times).
        encoder: a backbone name of segmentation-models.
        alpha: width of the encoder "mobilenetv2"; others have none.
        skips: which maps of "mobilenetv2" the decoder sees: "expanded", the wide ones within its blocks, as
            segmentation-models has it; "projected", the narrow ones between blocks, at half of the cost. Others have
            segmentation-models' own.
        encoder_weights: see `models.backbones.encoder_weights.resolve`; weights load for "mobilenetv2" only.
        decoder_filters: channels of the decoder's steps; most of the cost lies here. With four in place of five,
            the answer is found at half the film's grid and doubled bilinearly.
        nearby: folder beside which ImageNet weights may lie.
        outputs: organs: 1 for the lungs, 2 for lungs and heart. They may overlap, so each has a probability of its own.

    Raises:
        ValueError: a size that the encoder cannot halve five times; a decoder of other than four or five steps.
        EncoderWeightsError: weights for another encoder, or none to be had.
    """
    if size % 32:
        raise ValueError(f"size must be a multiple of 32. Received: {size}; try {round(size / 32) * 32}")
    _require_known(encoder, encoder_weights)
    if len(decoder_filters) not in (_STEPS - 1, _STEPS):
        raise ValueError(f"decoder_filters must be {_STEPS - 1} or {_STEPS} numbers. Received: {decoder_filters}")
    k = keras()
    own: dict[str, Any] = {}
    if encoder == MOBILENET and (alpha != 1.0 or skips == "projected"):
        encoder = _registered(alpha, skips)
        own["encoder_features"] = _PROJECTED if skips == "projected" else _features_of(MOBILENET)
    unet = segmentation_models().Unet(
        encoder,
        input_shape=(size, size, 3),
        encoder_weights=None,
        classes=outputs,
        activation="sigmoid",
        decoder_filters=decoder_filters,
        **own,
    )
    source = resolve(encoder_weights, "MobileNetV2", alpha, nearby)
    if source is not None:
        _copy_by_name(application("MobileNetV2", source, 224, alpha), unet)
    film = k.Input((size, size, 1), name="film")
    rgb = k.layers.Concatenate(name="to_rgb")([film, film, film])
    answer = unet(k.layers.Rescaling(2.0, -1.0, name="to_encoder_range")(rgb))
    if len(decoder_filters) < _STEPS:
        answer = k.layers.UpSampling2D(2, interpolation="bilinear", name="to_film_grid")(answer)
    return k.Model(film, answer, name="lung_unet")


def unet_of(settings: SegmentConfig, nearby: Path | None = None) -> K.Model:
    """The network of a config as its training begins; see `build_unet`, and `start_from` where it goes on from weights.

    Raises:
        EncoderWeightsError: weights that cannot be had, or are of another network.
    """
    model = build_unet(
        settings.size,
        encoder=settings.encoder,
        alpha=settings.alpha,
        skips=settings.skips,
        encoder_weights=settings.encoder_weights,
        decoder_filters=settings.decoder_filters,
        nearby=nearby,
        outputs=2 if settings.heart else 1,
    )
    if settings.start is not None:
        start_from(model, settings.start)
    return model


def _features_of(encoder: str) -> tuple[Any, ...]:
    return segmentation_models().Backbones.get_feature_layers(encoder, n=4)


def _registered(alpha: float, skips: str) -> str:
    """The name under which segmentation-models, which passes no width on, knows MobileNetV2 of that width and end."""
    name = f"{MOBILENET}_{alpha}_{skips}"

    def build(*_: Any, input_shape: tuple[int, int, int], **__: Any) -> K.Model:
        whole = application("MobileNetV2", None, input_shape[0], alpha)
        return keras().Model(whole.input, whole.get_layer(_END).output) if skips == "projected" else whole

    segmentation_models().Backbones._models[name] = [build, None]
    return name


def require_encoder(encoder: str, alpha: float, encoder_weights: str | None, nearby: Path | None = None) -> None:
    """Refuse what `build_unet` could not load, before films are read and Keras is imported.

    Raises:
        EncoderWeightsError: weights for another encoder, or none to be had.
    """
    _require_known(encoder, encoder_weights)
    require_weights(encoder_weights, "MobileNetV2", alpha, nearby)


def _require_known(encoder: str, encoder_weights: str | None) -> None:
    if encoder_weights is not None and encoder != MOBILENET:
        raise EncoderWeightsError(
            f"encoder weights are known for 'mobilenetv2' only. Received: {encoder!r}; set segment.encoder_weights to "
            "null"
        )


def _copy_by_name(source: K.Model, target: K.Model) -> None:
    known = {layer.name: layer for layer in target.layers}
    for layer in source.layers:
        if layer.weights and layer.name in known:  # an encoder that ends early lacks the last
            known[layer.name].set_weights(layer.get_weights())


def start_from(model: K.Model, weights: str) -> None:
    """Take over what a trained segmentation has learned; an organ that it does not find starts as its lungs.

    Args:
        model: of `build_unet`, of the same encoder and decoder; changed in place.
        weights: a name or folder, see `models.store.find`.

    Raises:
        EncoderWeightsError: the weights are of another network.
    """
    from cxr_pipeline.models.store import KERAS_FILE, bundle_of, find, load_keras

    source = load_keras(bundle_of(find(weights), "segment") / KERAS_FILE).get_weights()
    target = model.get_weights()
    same = len(source) == len(target) and all(
        a.shape[:-1] == b.shape[:-1] and (a.shape[-1:] == b.shape[-1:] or a.shape[-1] == 1)
        for a, b in zip(source, target, strict=False)
    )
    if not same:
        raise EncoderWeightsError(
            f"the weights {weights!r} are of another segmentation network. Take its encoder, alpha, skips and "
            "decoder_filters, or set segment.start to null"
        )
    model.set_weights([np.broadcast_to(a, b.shape) for a, b in zip(source, target, strict=True)])
