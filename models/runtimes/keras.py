"""Keras itself, on the file that training wrote: needs TensorFlow, and runs on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr_pipeline.models.backend import keras

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.models.runtimes import Network


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
    """The `keras.Model` in a .keras file, for inference or further training; needs no custom objects."""
    k = keras()
    import cxr_pipeline.models.training.losses  # noqa: F401  (registers our losses, which a compiled model names)

    return k.models.load_model(path, compile=False)
