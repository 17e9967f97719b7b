"""MobileNetV2 (Sandler et al. 2018), of any width, cut at any layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cxr_pipeline.models.backbones.base import Backbone, pretrained_encoder

if TYPE_CHECKING:
    import keras as K


def build(
    rgb: K.KerasTensor,
    *,
    alpha: float = 0.35,
    cut: str | None = None,
    encoder_weights: str | None = None,
    nearby: Path | None = None,
) -> K.KerasTensor:
    """Features (N, h, w, C) of `rgb` (N, size, size, 3) in [-1, 1].

    Args:
        alpha: width of the network.
        cut: encoder layer to stop at, such as "block_13_expand_relu" (stride 16); None: whole, stride 32.
        encoder_weights, nearby: see `encoder_weights.resolve`.
    """
    return pretrained_encoder("MobileNetV2", rgb, encoder_weights, nearby, cut, alpha)


BACKBONE = Backbone(build, input_range=(-1.0, 1.0), application="MobileNetV2")
