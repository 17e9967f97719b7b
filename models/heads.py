"""From a feature map to logits. Every head has a layer "pool", whose input is the map, and a dense layer "logits"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.gradcam import LOGITS, POOL

if TYPE_CHECKING:
    import keras as K

STANDARDIZE = "standardize"  # the layer between pool and logits that brings every channel to mean 0, variance 1


class Head(ABC):
    """A registry entry's head. `settings` are those that it takes, with their defaults."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings by name, with their defaults."""

    @abstractmethod
    def logits(
        self, features: K.KerasTensor, classes: int, settings: Mapping[str, Any], *, weighted: bool, multi_label: bool
    ) -> K.KerasTensor:
        """Logits (N, classes) of features (N, h, w, C), or of a film's vector (N, C) where a pooling made one.

        Args:
            settings: values in place of the defaults.
            weighted: a pooling has weighted the features so that their average is wanted, see `models.pooling`.
            multi_label: a film may have several classes.
        """


@dataclass(frozen=True)
class Averaged(Head):
    """Global average pooling and one dense layer, which can be solved: see `models.training.probe`.

    Attributes:
        dropout: share of the features dropped before the dense layer in training.
        head_l2: penalty on the squared weights of the dense layer.
    """

    dropout: float = 0.2
    head_l2: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by name, with their defaults."""
        return {"dropout": self.dropout, "head_l2": self.head_l2}

    def logits(
        self, features: K.KerasTensor, classes: int, settings: Mapping[str, Any], *, weighted: bool, multi_label: bool
    ) -> K.KerasTensor:
        """See `Head.logits`."""
        del weighted  # it averages anyway
        k, values = keras(), self.settings | dict(settings)
        pooled = features if len(features.shape) == 2 else k.layers.GlobalAveragePooling2D(name=POOL)(features)
        # Channels of one scale, so that one learning rate and one penalty fit all. Its moments are set by
        # models.training.probe.solve_head and then stay; until then it changes nothing.
        scaled = k.layers.BatchNormalization(center=False, scale=False, trainable=False, name=STANDARDIZE)(pooled)
        # The loss of several labels is their mean (models.training.losses), the solved head's their sum
        # (models.training.probe): one penalty.
        penalty = k.regularizers.L2(values["head_l2"] / classes if multi_label else values["head_l2"])
        dense = k.layers.Dense(classes, kernel_regularizer=penalty, name=LOGITS)
        return dense(k.layers.Dropout(values["dropout"], name="dropout")(scaled))


@dataclass(frozen=True)
class Deep(Head):
    """Average or flatten, dropout, dense layers of `hidden` units each with ReLU, and the last one.

    Attributes:
        hidden: units of the dense layers before the last.
        flatten: every place keeps channels of its own, unless a pooling weighs the places.
        dropout: share of the features dropped before the dense layers in training.
    """

    hidden: tuple[int, ...]
    flatten: bool = False
    dropout: float = 0.5

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by name, with their defaults."""
        return {"dropout": self.dropout}

    def logits(
        self, features: K.KerasTensor, classes: int, settings: Mapping[str, Any], *, weighted: bool, multi_label: bool
    ) -> K.KerasTensor:
        """See `Head.logits`."""
        del multi_label
        layers, values = keras().layers, self.settings | dict(settings)
        flat = self.flatten and not weighted
        pool = layers.Flatten(name=POOL) if flat else layers.GlobalAveragePooling2D(name=POOL)
        pooled = layers.Dropout(values["dropout"], name="dropout")(pool(features))
        for number, units in enumerate(self.hidden, start=1):
            pooled = layers.Dense(units, activation="relu", name=f"dense{number}")(pooled)
        return layers.Dense(classes, name=LOGITS)(pooled)
