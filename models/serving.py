"""The model that answers requests, made of the one that was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.gradcam import LOGITS, maps_layer

if TYPE_CHECKING:
    import keras as K


def serving_model(model: K.Model) -> K.Model:
    """A model with a dict of outputs.

    Segmentation: `lungs` (N, H, W, 1), probability. Classification: `logits` (N, classes) and `maps`
    (N, h, w, classes), the Grad-CAM of each logit, from the same forward pass. All float32.
    """
    k = keras()
    if not any(layer.name == LOGITS for layer in model.layers):
        return k.Model(model.input, {"lungs": k.layers.Identity(name="lungs")(model.output)})
    return k.Model(model.input, {"logits": model.get_layer(LOGITS).output, "maps": maps_layer(model)})
