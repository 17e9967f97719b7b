"""OpenVINO on the CPU, from the same ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from cxr_pipeline.models.runtimes import Network


def open_file(path: Path, threads: int | None = None) -> Network:
    """The network in an ONNX or OpenVINO file; see `models.runtimes.Runtime.open_file`."""
    import openvino

    core = openvino.Core()
    # In float32, as the other runtimes: on processors that have bfloat16 it would round to that.
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    names = [min(output.get_names(), key=len) for output in compiled.outputs]  # others are of the graph's inside

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        answer = compiled([batch], share_inputs=True)
        return {name: np.array(answer[number]) for number, name in enumerate(names)}

    return run
