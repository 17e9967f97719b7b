"""The weights store: bundles found by name or path, opened without TensorFlow, checked by hash.

A chain of weights is a folder with one bundle a stage::

    tb/
      segment/    model.keras  model.onnx  card.json  quality.npz
      classify/   model.keras  model.onnx  card.json
      localize/   card.json                              (decisions only: it has no network of its own)

`card.json` holds `decisions` (all that running the stage obeys: classes, input size, thresholds, temperature),
`training` (sources, counts, split hash, settings), `figures` (measured, with intervals) and `licence`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline.configs.errors import CxrError

SHIPPED = Path(__file__).parent / "weights"
KERAS_FILE, SERVING_FILE, CARD_FILE = "model.keras", "model.onnx", "card.json"
QUALITY_FILE = "quality.npz"  # of the segmentation: what `stages.quality` compares films with
LICENCE = "MIT for the weights' files; the training images keep their own terms, see docs/model-card.md"

# What can run a network, and the file that it takes.
RUNTIMES = {"onnx": SERVING_FILE, "openvino": SERVING_FILE, "keras": KERAS_FILE}

# A network, whatever runs it: a float32 batch (N, H, W, C) in, its outputs by name out.
Network = Callable[[np.ndarray], dict[str, np.ndarray]]


class WeightsError(CxrError, ValueError):
    """Weights that are missing, incomplete or damaged."""


def shipped() -> list[str]:
    """Names of the chains that come with the package."""
    return sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.is_dir() else []


def find(weights: str | Path) -> Path:
    """The folder of a chain, by the name of a shipped one or by path.

    Raises:
        WeightsError: neither exists; names what does.
    """
    named = SHIPPED / str(weights)
    folder = named if str(weights) in shipped() else Path(weights)
    if not folder.is_dir():
        raise WeightsError(
            f"no weights {str(weights)!r}. Give one of the shipped names ({', '.join(shipped()) or 'none'}) "
            "or the folder that `pipeline train --out` made"
        )
    return folder


def bundle_of(chain: Path, stage: str) -> Path:
    """The bundle of one stage in a chain's folder.

    Raises:
        WeightsError: the stage has not been trained there.
    """
    folder = chain / stage
    if not (folder / CARD_FILE).is_file():
        raise WeightsError(
            f"{chain} holds no trained {stage!r} stage. Train it: pipeline train --stage {stage} --out {chain}"
        )
    return folder


def read_card(bundle: Path) -> dict[str, Any]:
    """`card.json` of a bundle.

    Raises:
        WeightsError: it is missing or not JSON.
    """
    try:
        card = json.loads((bundle / CARD_FILE).read_text(encoding="utf-8"))
        card["decisions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{bundle / CARD_FILE} cannot be read as a card ({error}). Train the stage again") from error
    return card


def write_card(bundle: Path, card: dict[str, Any]) -> None:
    """Write `card.json`, whole or not at all."""
    write_text(bundle / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def fingerprint(bundle: Path) -> str:
    """16 hex digits over all that decides what the stage answers: serving graph, quality file, the card's decisions."""
    digest = hashlib.sha256(json.dumps(read_card(bundle)["decisions"], sort_keys=True).encode())
    for path in (bundle / SERVING_FILE, bundle / QUALITY_FILE):
        if path.is_file():
            stat = path.stat()
            digest.update(_file_hash(str(path), stat.st_size, stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=32)
def _file_hash(path: str, size: int, mtime: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def open_network(bundle: Path, runtime: str = "onnx", threads: int | None = None) -> Network:
    """The bundle's network, ready to call.

    Args:
        bundle: folder with the network's files.
        runtime: "onnx" and "openvino" run the serving file without TensorFlow, "keras" the Keras file.
        threads: cores for ONNX Runtime and OpenVINO; None lets them take all.

    Raises:
        WeightsError: the file is missing or damaged, or the runtime is unknown or not installed.
    """
    if runtime not in RUNTIMES:
        raise WeightsError(f"runtime must be one of {', '.join(RUNTIMES)}. Received: {runtime!r}")
    path = bundle / RUNTIMES[runtime]
    if not path.is_file():
        raise WeightsError(f"{path} is missing. Train the stage again, or use the other runtime")
    try:
        if runtime == "keras":
            return _keras(path)
        return _onnx(path, threads) if runtime == "onnx" else _openvino(path, threads)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"the runtime {runtime!r} is not installed ({error}). Install it: pip install 'cxr-pipeline[{runtime}]'"
        ) from error
    except Exception as error:
        raise WeightsError(f"{path} cannot be loaded ({type(error).__name__}: {error}). Is the file whole?") from error


def _onnx(path: Path, threads: int | None) -> Network:
    # Its Linux package has telemetry that is on unless told not to be, and leaves a file .ses in the temporary folder
    # (seen in 1.31.1).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait for the next step must not spin: those that read and write need the cores. 200 films, 4
    # cores: 36 s of processor time with it, 20 s without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {entry.name: batch}), strict=True))

    return run


def _openvino(path: Path, threads: int | None) -> Network:
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


def _keras(path: Path) -> Network:
    from cxr_pipeline.models.export import serving_model

    model = serving_model(load_keras(path))

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        # A direct call, not predict(): predict in a loop builds a new data pipeline each time.
        return {name: np.asarray(value) for name, value in model(batch, training=False).items()}

    return run


def load_keras(path: Path) -> Any:
    """The `keras.Model` in a .keras file, for inference or further training; needs no custom objects."""
    from cxr_pipeline.models.backend import keras

    k = keras()
    import cxr_pipeline.models.training.losses  # noqa: F401  (registers our losses, which a compiled model names)

    return k.models.load_model(path, compile=False)
