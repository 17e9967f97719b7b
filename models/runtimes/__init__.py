"""What can run a network: one file each. This registry is light: a runtime is imported where a network is opened.

A runtime's module has a function ``open_file(path, threads)`` that returns a `Network`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_pipeline.configs.errors import CxrError

if TYPE_CHECKING:
    import numpy as np

# A network, whatever runs it: a float32 batch (N, H, W, C) in, its outputs by name out, each (N, ...) float32.
Network = Callable[["np.ndarray"], "dict[str, np.ndarray]"]

KERAS_FILE, SERVING_FILE = "model.keras", "model.onnx"


class RuntimeUnusableError(CxrError, RuntimeError):
    """A runtime that is installed, or half installed, and cannot work on this machine."""


@dataclass(frozen=True)
class Runtime:
    """A registry entry: its module, the file of a bundle that it runs, and the package that it needs.

    `extra`: of this package, that installs it; empty for the base installation. `late`: whether it may open a network
    in another thread than the one that uses it, see `models.late`. `shared`: whether several threads may call one
    network at once. `gpu`: whether it runs on a GPU where there is one. `replaced`: another package that serves as well
    where it is installed in place of `package`.
    """

    module: str
    file: str
    package: str
    extra: str = ""
    late: bool = True
    shared: bool = False
    gpu: bool = False
    replaced: str = ""

    def open_file(self, path: Path, threads: int | None = None) -> Network:
        """The network in a file, ready to call.

        Args:
            path: a file of the kind that `file` names.
            threads: cores to take; None: all.

        Raises:
            ModuleNotFoundError: the runtime is not installed.
            RuntimeUnusableError: it cannot work on this machine.
            Exception: anything else that it raises where the file is damaged.
        """
        module = importlib.import_module(f"cxr_pipeline.models.runtimes.{self.module}")
        network: Network = module.open_file(path, threads)
        return network


RUNTIMES: dict[str, Runtime] = {
    "onnx": Runtime("onnx", SERVING_FILE, "onnxruntime", shared=True, replaced="onnxruntime-gpu"),
    # No extra: pip would install it beside onnxruntime, and both write into the same folder.
    "onnx-cuda": Runtime("onnx_cuda", SERVING_FILE, "onnxruntime-gpu", shared=True, gpu=True),
    "onnx-tensorrt": Runtime("onnx_tensorrt", SERVING_FILE, "onnxruntime-gpu", shared=True, gpu=True),
    "openvino": Runtime("openvino", SERVING_FILE, "openvino", "openvino"),
    "keras": Runtime("keras", KERAS_FILE, "tensorflow", "train", late=False, gpu=True),
}
