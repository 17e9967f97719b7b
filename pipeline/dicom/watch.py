"""`pipeline watch`: a folder that an X-ray unit exports its films to."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cxr_pipeline.dicom.station import Station
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.inputs import Input, InputError, assign_ids, find_inputs

# How programs call a file that they are still writing; it counts when it is renamed.
_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".download", ".swp", ".lock")
_LOOK = 0.5  # seconds between two looks at the folder, and at least so many times what a look takes
_LAZY = 10
_REFRESH = 2.0  # seconds between two looks whether the tables are up to date
_BUSY = 60.0  # likewise while films keep coming
_AT_ONCE = 64  # films judged before the folder is looked at again
_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  # seconds to wait with a full disk

Shape = tuple[int, int, int]  # of a file: inode, size, time of change in ns

_log = logging.getLogger("cxr.dicom")


class Watcher:
    """Judges what is put into a folder, into a results folder like that of a run. Use as a context.

    The folder is looked at again and again, and not by notices of the system, which do not come from network drives.

    Args:
        chain: loaded.
        folder: films are looked for in it and below.
        out: the results folder.
        settle: seconds that a file must have been unchanged for.
        how: what `Station` takes beside.

    Raises:
        InputError: the folder is the results folder.
        ResultsError: the results folder belongs to another run.
    """

    def __init__(self, chain: Chain, folder: Path, out: Path, *, settle: float = 2.0, **options: Any) -> None:
        if os.path.realpath(folder) == os.path.realpath(out):
            raise InputError(
                f"{folder} is both the folder to watch and --out. Give a folder of its own for the results"
            )
        self.folder, self.out, self.settle = folder, out, settle
        self.station = Station(chain, out, **options)
        self._ids = self.station.folder.ids()
        self._seen: dict[str, tuple[Shape, float]] = {}  # path -> its shape, and since when it has it
        self._judged: dict[str, Shape] = {}
        self._stopping = threading.Event()
        self.problem = ""
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.station.close()

    def stop(self) -> None:
        """Have `run` return when the films in work are judged. Safe in a signal handler."""
        self._stopping.set()

    def run(self, *, until_empty: bool = False) -> None:
        """Look and judge until told to stop.

        Args:
            until_empty: end when everything that lies there is judged.
        """
        pause = _PAUSE
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                waiting, films = self._look()
                looked = time.monotonic() - begun
                self._judge(films[:_AT_ONCE])
                self.station.refresh(often=_BUSY if films else _REFRESH)
                self.problem, pause = "", _PAUSE
            except OSError as error:
                self.problem = f"{error.filename or self.out}: {error.strerror or error}"
                _log.error("%s. Films wait until there is room", self.problem)
                self._stopping.wait(pause)
                pause = min(_LONGEST_PAUSE, 2 * pause)
                continue
            if until_empty and not waiting and not films:
                return
            if len(films) <= _AT_ONCE:
                self._stopping.wait(max(_LOOK, _LAZY * looked))

    def _look(self) -> tuple[int, list[tuple[Input, Shape]]]:
        """How many files are not whole yet, and the films that are and have not been judged as they are."""
        now, waiting, films, seen = time.monotonic(), 0, [], {}
        for one in self._found():
            shape = _shape(one.path)
            if shape is None or self._judged.get(one.path) == shape:
                continue
            before, since = self._seen.get(one.path, (None, now))
            since = since if before == shape else now
            seen[one.path] = (shape, since)
            if now - since < self.settle or not _readable(one.path):
                waiting += 1
            else:
                films.append((one, shape))
        self._seen = seen
        return waiting, films

    def _found(self) -> Iterator[Input]:
        try:
            found = find_inputs([self.folder], out=self.out)
        except InputError:  # there is nothing yet
            return
        yield from (one for one in found if not one.problem and not one.path.lower().endswith(_UNFINISHED))

    def _judge(self, films: list[tuple[Input, Shape]]) -> None:
        if not films:
            return
        films = [(one, shape) for one, shape in films if _shape(one.path) == shape]
        inputs = [replace(one, note="") for one, _ in films]
        self._ids |= assign_ids(inputs, self._ids)
        self.station.judge(inputs, self._ids, self._finished)
        gone = [one.key for one, _ in films if not os.path.lexists(one.path) and not self._read(one)]
        if gone:  # renamed or taken away before they were read: no row says that they failed
            self.station.forget(gone)
        for one, shape in films:
            self._judged[one.path] = shape  # a file that changed meanwhile has another shape, and comes again

    def _read(self, one: Input) -> bool:
        entry = self.station.entry(one.key)
        return entry is not None and bool(entry["row"]["sha256"])

    def _finished(self, row: dict[str, str], already: bool) -> None:
        if not already:
            self.counts[row["status"]] += 1
            _log.info("%s: %s", row["id"], row["status"])


def _shape(path: str) -> Shape | None:
    try:
        about = os.stat(path)
    except OSError:  # it was renamed or taken away in between
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _readable(path: str) -> bool:
    """Whether the file can be opened and holds something: some systems keep others out of a file that is written."""
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False
