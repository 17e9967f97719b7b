"""Networks of a chain as files of other programs, each held to the Keras model on a few films before it counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline import stages
from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import PART, part_name
from cxr_pipeline.models.runtimes import Network
from cxr_pipeline.models.store import KERAS_FILE, SERVING_FILE, bundle_of, find, load_keras, open_network

FILMS = 4  # synthetic ones, that the networks are compared on
# The largest difference allowed, as a share of the largest value of the same output (at least 1): float32 sums in
# another order differ by 1e-5 or less, a wrong conversion by far more.
TOLERANCE = 1e-3


class ExportError(CxrError, ValueError):
    """A network that cannot be exported, or does not answer like the Keras model once it is."""


@dataclass(frozen=True)
class Exported:
    """What was written. `differences` holds the largest absolute difference to the Keras model, by output."""

    stage: str
    path: Path
    differences: dict[str, float]


@dataclass(frozen=True)
class Format:
    """A registry entry.

    Attributes:
        name: of the file or folder for a stage, with {stage} in it.
        write: from the stage's bundle to the path. open: the written network, ready to call.
        note: what a program that opens the file has to know, to get the same answers.
    """

    name: str
    write: Callable[[Path, Path], None]
    open: Callable[[Path], Network]
    note: str = ""


def export(weights: str, to: str, out: Path) -> list[Exported]:
    """Write the network of every stage of a chain that has one, in another program's format.

    Args:
        weights: a shipped name, or a folder of trained weights.
        to: a name of `FORMATS`.
        out: folder for the files; made if needed.

    Raises:
        WeightsError: there are no such weights. ExportError: a package is missing, or a written network does not
            answer like the Keras model: it is not left there, and an earlier file stays.
    """
    if to not in FORMATS:
        raise ExportError(f"--to must be one of {', '.join(FORMATS)}. Received: {to!r}")
    chain, folder, done = stages.load_chain(weights), find(weights), []
    seen = _batches(chain, folder)
    out.mkdir(parents=True, exist_ok=True)
    for name, batch in seen.items():
        bundle = bundle_of(folder, name)
        path = out / FORMATS[to].name.format(stage=name)
        with _aside(path) as folder_aside:
            made = folder_aside / path.name
            try:
                FORMATS[to].write(bundle, made)
                written = FORMATS[to].open(made)
            except ModuleNotFoundError as error:
                raise ExportError(
                    f"--to {to} needs a package that is not installed ({error}). Install it first"
                ) from error
            differences = _compared(open_network(bundle, "keras"), written, batch, path.name)
            del written  # some systems move no file that is open
        done.append(Exported(name, path, differences))
    return done


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A folder beside `path`, whose files move to where `path` lies when the block ends without an error.

    Nothing is there before it is known to be right, and what lay there stays until then. `path` itself comes last, as
    some formats keep what it names in further files.
    """
    for left in path.parent.glob(f".{path.name}.*{PART}"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    folder = part_name(path)
    folder.mkdir()
    try:
        yield folder
        for made in sorted(folder.iterdir(), key=lambda one: one.name == path.name):
            target = path.parent / made.name
            if target.is_dir():  # no system puts a folder over another
                shutil.rmtree(target)
            os.replace(made, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _batches(chain: list[Any], folder: Path) -> dict[str, np.ndarray]:
    """What the network of each stage is given for a few synthetic films, float32 (N, H, W, C), by stage.

    Weights may refuse all of them, such as a segmentation that was trained on few films and finds no lungs in drawn
    ones. The networks behind it get the films whole then, so that none is left out.
    """
    from cxr_pipeline.data.radiograph import Radiograph
    from cxr_pipeline.data.synthetic import LABELS, make_film
    from cxr_pipeline.stages.base import Record

    films = [make_film(seed, label=LABELS[seed % len(LABELS)], size=(320, 352)) for seed in range(FILMS)]
    records = [Record(Radiograph(f.pixels, str(n), "", f.mask.shape, None, "png", 8, {})) for n, f in enumerate(films)]
    seen: dict[str, np.ndarray] = {}
    for stage in chain:
        network = getattr(stage, "network", None)
        if network is None:
            continue

        def look(batch: np.ndarray, name: str = stage.name, network: Network = network) -> dict[str, np.ndarray]:
            seen.setdefault(name, batch)
            return network(batch)

        stage.network = look
        records = stage.run(records)
        stage.network = network
        if stage.name not in seen:
            seen[stage.name] = _whole([film.pixels for film in films], bundle_of(folder, stage.name) / SERVING_FILE)
    return seen


def _whole(films: list[np.ndarray], path: Path) -> np.ndarray:
    """Films at the size and with the channels that the network in an ONNX file takes, float32 (N, H, W, C)."""
    import cv2
    import onnxruntime

    height, width, channels = onnxruntime.InferenceSession(path).get_inputs()[0].shape[1:]
    sized = np.stack([cv2.resize(film, (width, height)) for film in films]).astype(np.float32)
    return np.repeat(sized[..., None], channels, axis=-1)


def _compared(keras: Network, written: Network, batch: np.ndarray, name: str) -> dict[str, float]:
    wanted, found = keras(batch), written(batch)
    differences = {}
    for output, value in wanted.items():
        bound = TOLERANCE * max(1.0, float(np.abs(value).max()))
        difference = float(np.abs(found[output] - value).max()) if output in found else float("inf")
        differences[output] = difference
        if not difference <= bound:
            raise ExportError(
                f"{name} does not answer like the Keras model: {output} differs by {difference:.2g}, at most "
                f"{bound:.2g} is allowed. Nothing is written; take another format, and report this"
            )
    return differences


def _write_onnx(bundle: Path, path: Path) -> None:
    shutil.copyfile(bundle / SERVING_FILE, path)


def _write_openvino(bundle: Path, path: Path) -> None:
    import openvino

    openvino.save_model(openvino.Core().read_model(bundle / SERVING_FILE), path, compress_to_fp16=False)


def _write_saved_model(bundle: Path, path: Path) -> None:
    from cxr_pipeline.models.serving import serving_model

    serving = serving_model(load_keras(bundle / KERAS_FILE))
    serving(np.zeros((1, *serving.input.shape[1:]), np.float32))  # the exporter wants a model that has been called
    serving.export(path, format="tf_saved_model", verbose=False)


def _write_tflite(bundle: Path, path: Path) -> None:
    import tempfile

    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(bundle, Path(folder) / "saved")
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(Path(folder) / "saved")).convert())


