"""ONNX Runtime on an NVIDIA GPU by its CUDA provider, from the same ONNX file; it never runs on the CPU in secret."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_pipeline.models.runtimes import RuntimeUnusableError
from cxr_pipeline.models.runtimes.onnx import imported, options_of

if TYPE_CHECKING:
    import numpy as np

    from cxr_pipeline.models.runtimes import Network

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# TF32 rounds to 10 bits, which moves scores. Of cuDNN's ways the likeliest is taken: to try all of them takes seconds
# for each new size of a batch, and may end differently from run to run.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}

_LIBRARIES = {CUDA: "cuda", "TensorrtExecutionProvider": "tensorrt"}
_SILENT, _ERRORS = 4, 3  # of ONNX Runtime's log
_REPLACE = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'"


def open_file(path: Path, threads: int | None = None) -> Network:
    """The network in an ONNX file; see `models.runtimes.Runtime.open_file`."""
    return open_on_gpu("onnx-cuda", {CUDA: CUDA_OPTIONS}, path, threads)


def open_on_gpu(
    runtime: str, providers: Mapping[str, Mapping[str, str]], path: Path, threads: int | None, needs: str = ""
) -> Network:
    """The network in an ONNX file on providers of a GPU; a batch goes through it whole.

    Args:
        runtime: its name in `--runtime`, for errors.
        providers: options by name, the one that is to take what it can first. All have to start.
        path, threads: see `models.runtimes.Runtime.open_file`.
        needs: what they need beside CUDA and cuDNN, and how to install it.

    Raises:
        RuntimeUnusableError: one is missing, or does not start. ONNX Runtime itself would go on without it.
    """
    onnxruntime = imported()
    there = onnxruntime.get_available_providers()
    missing = [name for name in providers if name not in there]
    if missing:
        raise RuntimeUnusableError(
            f"--runtime {runtime} needs an ONNX Runtime with {' and '.join(missing)}. Found: ONNX Runtime "
            f"{onnxruntime.__version__} with {', '.join(there)}. Install the one for GPUs in place of the one that is "
            f"here: {_REPLACE}. Or stay on the CPU: --runtime onnx"
        )
    session, why = _opened(onnxruntime, providers, path, threads)
    started = [] if session is None else session.get_providers()
    unloaded = {name: _unloaded(onnxruntime, name) for name in providers if name not in started}
    if session is None or unloaded:
        stopped = [name for name, lacks in unloaded.items() if lacks] or list(unloaded)
        reason = "; ".join(dict.fromkeys(filter(None, unloaded.values()))) or why or "it does not say why"
        cuda = getattr(onnxruntime, "cuda_version", "") or "its own version"
        raise RuntimeUnusableError(
            f"--runtime {runtime}: {' and '.join(stopped)} did not start ({reason}). Found: ONNX Runtime "
            f"{onnxruntime.__version__}, which would go on without. It needs an NVIDIA GPU with its driver, and CUDA "
            f"({cuda}) with cuDNN: pip install 'onnxruntime-gpu[cuda,cudnn]'{needs}. Or stay on the CPU: --runtime onnx"
        )
    (entry,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {entry.name: batch}), strict=True))

    return run


def _opened(
    onnxruntime: Any, providers: Mapping[str, Mapping[str, str]], path: Path, threads: int | None
) -> tuple[Any, str]:
    """The session, with the providers that started; None, with the reason, where it cannot be opened for them.

    Raises:
        Exception: the file is damaged, as it cannot be opened on the CPU either.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        getattr(onnxruntime, "preload_dlls", lambda: None)()  # CUDA and cuDNN that came by pip
    onnxruntime.set_default_logger_severity(_SILENT)  # or it tells on stderr, in colours, what our error says
    try:
        return _session(onnxruntime, path, threads, [*providers.items(), (CPU, {})]), ""
    except Exception as error:
        _session(onnxruntime, path, threads, [(CPU, {})])
        said = " ".join(str(error).split())
        failure = re.search("CUDA failure [^;]*", said)  # behind names of functions of several lines
        return None, failure.group().strip() if failure else said
    finally:
        onnxruntime.set_default_logger_severity(_ERRORS)


def _session(onnxruntime: Any, path: Path, threads: int | None, providers: list[Any]) -> Any:
    # Else it goes over to the CPU where a provider fails: on opening, and in the midst of a run. Of the two ways to
    # forbid it, 1.20 knows the second alone.
    session = onnxruntime.InferenceSession(str(path), options_of(threads), providers=providers, enable_fallback=0)
    session.disable_fallback()
    return session


def _unloaded(onnxruntime: Any, provider: str) -> str:
    """Why the library of a provider cannot be loaded, such as which other it lacks; empty where it can."""
    start, end = ("", ".dll") if sys.platform == "win32" else ("lib", ".so")
    name = f"{start}onnxruntime_providers_{_LIBRARIES[provider]}{end}"
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / name))
    except OSError as error:
        return str(error)
    return ""
