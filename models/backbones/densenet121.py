"""DenseNet121 (Huang et al. 2017), the network of CheXNet (Rajpurkar et al. 2017)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cxr_pipeline.models.backbones.base import Backbone, pretrained_encoder
from cxr_pipeline.models.heads import Averaged

if TYPE_CHECKING:
    import keras as K


def build(
    rgb: K.KerasTensor, *, cut: str | None = None, encoder_weights: str | None = None, nearby: Path | None = None
) -> K.KerasTensor:
    """Features (N, h, w, C) of `rgb` (N, size, size, 3), with ImageNet's mean and deviation taken out.

    Args:
        cut: encoder layer to stop at, such as "pool4_relu" (stride 16); None: whole, stride 32.
        encoder_weights, nearby: see `encoder_weights.resolve`.
    """
    return pretrained_encoder("DenseNet121", rgb, encoder_weights, nearby, cut)


BACKBONE = Backbone(
    build,
    mean=(0.485, 0.456, 0.406),
    deviation=(0.229, 0.224, 0.225),
    application="DenseNet121",
    head=Averaged(dropout=0.0),
)
