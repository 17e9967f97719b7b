"""ONNX Runtime on an NVIDIA GPU by TensorRT, with CUDA and then the CPU for what TensorRT does not take."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_pipeline.models.runtimes.onnx_cuda import CUDA, CUDA_OPTIONS, open_on_gpu

if TYPE_CHECKING:
    from cxr_pipeline.models.runtimes import Network

TENSORRT = "TensorrtExecutionProvider"
# In float32, as scores must stay the same. What it builds of a network is not kept: this program has no folder for such
# things, and what was built is good for one kind of GPU and one version alone.
TENSORRT_OPTIONS = {"trt_fp16_enable": "0", "trt_int8_enable": "0", "trt_engine_cache_enable": "0"}


def open_file(path: Path, threads: int | None = None) -> Network:
    """The network in an ONNX file; see `models.runtimes.Runtime.open_file`."""
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # TensorRT's provider has no option for it; see `CUDA_OPTIONS`
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt_libs")  # TensorRT that came by pip: it loads its libraries
    needs = ", and TensorRT 10: pip install 'tensorrt-cu13<11' for CUDA 13. --runtime onnx-cuda does without TensorRT"
    return open_on_gpu("onnx-tensorrt", {TENSORRT: TENSORRT_OPTIONS, CUDA: CUDA_OPTIONS}, path, threads, needs)
