"""EfficientNetB0 (Tan and Le 2019), with a deep head: dropout and four dense layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cxr_pipeline.models.backbones.base import Backbone, pretrained_encoder
from cxr_pipeline.models.heads import Deep

if TYPE_CHECKING:
    import keras as K


def build(
    rgb: K.KerasTensor, *, cut: str | None = None, encoder_weights: str | None = None, nearby: Path | None = None
) -> K.KerasTensor:
    """Features (N, h, w, C) of `rgb` (N, size, size, 3) in [0, 255]: it scales to its own range inside.

    Args:
        cut: encoder layer to stop at, such as "block6a_expand_activation" (stride 16); None: whole, stride 32.
        encoder_weights, nearby: see `encoder_weights.resolve`.
    """
    return pretrained_encoder("EfficientNetB0", rgb, encoder_weights, nearby, cut)


BACKBONE = Backbone(build, input_range=(0.0, 255.0), application="EfficientNetB0", head=Deep((256, 128, 64)))