def _open_runtime(runtime: str) -> Callable[[Path], Network]:
    def opened(path: Path) -> Network:
        from cxr_pipeline.models.runtimes import RUNTIMES

        return RUNTIMES[runtime].open_file(path)

    return opened


def _open_saved_model(path: Path) -> Network:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in loaded.serve(tf.constant(batch)).items()}

    run.loaded = loaded  # type: ignore[attr-defined]  # the function's variables live as long as the object does
    return run


def _open_tflite(path: Path) -> Network:
    import tensorflow as tf

    runner = tf.lite.Interpreter(str(path)).get_signature_runner()
    (name,) = runner.get_input_details()

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {key: np.array(value) for key, value in runner(**{name: batch}).items()}

    return run


FORMATS: dict[str, Format] = {
    "onnx": Format("{stage}.onnx", _write_onnx, _open_runtime("onnx")),
    "openvino": Format(
        "{stage}.xml",
        _write_openvino,
        _open_runtime("openvino"),
        "OpenVINO rounds to bfloat16 where the processor has it, which moves probabilities by hundredths. For these "
        'answers: core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
    ),
    "saved_model": Format("{stage}.saved_model", _write_saved_model, _open_saved_model),
    "tflite": Format("{stage}.tflite", _write_tflite, _open_tflite),
}
