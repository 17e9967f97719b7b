"""The one place that sets the environment which Keras and segmentation-models read at import.

`segmentation_models` 1.0.1 chooses its framework once, at import, from SM_FRAMEWORK; only "tf.keras"
works with Keras 3. Users never set it.
"""

from __future__ import annotations

import contextlib
import io
import os
from types import ModuleType


def keras() -> ModuleType:
    """Keras 3, imported late because it costs seconds; logs of the backend kept to errors."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import keras as module

    return module


def segmentation_models() -> ModuleType:
    """The segmentation-models library on Keras 3."""
    keras()
    os.environ["SM_FRAMEWORK"] = "tf.keras"
    with contextlib.redirect_stdout(io.StringIO()):  # it greets on stdout, which belongs to our results
        import segmentation_models as module

    return module
