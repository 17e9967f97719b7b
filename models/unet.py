"""The lung segmentation network: segmentation-models' Unet on a MobileNetV2 encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr_pipeline.models.backbones.encoder_weights import EncoderWeightsError, application, require_weights, resolve
from cxr_pipeline.models.backend import keras, segmentation_models

if TYPE_CHECKING:
    import keras as K


def build_unet(
    size: int = 256,
    *,
    encoder: str = "mobilenetv2",
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
        encoder_weights: see `models.backbones.encoder_weights.resolve`; weights load for "mobilenetv2" only.
        decoder_filters: channels of the five decoder steps; most of the cost lies here.
        nearby: folder beside which ImageNet weights may lie.
        outputs: organs: 1 for the lungs, 2 for lungs and heart. They may overlap, so each has a probability of its own.

    Raises:
        ValueError: a size that the encoder cannot halve five times.
        EncoderWeightsError: weights for another encoder, or none to be had.
    """
    if size % 32:
        raise ValueError(f"size must be a multiple of 32. Received: {size}; try {round(size / 32) * 32}")
    _require_known(encoder, encoder_weights)
    k = keras()
    unet = segmentation_models().Unet(
        encoder,
        input_shape=(size, size, 3),
        encoder_weights=None,
        classes=outputs,
        activation="sigmoid",
        decoder_filters=decoder_filters,
    )
    source = resolve(encoder_weights, "MobileNetV2", 1.0, nearby)
    if source is not None:
        _copy_by_name(application("MobileNetV2", source, 224, 1.0), unet)
    film = k.Input((size, size, 1), name="film")
    rgb = k.layers.Concatenate(name="to_rgb")([film, film, film])
    scaled = k.layers.Rescaling(2.0, -1.0, name="to_encoder_range")(rgb)
    return k.Model(film, unet(scaled), name="lung_unet")


def require_encoder(encoder: str, encoder_weights: str | None, nearby: Path | None = None) -> None:
    """Refuse what `build_unet` could not load, before films are read and Keras is imported.

    Raises:
        EncoderWeightsError: weights for another encoder, or none to be had.
    """
    _require_known(encoder, encoder_weights)
    require_weights(encoder_weights, "MobileNetV2", 1.0, nearby)


def _require_known(encoder: str, encoder_weights: str | None) -> None:
    if encoder_weights is not None and encoder != "mobilenetv2":
        raise EncoderWeightsError(
            f"encoder weights are known for 'mobilenetv2' only. Received: {encoder!r}; set segment.encoder_weights to "
            "null"
        )


def _copy_by_name(source: K.Model, target: K.Model) -> None:
    known = {layer.name: layer for layer in target.layers}
    for layer in source.layers:
        if layer.weights:
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
            f"the weights {weights!r} are of another segmentation network. Take its encoder and decoder_filters, or "
            "set segment.start to null"
        )
    model.set_weights([np.broadcast_to(a, b.shape) for a, b in zip(source, target, strict=True)])
