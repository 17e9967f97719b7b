"""A CNN for CheXpert trained from scratch on 512x512 grey: five blocks, 16 to 256 channels deep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxr_pipeline.models.backbones.base import Backbone
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.heads import Deep

if TYPE_CHECKING:
    import keras as K


def build(grey: K.KerasTensor, *, dropout: float = 0.2) -> K.KerasTensor:
    """Features (N, size / 32, size / 32, 256) of `grey` (N, size, size, 1) in [0, 1].

    Each block is a convolution, batch normalisation, ReLU, max-pooling, and dropout of whole channels.

    Args:
        dropout: half of it is the share of channels dropped; the head drops features by all of it.
    """
    layers = keras().layers
    features = grey
    for number, filters in enumerate((16, 32, 64, 128, 256), start=1):
        features = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"block{number}_conv")(features)
        features = layers.BatchNormalization(name=f"block{number}_norm")(features)
        features = layers.ReLU(name=f"block{number}_relu")(features)
        features = layers.MaxPooling2D(name=f"block{number}_pool")(features)
        features = layers.SpatialDropout2D(dropout / 2, name=f"block{number}_dropout")(features)
    return features


BACKBONE = Backbone(build, grey=True, head=Deep((128,), dropout=0.2))
