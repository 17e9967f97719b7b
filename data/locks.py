"""Folders that one process holds, temporary folders that the next start removes, processes that end with their parent.

All of it holds whoever is killed: the operating system gives a lock back when its process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cxr_pipeline.configs.errors import CxrError

TEMPORARY = "cxr-"  # how the temporary folders of this program start


class LockError(CxrError, OSError):
    """The lock file of a folder is none; says what to do."""

    def __str__(self) -> str:
        return str(self.args[0])


class FolderLock:
    """One process a folder: a lock that the operating system lets go of when its process ends.

    The file `.lock` stays behind, empty; it means nothing by itself. On file systems without locks nothing is locked.

    Args:
        folder: exists when the lock is taken.
        mode: permissions of the file; who may not read it cannot take the lock.
    """

    def __init__(self, folder: Path, mode: int = 0o600) -> None:
        self._path, self._mode = folder / ".lock", mode
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process, or another lock of this one, holds it.

        Raises:
            LockError: the lock file is a link, a pipe or a device.
            OSError: it cannot be made.
        """
        # Never through a link, which could lie anywhere, and never waiting, as opening a pipe would.
        flags = os.O_RDWR | os.O_CREAT
        for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
            flags |= getattr(os, name, 0)
        if self._path.is_symlink():
            raise self._wrong()
        try:
            descriptor = os.open(self._path, flags, self._mode)
        except PermissionError:  # a folder that may only be read, with the lock of whoever owns it
            descriptor = os.open(self._path, flags & ~(os.O_RDWR | os.O_CREAT) | os.O_RDONLY)
        except OSError:
            if self._path.is_symlink() or not self._path.is_file():
                raise self._wrong() from None
            raise
        self._descriptor = descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self.release()
            raise self._wrong()
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError):
            self.release()
            return False
        except OSError:  # no locks on this file system
            pass
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _wrong(self) -> LockError:
        return LockError(
            f"{self._path} is a link, a pipe or a device, which this program never makes. Remove it, or choose "
            "another folder"
        )


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """A folder for one process, for its user alone, deleted at the end; what killed processes left is deleted first.

    Args:
        what: part of its name, such as "web".
    """
    sweep_temporary()
    folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{what}-"))
    lock = FolderLock(folder)
    try:
        lock.acquire()
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def sweep_temporary() -> None:
    """Delete this user's temporary folders of processes that were killed: those whose lock nobody holds.

    A folder that has no lock yet may be one that is being made, and stays for an hour.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*-*"):
        with suppress(OSError):
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or (hasattr(os, "getuid") and about.st_uid != os.getuid()):
                continue
            if not (folder / ".lock").exists() and _age(about.st_mtime) < 3600:
                continue
            lock = FolderLock(folder)
            if lock.acquire():
                lock.release()
                shutil.rmtree(folder, ignore_errors=True)


def _age(then: float) -> float:
    import time

    return time.time() - then


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when its parent ends, however that ends. Linux alone; elsewhere nothing.

    To be called by the child, at its start, from the thread that lives as long as the child. On Linux the signal comes
    when the thread of the parent that started the child ends, so start helpers from a thread that lives on.

    Args:
        parent: process id of the parent, where the child was told it; a parent that ended before this call is seen.
    """
    if not sys.platform.startswith("linux"):
        return
    set_death_signal = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
