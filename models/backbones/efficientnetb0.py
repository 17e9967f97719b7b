"""EfficientNetB0 (Tan and Le 2019), with a deep head: dropout and four dense layers.

It takes 0 to 255 and scales that to its own range inside. A layer to cut at is "block6a_expand_activation" (stride 16);
whole it has stride 32.
"""

from __future__ import annotations

from cxr_pipeline.models.backbones.base import Backbone, of_application
from cxr_pipeline.models.heads import Deep

BACKBONE = Backbone(
    of_application("EfficientNetB0"),
    input_range=(0.0, 255.0),
    application="EfficientNetB0",
    head=Deep((256, 128, 64)),
)
