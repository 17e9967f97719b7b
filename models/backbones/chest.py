"""MobileNetV2 that has learned chest films: where lesions lie, and what a film as a whole looks like.

Its weights were trained by docs/experiments/pretrain.py on labels that vary within a hospital, and on lesions pasted
from one hospital's films into another's, so that what it sees does not go with where a film is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from cxr_pipeline.models.backbones.base import ENCODER, Backbone
from cxr_pipeline.models.backbones.encoder_weights import EncoderWeightsError, application
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.store import SHIPPED

if TYPE_CHECKING:
    import keras as K

CUT = "block_13_expand_relu"  # stride 16
# What the two halves of the map's channels are about: cells with a lesion as tuberculosis makes them, with any opacity,
# and signs of COVID-19, of pneumonia in children, and of the other findings of a hospital's films.
CHANNELS = ("tb", "opacity", "covid", "pneumonia", "findings")
# Added to the evidence, so that a place of middling evidence adds to a map. Films of tbx11k's val whose best box has
# IoU 0.5: 2 0.88, 3 0.88 (at a higher threshold of the map), 4 0.81.
SHIFT = 2.0


def build(rgb: K.KerasTensor, *, encoder_weights: str | None = "chest") -> K.KerasTensor:
    """Map (N, h, w, 10) of `rgb` (N, size, size, 3) in [-1, 1]: the evidence of `CHANNELS`, then their context.

    Args:
        encoder_weights: "chest" for those that ship, a .npz file of docs/experiments/pretrain.py, or None for random
            ones.
    """
    k = keras()
    whole = application("MobileNetV2", None, rgb.shape[1], 1.0)
    encoder = k.Model(whole.input, whole.get_layer(CUT).output)
    encoder.name = ENCODER
    projection = k.layers.Conv2D(256, 1, activation="relu", name="projection")
    evidence = k.layers.Conv2D(len(CHANNELS), 1, name="cells")
    context = k.layers.Conv2D(len(CHANNELS), 1, name="context")
    seen = projection(encoder(rgb))
    features = k.layers.Concatenate(name="evidence_and_context")([evidence(seen), context(seen)])
    if encoder_weights is not None:
        stored = load_features(encoder_weights)
        encoder.set_weights([stored[f"encoder/{n}"].astype(np.float32) for n in range(len(encoder.weights))])
        for layer in (projection, evidence, context):
            kernel, bias = (stored[f"{layer.name}/{part}"].astype(np.float32) for part in ("kernel", "bias"))
            layer.set_weights([kernel[None, None], bias + (SHIFT if layer is evidence else 0)])
    return features


@lru_cache(maxsize=2)
def load_features(name: str) -> dict[str, np.ndarray]:
    """The arrays of a file of weights: `encoder/0`, `encoder/1`, ..., kernels and biases of the three layers behind it.

    Args:
        name: "chest" for those that ship, or a path.

    Raises:
        EncoderWeightsError: there is no such file, or it holds something else.
    """
    path = SHIPPED / "chest" / "features.npz" if name == "chest" else Path(name)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = {key: arrays[key] for key in arrays.files}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise EncoderWeightsError(
            f"the network chest cannot start from {name!r} ({error}). Set classify.encoder_weights to 'chest', to a "
            ".npz file made by docs/experiments/pretrain.py, or to null for random weights"
        ) from error
    lacking = [key for key in ("encoder/0", "projection/kernel", "cells/kernel", "context/kernel") if key not in stored]
    if lacking:
        raise EncoderWeightsError(
            f"{path} lacks {', '.join(lacking)}: it is no file of docs/experiments/pretrain.py. Give one that is"
        )
    return stored


def require(settings: Mapping[str, Any]) -> None:
    """Refuse weights that `build` could not start from.

    Raises:
        EncoderWeightsError: see `load_features`.
    """
    weights = settings.get("encoder_weights")
    if weights is not None:
        load_features(weights)


BACKBONE = Backbone(build, input_range=(-1.0, 1.0), require=require)
