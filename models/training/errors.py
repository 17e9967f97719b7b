"""What stops a training, and the disk that is full, in a sentence."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr_pipeline.configs.errors import CxrError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MARGIN = 1 << 20  # bytes to be left free beside what is written


class TrainingError(CxrError, RuntimeError):
    """A training that cannot start or go on; says why and what to do."""


def no_room(folder: Path, needed: int | None = None) -> TrainingError:
    """The error of a full disk: names the folder, its free space and what to do.

    Args:
        needed: bytes that were to be written, where that is known.
    """
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
    except OSError:
        free = "its free space is unknown"
    wanted = f"{needed / 1e6:.1f} MB are to be written, and " if needed is not None else ""
    return TrainingError(
        f"the disk of {folder} is full: {wanted}{free}. Make room, or raise the quota, and give the same command "
        "again: the training goes on where it was"
    )


def require_room(folder: Path, needed: int) -> None:
    """Refuse to write `needed` bytes into `folder` where they do not fit.

    Raises:
        TrainingError: see `no_room`.
    """
    if shutil.disk_usage(folder).free < needed + _MARGIN:
        raise no_room(folder, needed)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn what the system says of a full disk, or a spent quota, into a `TrainingError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_room(folder) from error
        raise
