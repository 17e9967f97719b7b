"""What a backbone is: the part of a classifier from the film to its feature map, and what it wants to be given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.models.backbones.encoder_weights import application, resolve
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.heads import Averaged, Head

if TYPE_CHECKING:
    import keras as K

ENCODER = "encoder"  # the layer that is frozen at first, where a backbone has one
NEARBY = "nearby"  # a parameter of `build` that is no setting: the folder beside which ImageNet weights may lie


class NetworkError(CxrError, ValueError):
    """A network that cannot be found or built as asked."""


@dataclass(frozen=True)
class Backbone:
    """A registry entry, as data.

    Attributes:
        build: makes the feature map (N, h, w, C) of a symbolic input (N, size, size, 3) in `input_range`. Its
            keyword-only parameters are the network's settings, with their defaults; one named `nearby` is the folder
            beside which ImageNet weights may lie, and no setting.
        input_range: what the lowest and highest grey level, 0 and 1, are scaled to before `build` sees them.
        mean, deviation: of the three channels, taken out after that; None: nothing is.
        grey: `build` takes the grey channel alone, (N, size, size, 1), unless it is to see the lungs too.
        application: name of the network in keras.applications whose ImageNet weights it can start from; None: it has
            none.
        head: what turns the feature map into logits.
        require: called with all settings before Keras is imported; raises EncoderWeightsError where `build` could not
            load what they name. For a backbone with weights of its own; those of `application` are checked anyway.
    """

    build: Callable[..., K.KerasTensor]
    input_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float] | None = None
    deviation: tuple[float, float, float] | None = None
    grey: bool = False
    application: str | None = None
    head: Head = field(default_factory=Averaged)
    require: Callable[[Mapping[str, Any]], None] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that it and its head take, with their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        own = {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != NEARBY
        }
        return self.head.settings | own

    def check(self, settings: Mapping[str, Any], network: str) -> None:
        """Refuse settings that the network does not take.

        Raises:
            NetworkError: names the nearest one, and all.
        """
        known = self.settings
        for name in settings:
            if name not in known:
                near = get_close_matches(name, known, 1)
                meant = f" Did you mean {near[0]}?" if near else ""
                raise NetworkError(
                    f"the network {network} takes no setting {name!r}.{meant} It takes: {', '.join(sorted(known))}"
                )

    def features(self, rgb: K.KerasTensor, settings: Mapping[str, Any], nearby: Path | None = None) -> K.KerasTensor:
        """The feature map (N, h, w, C) of (N, size, size, 3 or 1) float32 in [0, 1].

        Args:
            settings: those of `settings` that `build` takes are passed on.
            nearby: folder beside which ImageNet weights may lie.
        """
        parameters = inspect.signature(self.build).parameters
        passed = {name: value for name, value in settings.items() if name in parameters}
        if NEARBY in parameters:
            passed[NEARBY] = nearby
        return self.build(self._scaled(rgb), **passed)

    def _scaled(self, rgb: K.KerasTensor) -> K.KerasTensor:
        layers = keras().layers
        low, high = self.input_range
        if self.mean is not None and self.deviation is not None:
            variance = [d * d for d in self.deviation]
            return layers.Normalization(mean=self.mean, variance=variance, name="to_encoder_range")(rgb)
        if (low, high) != (0.0, 1.0):
            return layers.Rescaling(high - low, low, name="to_encoder_range")(rgb)
        return rgb


def of_application(network: str) -> Callable[..., K.KerasTensor]:
    """The `build` of a backbone that is a network of keras.applications, whole or cut; see `pretrained_encoder`."""

    def build(
        rgb: K.KerasTensor, *, cut: str | None = None, encoder_weights: str | None = None, nearby: Path | None = None
    ) -> K.KerasTensor:
        return pretrained_encoder(network, rgb, encoder_weights, nearby, cut)

    return build


def pretrained_encoder(
    network: str,
    rgb: K.KerasTensor,
    weights: str | None,
    nearby: Path | None,
    cut: str | None,
    alpha: float | None = None,
) -> K.KerasTensor:
    """The feature map of a network of keras.applications without its top, as one layer named "encoder".

    Args:
        network: its name there. rgb: (N, size, size, 3), in the range that it expects.
        weights, nearby: see `encoder_weights.resolve`.
        cut: name of the layer to stop at, such as "block_12_add" (stride 16); None takes it whole (stride 32).
        alpha: width of a MobileNetV2.

    Raises:
        NetworkError: it has no layer `cut`. EncoderWeightsError: there are no such weights.
    """
    encoder = application(network, resolve(weights, network, alpha, nearby), rgb.shape[1], alpha)
    if cut is not None:
        names = [layer.name for layer in encoder.layers]
        if cut not in names:
            near = ", ".join(get_close_matches(cut, names, 5)) or ", ".join(names[-8:])
            raise NetworkError(f"{network} has no layer to cut at named {cut!r}. Layers of it are: {near}")
        encoder = keras().Model(encoder.input, encoder.get_layer(cut).output)
    encoder.name = ENCODER
    return encoder(rgb)
