"""How a feature map becomes one vector a film: over the whole crop, over the lungs, or over each of the lung zones.

A pooling turns a map (N, h, w, C) into one (N, h, w, D) whose plain average over the places is the film's vector
(N, D): weights, masks and choices of places go into the map. So the layer "pool" behind it is a global average for all
of them, the dense layer's weights give Grad-CAM in closed form (`models.gradcam`) on the map that is averaged, and the
solved head (`models.training.probe`) needs to know nothing of it.

A maximum fits too: the map is zero except at the place of the largest value, which is multiplied by h * w there.

A pooling by zones orders its channels by zone first: all of zone 0, then all of zone 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.gradcam import EVIDENCE, POOL

if TYPE_CHECKING:
    import keras as K

ZONES = 6


@dataclass(frozen=True)
class Pooling:
    """A registry entry.

    Attributes:
        weigh: from features (N, h, w, C) and lungs (N, size, size, 1), 0 or 1, to the map that is averaged; None: the
            features as they are, and the network needs no lungs.
        pooled: in place of `weigh` and the average: from features and lungs to the film's vector (N, D), by a layer
            named "pool"; see `evidence_over_lungs`.
        zones: parts of the crop that the vector describes apart from each other, 1 or 6.
    """

    weigh: Callable[[K.KerasTensor, K.KerasTensor], K.KerasTensor] | None = None
    pooled: Callable[[K.KerasTensor, K.KerasTensor], K.KerasTensor] | None = None
    zones: int = 1

    @property
    def needs_lungs(self) -> bool:
        """Whether the network's input has the lung mask as its second channel."""
        return self.weigh is not None or self.pooled is not None


def lung_zones(height: int, width: int) -> np.ndarray:
    """Which of the six zones each place of a crop belongs to, (1, height, width, 6) float32, one of the six 1.

    Upper, middle and lower third on the left of the picture (the patient's right), then on its right.
    """
    row = 3 * np.arange(height) // height
    side = 2 * np.arange(width) // width
    return np.eye(ZONES, dtype=np.float32)[row[:, None] + 3 * side[None, :]][None]


def lung_share(features: K.KerasTensor, lungs: K.KerasTensor) -> K.KerasTensor:
    """How much of each place of the feature map is lung, (N, h, w, 1) in [0, 1]."""
    return keras().layers.AveragePooling2D(lungs.shape[1] // features.shape[1], name="lung_share")(lungs)


def _mean_one(share: K.KerasTensor) -> K.KerasTensor:
    """Weights (N, h, w, P) with a mean of 1 over the crop."""
    return share / (keras().ops.mean(share, axis=(1, 2), keepdims=True) + 1e-3)


def over_lungs(features: K.KerasTensor, lungs: K.KerasTensor) -> K.KerasTensor:
    """Features (N, h, w, C) weighted by how much of each place is lung: their average is that over the lungs."""
    weight = _mean_one(lung_share(features, lungs))
    return keras().layers.Multiply(name="lung_features")([features, weight])


def over_zones(features: K.KerasTensor, lungs: K.KerasTensor) -> K.KerasTensor:
    """Features (N, h, w, 6 C): every zone has channels of its own, zero elsewhere, averaged over its lung."""
    k = keras()
    height, width, channels = features.shape[1:]
    weight = _mean_one(lung_share(features, lungs) * lung_zones(height, width))
    by_zone = k.ops.expand_dims(features, 3) * k.ops.expand_dims(weight, 4)
    return k.layers.Reshape((height, width, ZONES * channels), name="zone_features")(by_zone)


def evidence_over_lungs(features: K.KerasTensor, lungs: K.KerasTensor) -> K.KerasTensor:
    """A film's evidence (N, C) of a map (N, h, w, 2 C): the log of the lungs' mean of exp(evidence), plus mean context.

    One diseased place is enough for a diseased film, however much sound lung is beside it: a mean would thin it out,
    and a maximum hangs on a single place. AUROC of TB against normal at hospitals never seen, features of stage a,
    shenzhen (rahman): mean of the places' probabilities 0.876 (0.973), maximum 0.881 (0.956), this 0.880 (0.974); with
    it, log-odds of films and of places are on one scale.

    The gradient by the evidence sums to 1 over the places, so its mean is 1 / (h w), as behind an average: Grad-CAM
    has the same closed form on the layer "evidence".
    """
    k = keras()
    channels = features.shape[-1] // 2
    split = k.ops.split(features, 2, axis=-1)
    evidence = k.layers.Identity(name=EVIDENCE)(split[0])
    weight = _mean_one(lung_share(features, lungs))
    top = k.ops.max(evidence, axis=(1, 2), keepdims=True)
    mean = k.ops.mean(k.ops.exp(evidence - top) * weight, axis=(1, 2))
    joined = k.ops.log(mean + 1e-6) + k.ops.reshape(top, (-1, channels))
    context = k.ops.mean(split[1] * weight, axis=(1, 2))
    return k.layers.Add(name=POOL)([joined, context])


# The names are those of `configs.schema.ClassifyConfig.pool`.
POOLINGS: dict[str, Pooling] = {
    "all": Pooling(),
    "lungs": Pooling(over_lungs),
    "zones": Pooling(over_zones, zones=ZONES),
    "evidence": Pooling(pooled=evidence_over_lungs),
}


def find_pooling(name: str) -> Pooling:
    """The pooling of a name.

    Raises:
        ValueError: there is none; names those that exist.
    """
    if name not in POOLINGS:
        raise ValueError(f"pool must be one of {', '.join(POOLINGS)}. Received: {name!r}")
    return POOLINGS[name]
