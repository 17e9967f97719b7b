"""DenseNet121 (Huang et al. 2017), the network of CheXNet (Rajpurkar et al. 2017), with ImageNet's mean and deviation.

A layer to cut at is "pool4_relu" (stride 16); whole it has stride 32.
"""

from __future__ import annotations

from cxr_pipeline.models.backbones.base import Backbone, of_application
from cxr_pipeline.models.heads import Averaged

BACKBONE = Backbone(
    of_application("DenseNet121"),
    mean=(0.485, 0.456, 0.406),
    deviation=(0.229, 0.224, 0.225),
    application="DenseNet121",
    head=Averaged(dropout=0.0),
)
