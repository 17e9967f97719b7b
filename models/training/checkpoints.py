"""Checkpoints of a training: the two newest are kept, each on the disk before it counts, and whole by its checksum.

A folder of checkpoints::

    settings               hash of all that the training depends on
    epoch-0006.checkpoint  everything to go on with after the sixth epoch
    epoch-0007.checkpoint

A checkpoint is one file: 8 bytes of a mark, the SHA-256 of the rest, and an .npz with the state as JSON beside its
arrays. It is put together in memory, so that a full disk stops it before anything is written, and never inside a
library that does not expect it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline.data.files import sweep, write_bytes
from cxr_pipeline.models.training.errors import TrainingError, full_disk_named, require_room

log = logging.getLogger("cxr.train")

KEPT = 2
_MARK = b"CXRCKPT1"
_NAME = re.compile(r"epoch-(\d{4,})\.checkpoint")
_STATE = "state"


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on with.

    Attributes:
        state: values that JSON holds.
        arrays: lists of arrays by name, such as a network's weights.
    """

    state: dict[str, Any]
    arrays: dict[str, list[np.ndarray]] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints in a folder, of one training."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        self.key = hashlib.sha256(settings.encode()).hexdigest()[:16]

    def open(self) -> None:
        """Make the folder, or see that it is of this training.

        Raises:
            TrainingError: it holds an unfinished training with other settings or data; or the disk is full.
        """
        with full_disk_named(self.folder.parent):
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)  # each kill may leave a checkpoint that is half written
            mark = self.folder / "settings"
            had = mark.read_text(encoding="ascii", errors="replace") if mark.is_file() else ""
            if had and had != self.key:
                raise TrainingError(
                    f"{self.folder.parent} holds an unfinished training with other settings or data. Give another "
                    f"--out, or remove {self.folder}"
                )
            if not had:  # before anything else is kept there: what is kept depends on the settings
                write_whole(mark, self.key.encode())

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, None where there is none; damaged ones are named and passed over."""
        for path in reversed(self._paths()):
            try:
                return _parsed(path.read_bytes())
            except (OSError, ValueError, KeyError) as error:
                log.warning("the checkpoint %s is damaged (%s): going on from the one before it", path, error)
        return None

    def keep(self, number: int, checkpoint: Checkpoint) -> None:
        """Write the checkpoint after `number` epochs; when it is on the disk, those before the last two go.

        Raises:
            TrainingError: the disk is full. What was kept before is still there.
        """
        write_whole(self.folder / f"epoch-{number:04d}.checkpoint", _content(checkpoint))
        for old in self._paths()[:-KEPT]:
            old.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Those in the folder, oldest first."""
        found = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted((int(match[1]), path) for match, path in found)]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there, whole and on the disk, or not at all.

    Raises:
        TrainingError: the disk is full.
    """
    require_room(path.parent, len(content))
    with full_disk_named(path.parent):
        write_bytes(path, content, durable=True)


def _content(checkpoint: Checkpoint) -> bytes:
    named: dict[str, Any] = {
        f"{name}/{n}": array for name, arrays in checkpoint.arrays.items() for n, array in enumerate(arrays)
    }
    state = {"state": checkpoint.state, "counts": {name: len(a) for name, a in checkpoint.arrays.items()}}
    memory = io.BytesIO()
    named[_STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    np.savez(memory, **named)
    content = memory.getvalue()
    return _MARK + hashlib.sha256(content).digest() + content


def _parsed(content: bytes) -> Checkpoint:
    head, rest = content[: len(_MARK) + 32], content[len(_MARK) + 32 :]
    if head != _MARK + hashlib.sha256(rest).digest():
        raise ValueError("its checksum does not fit" if head.startswith(_MARK) else "it is no checkpoint")
    with np.load(io.BytesIO(rest), allow_pickle=False) as stored:
        state = json.loads(stored[_STATE].tobytes())
        arrays = {name: [stored[f"{name}/{n}"] for n in range(count)] for name, count in state["counts"].items()}
    return Checkpoint(state["state"], arrays)
