"""The one place that sets the environment which Keras and segmentation-models read at import.

`segmentation_models` 1.0.1 chooses its framework once, at import, from SM_FRAMEWORK; only "tf.keras"
works with Keras 3. Users never set it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

# What TensorFlow's C++ writes before its log level counts, such as "I0000 00:00:1795622183.73 9110 cudart_stub.cc:31]".
_NOISE = re.compile(rb"[IWE]\d{4} [\d:.]+ +\d+ \S+\] |WARNING: All log messages before absl::InitializeLog")


def keras() -> ModuleType:
    """Keras 3, imported late because it costs seconds, with what its backend says of itself kept off stderr.

    Raises:
        ModuleNotFoundError: the extra `train` is not installed.
    """
    if "keras" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # 2 lets through that there is no GPU, as an error
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        with _without_noise():
            _import()
    import keras as module

    return module


def _import() -> None:
    import keras as module

    if module.backend.backend() == "tensorflow":
        import tensorflow as tf
        from absl import logging as absl

        tf.get_logger().setLevel("ERROR")  # its warnings are for those who write the training loop: "retracing"
        absl.set_verbosity(absl.ERROR)
        tf.config.list_physical_devices()  # looks for GPUs, and says so where there are none


def _flush() -> None:
    if sys.stderr is not None:  # there is none in a program without a console
        sys.stderr.flush()


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Pass on what is written to the process's stderr, but for the lines of `_NOISE`.

    They are written below Python, to the file descriptor itself.
    """
    _flush()
    with tempfile.TemporaryFile() as kept:
        try:
            real = os.dup(2)
        except OSError:  # there is no stderr
            yield
            return
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(real, 2)
            kept.seek(0)
            rest = b"".join(line for line in kept if not _NOISE.match(line))
            with os.fdopen(real, "wb") as stderr:
                stderr.write(rest)


@contextlib.contextmanager
def training_scope(distribute: str, precision: str = "float32") -> Iterator[None]:
    """Where networks are built and trained: names counted afresh, precision set, weights mirrored where asked for.

    Args:
        precision: a Keras dtype policy; "auto" is "mixed_float16" (Micikevicius et al. 2018) where there is a GPU, and
            "float32" elsewhere, where it is faster.
        distribute: "none", or "mirrored" for all GPUs of this machine (all CPU devices where it has no GPU): each takes
            its part of every batch, and gradients are summed (`tf.distribute.MirroredStrategy`).

    Raises:
        ValueError: "mirrored" on another backend than TensorFlow.
    """
    k = keras()
    k.utils.clear_session()
    before = k.config.dtype_policy()
    k.config.set_dtype_policy(_policy(precision))
    try:
        with _devices(distribute):
            yield
    finally:
        k.config.set_dtype_policy(before)


def _policy(precision: str) -> str:
    if precision != "auto":
        return precision
    k = keras()
    if k.backend.backend() == "tensorflow":
        import tensorflow as tf

        return "mixed_float16" if tf.config.list_physical_devices("GPU") else "float32"
    return "mixed_float16" if any("gpu" in name for name in k.distribution.list_devices()) else "float32"


@contextlib.contextmanager
def _devices(distribute: str) -> Iterator[None]:
    k = keras()
    if distribute == "none":
        yield
        return
    if k.backend.backend() != "tensorflow":
        raise ValueError(
            f"distribute=mirrored needs the TensorFlow backend of Keras. Received: {k.backend.backend()!r}; set "
            "KERAS_BACKEND=tensorflow, or distribute=none"
        )
    with _mirrored().scope():
        yield


def replicas() -> int:
    """How many devices share each batch of a training, in the scope that `training_scope` opened."""
    if keras().backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


@lru_cache(maxsize=1)  # a second one in the same process counts its collectives from 0 again, and they collide
def _mirrored() -> Any:
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def segmentation_models() -> ModuleType:
    """The segmentation-models library on Keras 3."""
    keras()
    os.environ["SM_FRAMEWORK"] = "tf.keras"
    with contextlib.redirect_stdout(io.StringIO()):  # it greets on stdout, which belongs to our results
        import segmentation_models as module

    return module
