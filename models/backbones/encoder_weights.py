"""Where ImageNet weights of an encoder come from: the internet, a folder, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cxr_pipeline.configs.errors import CxrError

if TYPE_CHECKING:
    import keras as K


SETTINGS = "segment.encoder_weights or classify.encoder_weights"  # by the stage that is trained


class EncoderWeightsError(CxrError, ValueError):
    """Encoder weights that cannot be had."""


def file_name(network: str, alpha: float | None = None) -> str:
    """Name under which weights of a network are looked for, such as mobilenetv2_0.35_imagenet_notop.weights.h5."""
    width = f"_{alpha}" if alpha is not None else ""
    return f"{network.lower()}{width}_imagenet_notop.weights.h5"


def resolve(weights: str | None, network: str, alpha: float | None = None, nearby: Path | None = None) -> str | None:
    """What to hand to `application`.

    Args:
        weights: None for random weights, a path to a file, or "imagenet": the file `file_name(network, alpha)` in
            the folder `nearby`/weights where it exists (machines without internet), else a download.
        network: its name in keras.applications.
        alpha: width of a MobileNetV2.
        nearby: usually the folder of the manifest.

    Raises:
        EncoderWeightsError: `weights` names a file that does not exist.
    """
    if weights is None:
        return None
    if weights == "imagenet":
        local = nearby / "weights" / file_name(network, alpha) if nearby is not None else None
        return str(local) if local is not None and local.is_file() else "imagenet"
    if not Path(weights).is_file():
        raise EncoderWeightsError(
            f"no encoder weights at {weights!r}. Set {SETTINGS} to 'imagenet' (downloaded), null (random weights) or a "
            ".weights.h5 file"
        )
    return weights


def application(network: str, weights: str | None, size: int, alpha: float | None = None) -> K.Model:
    """A network of keras.applications without its top, for RGB of (size, size, 3) in the range that it expects.

    Args:
        network: its name there, such as "MobileNetV2".
        weights: as `resolve` gives them.
        size: side of the square input.
        alpha: width of a MobileNetV2; None for networks without one.

    Raises:
        EncoderWeightsError: the download failed, or the file is of another network; says what to do.
    """
    from cxr_pipeline.models.backend import keras

    build = getattr(keras().applications, network)
    arguments = {"include_top": False, "input_shape": (size, size, 3)} | ({} if alpha is None else {"alpha": alpha})
    try:
        return build(weights=weights, **arguments)
    except Exception as error:
        if weights is None:
            raise
        said = f"{network}{'' if alpha is None else f' {alpha}'}"
        if weights != "imagenet":
            raise EncoderWeightsError(
                f"{weights} does not hold weights of {said} ({error}). Set {SETTINGS} to a file that does, or to "
                "'imagenet'"
            ) from error
        raise EncoderWeightsError(
            f"the ImageNet weights of {said} could not be downloaded ({error}). Without internet, put "
            f"{file_name(network, alpha)} into a folder `weights` beside the manifest, or set {SETTINGS} to its path, "
            "or to null to start from random weights"
        ) from error
