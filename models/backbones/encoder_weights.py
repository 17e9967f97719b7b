"""Where ImageNet weights of an encoder come from: the internet, a folder, or a file."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
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


def require_weights(weights: str | None, network: str, alpha: float | None = None, nearby: Path | None = None) -> None:
    """Refuse weights that `application` could not load, before films are read and Keras is imported.

    Args:
        weights, network, alpha, nearby: see `resolve`.

    Raises:
        EncoderWeightsError: there are none for that width, the file is missing or of another network, or they would
            have to be downloaded and there is no way to the internet.
    """
    found = resolve(weights, network, alpha, nearby)
    if found is None:
        return
    if found != "imagenet":
        _require_filters(Path(found), network, alpha)
        return
    if alpha is not None and alpha not in _ALPHAS:
        raise EncoderWeightsError(
            f"there are ImageNet weights of {network} for the widths {', '.join(map(str, _ALPHAS))}. Received: "
            f"{alpha}; take one of these, or set {SETTINGS} to null"
        )
    if not _downloaded(network, alpha):
        try:
            urllib.request.urlopen(urllib.request.Request(_SOURCE, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError:
            return  # it answers
        except (OSError, ValueError) as error:
            raise _not_downloaded(network, alpha, error) from error


# What require_weights knows of the networks: widths, filters of the first convolution, and names of Keras' downloads.
_ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
_FIRST = {"MobileNetV2": (3, 3, 3), "DenseNet121": (7, 7, 3), "EfficientNetB0": (3, 3, 3)}
_DOWNLOADS = {"MobileNetV2": "mobilenet_v2_*_{alpha}_*_no_top.h5", "DenseNet121": "densenet121_*_notop.h5"}
_SOURCE = "https://storage.googleapis.com/tensorflow/keras-applications/"


def _filters(network: str, alpha: float | None) -> int:
    """Filters of the network's first convolution."""
    if network == "MobileNetV2":
        wanted = 32 * (alpha or 1.0)
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * wanted else rounded
    return {"DenseNet121": 64, "EfficientNetB0": 32}[network]


def _require_filters(path: Path, network: str, alpha: float | None) -> None:
    """Refuse a file that is no HDF5, or without a first convolution like the network's."""
    if network not in _FIRST:
        return
    import h5py

    kernels: list[tuple[int, ...]] = []
    try:
        with h5py.File(path) as file:
            file.visititems(lambda _, item: kernels.append(item.shape) if isinstance(item, h5py.Dataset) else None)
    except OSError as error:
        raise _not_of(path, network, alpha, f"it is no HDF5 file: {error}") from error
    expected = (*_FIRST[network], _filters(network, alpha))
    if expected not in kernels:
        raise _not_of(path, network, alpha, f"no first convolution of shape {expected} is in it")


def _downloaded(network: str, alpha: float | None) -> bool:
    """Whether Keras has the network's ImageNet weights on this machine."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    pattern = _DOWNLOADS.get(network, f"{network.lower()}*notop.h5").format(alpha=alpha)
    return any((home / "models").glob(pattern))


def _title(network: str, alpha: float | None) -> str:
    return network if alpha is None else f"{network} {alpha}"


def _not_of(path: Path | str, network: str, alpha: float | None, why: object) -> EncoderWeightsError:
    return EncoderWeightsError(
        f"{path} does not hold weights of {_title(network, alpha)} ({why}). Set {SETTINGS} to a file that does, or to "
        "'imagenet'"
    )


def _not_downloaded(network: str, alpha: float | None, why: object) -> EncoderWeightsError:
    return EncoderWeightsError(
        f"the ImageNet weights of {_title(network, alpha)} could not be downloaded ({why}). Without internet, put "
        f"{file_name(network, alpha)} into a folder `weights` beside the manifest, or set {SETTINGS} to its path, "
        "or to null to start from random weights. For lungs, segment.weights=tb takes the shipped ones instead"
    )


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
        if weights != "imagenet":
            raise _not_of(weights, network, alpha, error) from error
        raise _not_downloaded(network, alpha, error) from error
