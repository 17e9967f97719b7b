"""ONNX Runtime on the CPU: what a run uses unless another runtime is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.models.runtimes import RuntimeUnusableError

if TYPE_CHECKING:
    from cxr_pipeline.models.runtimes import Network


def imported() -> Any:
    """The module `onnxruntime`.

    Raises:
        ModuleNotFoundError: it is not installed.
        RuntimeUnusableError: only a part of it is.
    """
    # Its Linux package has telemetry that is on unless switched off, and leaves a file .ses in the temporary folder
    # (seen in 1.31.1).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    if not hasattr(onnxruntime, "InferenceSession"):
        raise RuntimeUnusableError(
            "of ONNX Runtime only a part is here: its packages onnxruntime and onnxruntime-gpu lie in one folder, and "
            "to remove one takes files of the other. Install one anew: pip uninstall -y onnxruntime onnxruntime-gpu, "
            "then pip install onnxruntime"
        )
    return onnxruntime


def options_of(threads: int | None) -> Any:
    """The options of a session that takes so many cores; None: all."""
    options = imported().SessionOptions()
    options.log_severity_level = 3
    # Threads that wait for the next step must not spin: those that read and write need the cores. 200 films, 4
    # cores: 36 s of processor time with it, 20 s without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def open_file(path: Path, threads: int | None = None) -> Network:
    """The network in an ONNX file; see `models.runtimes.Runtime.open_file`."""
    session = imported().InferenceSession(str(path), options_of(threads), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        # One by one, the maps of a film stay in the processor's cache: the lungs take 7.1 ms a film, and 9.8 by eights.
        answers = [session.run(names, {entry.name: batch[n : n + 1]}) for n in range(max(1, len(batch)))]
        return {name: np.concatenate(parts) for name, *parts in zip(names, *answers, strict=True)}

    return run
