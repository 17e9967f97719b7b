"""What makes a results folder safe to kill: files written whole or not at all, a lock, a journal of finished inputs."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_PART = ".part"


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file to write that takes the name `path` only when the block ends without an error.

    It is written under a temporary name in the same folder and renamed, so nobody ever sees half of it; the name is one
    that no other process takes, should two write the same file. `durable` also waits until the disk has it, so that not
    even a power cut takes it back.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
    try:
        with open(part, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_whole(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write `data` to `path`, whole or not at all."""
    with whole_file(path, durable=durable) as file:
        file.write(data)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed run left in `folder`."""
    with os.scandir(folder) as entries:
        leftovers = [e.path for e in entries if e.name.startswith(".") and e.name.endswith(_PART)]
    for leftover in leftovers:
        os.unlink(leftover)


class FolderLock:
    """One run a folder: a lock that the operating system lets go of when its process ends, however it ends.

    The file `.lock` stays behind, empty; it means nothing by itself. On file systems without locks nothing is locked.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process, or another run of this one, holds it."""
        self._file = open(self._path, "ab")  # noqa: SIM115  (held until release)
        try:
            _lock(self._file.fileno())
        except (BlockingIOError, PermissionError):
            self.release()
            return False
        except OSError:  # no locks on this file system
            pass
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def key_of(path: str | Path) -> str:
    """16 hex digits that name an input file whatever the working folder: a hash of its absolute path."""
    return hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:16]


class Journal:
    """Entries by key in a file of one JSON object a line; the last entry of a key counts.

    Only the places of the entries are kept in memory, so it stays small on any number of inputs. A last line that a
    kill tore, and any line that is no JSON, is dropped when the file is opened. Safe to use from several threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.RLock()
        self._places: dict[str, tuple[int, int]] = {}  # key -> offset, length; in the order of the file
        self._file: IO[bytes] | None = None
        path.touch()
        if self._index():
            self.rewrite(list(self._places))
        else:
            self._open()

    def _index(self) -> bool:
        """Find the entries; True where some line is none."""
        damaged, offset = False, 0
        with open(self._path, "rb") as file:
            for line in file:
                key = _key_in(line)
                if key is None:
                    damaged = True
                else:
                    self._place(key, offset, len(line))
                offset += len(line)
        return damaged

    def _place(self, key: str, offset: int, length: int) -> None:
        self._places.pop(key, None)  # so that the newest stands last
        self._places[key] = (offset, length)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def keys(self) -> list[str]:
        """The keys, in the order of their newest entries."""
        return list(self._places)

    def get(self, key: str) -> dict[str, Any] | None:
        """The newest entry of a key."""
        with self._guard:
            if key not in self._places:
                return None
            offset, length = self._places[key]
            with open(self._path, "rb") as file:
                file.seek(offset)
                return json.loads(file.read(length))

    def entries(self, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The entries of `keys`, one after the other."""
        with open(self._path, "rb") as file:
            for key in keys:
                offset, length = self._places[key]
                file.seek(offset)
                yield json.loads(file.read(length))

    def append(self, key: str, entry: dict[str, Any]) -> None:
        """Add an entry; it is in the file when this returns, or not at all if it raises OSError."""
        line = (json.dumps({"key": key, **entry}, separators=(",", ":")) + "\n").encode()
        with self._guard:
            offset = self._file.tell()
            try:
                self._file.write(line)
                self._file.flush()
            except OSError:
                self._abandon(offset)
                raise
            self._place(key, offset, len(line))

    def _abandon(self, offset: int) -> None:
        """After a failed write: cut what got through, so that a later line does not join a torn one."""
        self._close()
        with suppress(OSError):
            os.truncate(self._path, offset)
        self._open()

    def rewrite(self, keys: list[str]) -> None:
        """Put the file into the order of `keys` and drop all else, at once."""
        with self._guard:
            places: dict[str, tuple[int, int]] = {}
            self._close()  # an open file cannot be replaced on Windows
            with whole_file(self._path, durable=True) as new, open(self._path, "rb") as old:
                for key in keys:
                    offset, length = self._places[key]
                    old.seek(offset)
                    places[key] = (new.tell(), length)
                    new.write(old.read(length))
            self._places = places
            self._open()

    def _open(self) -> None:
        self._file = open(self._path, "r+b")  # noqa: SIM115  (held until close)
        self._file.seek(0, os.SEEK_END)

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what a full disk did not take; it is cut off or written again
                self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file."""
        self._close()


class JournalReader:
    """The entries of a journal in their order, for reading only: iterate as often as needed.

    Only the places of the entries are kept in memory. Torn lines, and entries that a newer one replaced, are left out.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        places: dict[str, int] = {}
        offset = 0
        with open(path, "rb") as file:
            for line in file:
                key = _key_in(line)
                if key is not None:
                    places.pop(key, None)  # so that the newest stands last, as in `Journal`
                    places[key] = offset
                offset += len(line)
        self._offsets = list(places.values())

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with open(self._path, "rb") as file:
            for offset in self._offsets:
                file.seek(offset)
                yield json.loads(file.readline())


def _key_in(line: bytes) -> str | None:
    if not line.endswith(b"\n"):
        return None
    try:
        key = json.loads(line)["key"]
    except (ValueError, KeyError, TypeError):
        return None
    return key if isinstance(key, str) else None
