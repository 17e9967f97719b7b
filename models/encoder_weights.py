"""Where ImageNet weights of an encoder come from: the internet, a folder, or a file."""

from __future__ import annotations

from pathlib import Path


class EncoderWeightsError(ValueError):
    """Encoder weights that cannot be had."""


def file_name(alpha: float) -> str:
    """Name under which MobileNetV2 weights of this width are looked for."""
    return f"mobilenetv2_{alpha}_imagenet_notop.weights.h5"


def resolve(weights: str | None, alpha: float, nearby: Path | None = None) -> str | None:
    """What to hand to `keras.applications.MobileNetV2(weights=...)`.

    Args:
        weights: None for random weights, a path to a file, or "imagenet": the file `file_name(alpha)` in
            the folder `nearby`/weights where it exists (machines without internet), else a download.
        alpha: width of the network.
        nearby: usually the folder of the manifest.

    Raises:
        EncoderWeightsError: `weights` names a file that does not exist.
    """
    if weights is None:
        return None
    if weights == "imagenet":
        local = nearby / "weights" / file_name(alpha) if nearby is not None else None
        return str(local) if local is not None and local.is_file() else "imagenet"
    if not Path(weights).is_file():
        raise EncoderWeightsError(
            f"no encoder weights at {weights!r}. Give 'imagenet' (downloaded), null (random weights) or a .weights.h5 "
            "file"
        )
    return weights


def mobilenetv2(weights: str | None, alpha: float, size: int, name: str | None = None):  # noqa: ANN201 (a keras.Model)
    """`keras.applications.MobileNetV2` without its top, for RGB in [-1, 1] of (size, size, 3).

    Raises:
        EncoderWeightsError: the download failed; says what to do without internet.
    """
    from models.backend import keras

    build = keras().applications.MobileNetV2
    arguments = {"include_top": False, "alpha": alpha, "input_shape": (size, size, 3)}
    try:
        return build(weights=weights, **arguments)
    except Exception as error:
        if weights != "imagenet":
            raise
        raise EncoderWeightsError(
            f"the ImageNet weights of MobileNetV2 {alpha} could not be downloaded ({error}). Without internet, put "
            f"{file_name(alpha)} into a folder `weights` beside the manifest, give its path as encoder_weights, "
            "or set encoder_weights to null to start from random weights"
        ) from error
