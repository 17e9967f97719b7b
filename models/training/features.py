"""Pooled features of films that passed through an encoder, kept by content: a training of the head alone reads them.

The name of a file is a hash of all that its features depend on: the network up to "pool" with its weights, the films'
pixels, the augmentation, the order of the films. So trainings that share a folder share features, whatever else differs
between them (labels, weights of the films, penalties), and a changed encoder never finds those of another.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import logging
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.data.files import sweep
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.gradcam import POOL
from cxr_pipeline.models.training.checkpoints import write_whole
from cxr_pipeline.models.training.errors import full_disk_named

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.data.batches import Batches

log = logging.getLogger("cxr.train")

_DAY = 86_400.0  # seconds
_ROWS = 256  # films hashed at once


class FeatureCache:
    """Features in a folder.

    Args:
        folder: made if needed; may be shared by trainings.
        key: what `Batches.encode` depends on, as text: a function cannot be hashed.
    """

    def __init__(self, folder: Path, key: str = "") -> None:
        self.folder, self.key = folder, key

    def features(
        self, model: K.Model, batches: Batches, number: int, on_batch: Callable[[int, int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of one pass over the films, read back where the folder has them.

        Args:
            model: a classifier of `models.classifier`, taken up to its layer "pool".
            batches: with the films as the input "crop".
            number: of the pass; each is augmented anew.
            on_batch: called with (batches done, batches in all), where they are made.

        Returns:
            Features (n, channels) float32, and the numbers of their films (n,) int64.

        Raises:
            TrainingError: the disk is full.
        """
        network = keras().Model(model.input, model.get_layer(POOL).output)
        path = self.folder / f"features-{self._digest(network, batches, number)}.npz"
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    return stored["x"], stored["film"]
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                log.warning("%s is damaged (%s) and is made again", path, error)
        x, film = _passed_through(network, batches, number, on_batch)
        with full_disk_named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder, idle=_DAY)  # not at once: another training may be writing its own
        memory = io.BytesIO()
        np.savez(memory, x=x, film=film)
        write_whole(path, memory.getvalue())
        return x, film

    def _digest(self, network: K.Model, batches: Batches, number: int) -> str:
        k = keras()
        digest = hashlib.sha256()
        order = (number, batches.seed, batches.batch_size, batches.shuffle, batches.replicas)
        augmentation = "" if batches.augmentation is None else _source(batches.augmentation)
        policy = k.config.dtype_policy().name
        for part in (self.key, order, augmentation, k.__version__, k.backend.backend(), policy, _drawing(network)):
            digest.update(repr(part).encode())
        for weight in network.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        for films in (batches.images, batches.masks):
            digest.update(repr((films.shape, str(films.dtype))).encode())
            for row in range(0, len(films), _ROWS):
                digest.update(np.ascontiguousarray(films[row : row + _ROWS]).tobytes())
        return digest.hexdigest()[:24]


def _drawing(network: K.Model) -> str:
    """The network as JSON, with its layers named by their order.

    Keras numbers layers without a name of their own by what the process built before: `split`, then `split_1`. Equal
    networks must not differ by that.
    """
    names: dict[str, str] = {}

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            if "config" in part and isinstance(part["config"], dict) and isinstance(part["config"].get("name"), str):
                names.setdefault(part["config"]["name"], f"layer {len(names)}")
            for value in part.values():
                collect(value)
        elif isinstance(part, list):
            for value in part:
                collect(value)

    def renamed(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: renamed(value) for key, value in part.items()}
        if isinstance(part, list):
            return [renamed(value) for value in part]
        return names.get(part, part) if isinstance(part, str) else part

    drawing = json.loads(network.to_json())
    collect(drawing)
    return json.dumps(renamed(drawing))


def _source(augmentation: Callable[..., Any]) -> str:
    """The code that augments, and the library's version: another of either gives other features."""
    import albumentations

    module = inspect.getmodule(augmentation)
    try:
        code = inspect.getsource(module) if module is not None else ""
    except OSError:
        code = ""
    return f"{augmentation.__qualname__} {albumentations.__version__} {code}"


def _passed_through(
    network: K.Model, batches: Batches, number: int, on_batch: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    batches.epoch = number
    x, film = [], []
    with ThreadPoolExecutor(3) as pool:
        for done, (inputs, *_) in enumerate(pool.map(batches.__getitem__, range(len(batches))), start=1):
            # fixed shapes and a direct call: predict() in a loop builds a new pipeline each time
            x.append(np.asarray(network(inputs["crop"], training=False)))
            film.append(batches.chosen(done - 1))
            if on_batch is not None:
                on_batch(done, len(batches))
    return np.concatenate(x), np.concatenate(film).astype(np.int64)
