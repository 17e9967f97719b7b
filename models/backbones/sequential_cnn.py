"""A plain CNN trained from scratch, made for 150x150: four blocks of convolution and max-pooling, two dense layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxr_pipeline.models.backbones.base import Backbone
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.heads import Deep

if TYPE_CHECKING:
    import keras as K


def build(rgb: K.KerasTensor) -> K.KerasTensor:
    """Features (N, size // 16, size // 16, 128) of `rgb` (N, size, size, 3) in [0, 1]."""
    layers = keras().layers
    features = rgb
    for number, filters in enumerate((32, 64, 128, 128), start=1):
        features = layers.Conv2D(filters, 3, activation="relu", name=f"block{number}_conv")(features)
        features = layers.MaxPooling2D(name=f"block{number}_pool")(features)
    return features


BACKBONE = Backbone(build, head=Deep((256,), flatten=True))
