"""The journal of finished inputs: what a killed or repeated run goes on from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cxr_pipeline.data.files import PRIVATE, open_regular, whole_file
from cxr_pipeline.data.files import sweep as sweep
from cxr_pipeline.data.locks import FolderLock as FolderLock
from cxr_pipeline.data.names import printable

_log = logging.getLogger("cxr.results")
_NAMED = 20  # damaged lines that a warning names one by one


def parse_entry(line: bytes) -> dict[str, Any]:
    """See `results.entries.parse_entry`: imported when there is a line, for pydantic costs a new run 0.1 s."""
    from cxr_pipeline.results.entries import parse_entry as parse

    return parse(line)


def key_of(path: str | Path) -> str:
    """16 hex digits that name an input file whatever the working folder: a hash of its absolute path."""
    return hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:16]


class Journal:
    """Entries by key in a file of one JSON object per line; the last entry of a key counts.

    Only the places of the entries are kept in memory, so it stays small on any number of inputs. A last line that a
    kill tore is dropped when the file is opened; so is any other line that is no entry, with a warning that names its
    film, which then is judged again. Safe to use from several threads.

    Args:
        path: the file; made where it does not exist.
        parse: gives the entry of a line, or raises ValueError.
        mode: permissions of the file.

    Raises:
        OSError: the file cannot be read or written, or is no regular file.
    """

    def __init__(
        self, path: Path, *, parse: Callable[[bytes], dict[str, Any]] = parse_entry, mode: int = PRIVATE
    ) -> None:
        self._path, self._parse, self._mode = path, parse, mode
        self._guard = threading.RLock()
        self._places: dict[str, tuple[int, int]] = {}  # key -> offset, length; in the order of the file
        self._file: IO[bytes] | None = None
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        if self._index():
            self.rewrite(list(self._places))
        else:
            self._open()

    def _index(self) -> bool:
        """Find the entries; True where some line is none."""
        damaged: list[tuple[int, bytes]] = []
        offset, films = 0, dict[str, str]()
        with open_regular(self._path) as file:
            for number, line in enumerate(file, 1):
                entry = _parsed(line, self._parse)
                film = (entry or {}).get("row", {}).get("id")
                if entry is None or (films.setdefault(film, entry["key"]) != entry["key"] and film is not None):
                    damaged.append((number, line))
                else:
                    self._place(entry["key"], offset, len(line))
                offset += len(line)
        _warn(self._path, [one for one in damaged if one[1].endswith(b"\n")])
        return bool(damaged)

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

    def __getitem__(self, key: str) -> dict[str, Any]:
        entry = self.get(key)
        if entry is None:
            raise KeyError(key)
        return entry

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
            if self._file is None:
                raise ValueError(f"{self._path} is closed")
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
            with whole_file(self._path, durable=True, mode=self._mode) as new, open(self._path, "rb") as old:
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

    Only the places of the entries are kept in memory. Torn and damaged lines, and entries that a newer one replaced,
    are left out.

    Attributes:
        damaged: how many whole lines are no entries.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """

    def __init__(self, path: Path, *, parse: Callable[[bytes], dict[str, Any]] = parse_entry) -> None:
        self._path = path
        self.damaged = 0
        self._places: dict[str, int] = {}
        offset = 0
        with open_regular(path) as file:
            for line in file:
                entry = _parsed(line, parse)
                if entry is not None:
                    self._places.pop(entry["key"], None)  # so that the newest stands last, as in `Journal`
                    self._places[entry["key"]] = offset
                elif line.endswith(b"\n"):
                    self.damaged += 1
                offset += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with open(self._path, "rb") as file:
            for offset in self._places.values():
                file.seek(offset)
                yield json.loads(file.readline())

    def keys(self) -> list[str]:
        """The keys, in the order of the entries."""
        return list(self._places)

    def get(self, key: str) -> dict[str, Any] | None:
        """The newest entry of a key; None where there is none."""
        if key not in self._places:
            return None
        with open(self._path, "rb") as file:
            file.seek(self._places[key])
            return json.loads(file.readline())

    def __getitem__(self, key: str) -> dict[str, Any]:
        entry = self.get(key)
        if entry is None:
            raise KeyError(key)
        return entry


def any_entry(line: bytes) -> dict[str, Any]:
    """An object with a text `key`, from its line: the least that a journal needs.

    Raises:
        ValueError: the line is none.
    """
    entry = json.loads(line)
    if not line.endswith(b"\n") or not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        raise ValueError("no entry")
    return entry


def _parsed(line: bytes, parse: Callable[[bytes], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return parse(line)
    except (ValueError, RecursionError):
        return None


def _warn(path: Path, damaged: list[tuple[int, bytes]]) -> None:
    """Name the films whose lines are no entries, as far as the lines still tell."""
    if not damaged:
        return
    named = []
    for number, line in damaged[:_NAMED]:
        found = re.search(rb'"id":\s*"([^"\\]{1,200})"', line)
        film = f" (film {printable(found[1].decode('utf-8', 'replace'))})" if found else ""
        named.append(f"{number}{film}")
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    shown = printable(str(path))
    _log.warning("%s: damaged lines are left out, and their films judged again: %s%s", shown, ", ".join(named), more)
