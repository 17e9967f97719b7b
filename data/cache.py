"""Decoded arrays kept on disk, so that films are read and resized once and not in every epoch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from cxr_pipeline.data.files import PRIVATE, sweep, whole_files

_DAY = 86_400.0  # seconds


def kept_arrays(
    folder: Path,
    key: object,
    count: int,
    shapes: dict[str, tuple[int, ...]],
    rows: Callable[[], Iterable[tuple[int, dict[str, np.ndarray]]]],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arrays of uint8, one row per film, read back from `folder` where they have been made before.

    Args:
        folder: where the arrays lie; made if needed.
        key: anything JSON can hold that the arrays depend on; another key makes other arrays.
        count: number of films at the most.
        shapes: name and shape of one row of each array.
        rows: called only when the arrays must be made; yields (film's number, its row of each array). Films that
            cannot be used are simply not yielded.

    Returns:
        Read-only memory maps by name, each (kept, *shape) uint8, and the kept films' numbers (kept,) int64.

    Raises:
        OSError: the disk is full.
    """
    digest = hashlib.sha256(json.dumps([key, count, shapes], sort_keys=True, default=str).encode()).hexdigest()[:16]
    paths = {name: folder / f"{digest}-{name}.npy" for name in shapes}
    numbers_path = folder / f"{digest}-numbers.npy"
    if not numbers_path.is_file():  # renamed last: where it is, all of them are whole
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, idle=_DAY)  # not at once: another training may be making its own
        with whole_files(*paths.values(), numbers_path, mode=PRIVATE) as parts:
            arrays = {}
            for (name, shape), part in zip(shapes.items(), parts, strict=False):
                arrays[name] = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(max(count, 1), *shape))
                _reserve(part)
            numbers: list[int] = []
            for number, row in rows():
                for name, array in arrays.items():
                    array[len(numbers)] = row[name]
                numbers.append(number)
            for array in arrays.values():
                array.flush()
            del arrays  # some systems rename no file that is mapped
            with parts[-1].open("wb") as file:
                np.save(file, np.array(numbers, np.int64))
    kept = np.load(numbers_path)
    return {name: np.load(path, mmap_mode="r")[: len(kept)] for name, path in paths.items()}, kept


def _reserve(path: Path) -> None:
    """Have the disk give a file its whole size now: a full disk under a memory map kills the process without a word.

    Raises:
        OSError: the disk is full.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
