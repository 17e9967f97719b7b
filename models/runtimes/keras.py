"""Keras itself, on the file that training wrote: needs TensorFlow, and runs on a GPU where there is one."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.models.backend import keras

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.models.runtimes import Network


MAX_BYTES = 2_000_000_000  # that a network's file may unfold to; the largest that ship unfold to 20 MB


class OversizedError(CxrError, ValueError):
    """A network's file that unfolds to more than any network has."""


def open_file(path: Path, threads: int | None = None) -> Network:
    """The network in a .keras file; see `models.runtimes.Runtime.open_file`. It takes the cores that it finds."""
    del threads
    from cxr_pipeline.models.serving import serving_model

    model = serving_model(load_keras(path))

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        # A direct call, not predict(): predict in a loop builds a new data pipeline each time.
        return {name: np.asarray(value) for name, value in model(batch, training=False).items()}

    return run


def load_keras(path: Path) -> K.Model:
    """The `keras.Model` in a .keras file, for inference or further training; needs no custom objects.

    Raises:
        OversizedError: it would unfold to more than `MAX_BYTES`.
    """
    _check_bytes(path)
    k = keras()
    import cxr_pipeline.models.training.losses  # noqa: F401  (registers our losses, which a compiled model names)

    return k.models.load_model(path, compile=False)


def _check_bytes(path: Path) -> None:
    """Refuse a bomb by its headers: of the archive's entries, and of the arrays in them, which are compressed again."""
    import h5py

    if not zipfile.is_zipfile(path):
        return  # Keras says what is wrong with it
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size <= MAX_BYTES:
            for entry in entries:
                if entry.filename.endswith(".h5"):
                    with archive.open(entry) as content, h5py.File(io.BytesIO(content.read())) as arrays:
                        size += _array_bytes(arrays)
    if size > MAX_BYTES:
        raise OversizedError(
            f"{path.name} unfolds to {size / 1e9:.1f} GB, over the limit of {MAX_BYTES / 1e9:g}. It is no network of "
            "this program: take the weights from where you trust them"
        )


def _array_bytes(arrays: Any) -> int:
    sizes: list[int] = []
    arrays.visititems(lambda _, item: sizes.append(int(getattr(item, "nbytes", 0))))
    return sum(sizes)
