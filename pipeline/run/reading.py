"""The films of a run, read ahead in threads: within a limit of time each, and of pixels that wait."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cxr_pipeline.data.radiograph import Radiograph, RadiographError
from cxr_pipeline.results.outputs import logged
from cxr_pipeline.run.inputs import Input
from cxr_pipeline.run.isolation import IsolatedReader, Tries
from cxr_pipeline.stages.apply import crashed
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.films import unread

# Pixels that may wait between two steps of a run. A film in work takes 4 to 9 bytes a pixel: three steps, under 1 GB
# together, and on films of 512 px this never binds.
PIXELS = 40_000_000


class Desk(Protocol):
    """Where films are looked up and saved: `ResultsFolder`, or what stands in for it in another process."""

    def done(self, key: str, sha256: str) -> dict[str, Any] | None:
        """The entry of an input that needs nothing more."""

    def mask(self, key: str, sha256: str, size: tuple[int, int]) -> np.ndarray | None:
        """The mask (H, W) uint8 0/1 of an unchanged input whose lungs were found before."""

    def save(self, key: str, image: str, sha256: str, record: Record, *, trace: str = "") -> dict[str, str]:
        """Keep what became of an input; returns its row."""


@dataclass
class RunItem:
    """An input between two steps."""

    item: Input
    sha256: str = ""
    record: Record | None = None  # None: it was done before
    done: dict | None = None
    mask: np.ndarray | None = None  # found by an earlier, shorter chain
    trace: str = ""

    @property
    def held(self) -> Record:
        """The record of an input that was not done before."""
        assert self.record is not None, "the input was done before"
        return self.record

    @property
    def pixels(self) -> int:
        """How many are held in memory, or what takes as much: masks have the film's own size in any case."""
        film = self.record.radiograph if self.record is not None else None
        if film is None:
            return 0
        return film.pixels.size if film.small is None else film.size[0] * film.size[1] // 2


class Reading:
    """Iterates over the inputs as read, in their order, some ahead of need: fewer where films are large.

    Args:
        inputs: to read.
        ids: their names in the run, by key.
        folder: tells what is done already.
        reader: reads a film; None for `data.radiograph.read` in processes of its own.
        workers: threads.
        ahead: films read ahead at the most.
        limit: seconds that reading one may take; a film that takes longer comes out as failed.
        masks: whether a mask that an earlier, shorter chain found is wanted.
        timed: a context that counts the seconds of a block.
        how: what else the reader is told, see `data.radiograph.read`; a reader of somebody's own need not know it.
        tries: remembers what is being read, so that a film that ends the whole process is known afterwards.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        ids: dict[str, str],
        folder: Desk,
        reader: Callable[..., Radiograph] | None,
        *,
        workers: int,
        ahead: int,
        limit: float,
        masks: bool,
        timed: Callable[[], AbstractContextManager[None]],
        how: Mapping[str, Any],
        tries: Tries | None = None,
    ) -> None:
        self.inputs, self.ids, self.folder = inputs, ids, folder
        self.workers, self.ahead, self.limit, self.masks, self.timed = workers, ahead, limit, masks, timed
        self.own_reader: IsolatedReader | None = None
        if reader is None:
            reader = self.own_reader = IsolatedReader(tries=tries)
        self.reader = reader
        self.how = how
        self.reading_since: dict[str, float] = {}
        self.readers = ThreadPoolExecutor(workers, "cxr-read")

    def close(self) -> None:
        """Let go of the threads, without waiting for one that hangs."""
        self.readers.shutdown(wait=False, cancel_futures=True)
        if self.own_reader is not None:
            self.own_reader.close()

    def __iter__(self) -> Iterator[RunItem]:
        waiting: deque[tuple[Input, Future[RunItem]]] = deque()
        source = iter(self.inputs)
        recent: deque[int] = deque([PIXELS // self.workers], maxlen=32)  # so that it starts with a film a thread
        exhausted = False
        while waiting or not exhausted:
            ahead = max(1, min(self.ahead, PIXELS // max(1, *recent)))
            while len(waiting) < ahead and not exhausted:
                item = next(source, None)
                if item is None:
                    exhausted = True
                else:
                    waiting.append((item, self.readers.submit(self._read, item)))
            if waiting:
                film = self._arrived(*waiting.popleft(), waiting)
                if film.pixels:
                    recent.append(film.pixels)
                yield film

    def _arrived(self, item: Input, coming: Future[RunItem], waiting: deque[tuple[Input, Future[RunItem]]]) -> RunItem:
        """A film once it is read, or as failed where that takes too long: its thread is left to itself then."""
        limit = self.limit
        while True:
            try:
                return coming.result(timeout=min(1.0, limit))
            except NotYet:
                begun = self.reading_since.get(item.key)
            if begun is not None and time.monotonic() - begun > limit:
                break
        self.readers.shutdown(wait=False)  # a thread of it hangs; what has not begun goes to new ones
        self.readers = ThreadPoolExecutor(self.workers, "cxr-read")
        for number, (other, future) in enumerate(waiting):
            if future.cancel():
                waiting[number] = (other, self.readers.submit(self._read, other))
        error = f"{Path(item.path).name}: reading it took longer than {limit:g} s. Check the disk, or export it again"
        return RunItem(item, record=unread(self.ids[item.key], error))

    def _read(self, item: Input) -> RunItem:
        self.reading_since[item.key] = time.monotonic()
        try:
            return self._read_now(item)
        finally:
            self.reading_since.pop(item.key, None)

    def _read_now(self, item: Input) -> RunItem:
        with self.timed():
            name = self.ids[item.key]
            if item.problem:
                return RunItem(item, record=unread(name, f"{item.path}: {item.problem}"))
            if is_device(item.path):
                error = f"{Path(item.path).name}: this is a device or a pipe. Give a file"
                return RunItem(item, record=unread(name, error))
            sha256 = hash_or_nothing(item)  # without one the reader says why
            done = self.folder.done(item.key, sha256) if sha256 else None
            if done is not None:
                return RunItem(item, sha256, done=done)
            try:
                record = Record(self.reader(item.path, id=name, **self.how))
                if item.note:
                    record.film.meta["warnings"] = [*record.film.meta.get("warnings", ()), item.note]
            except RadiographError as error:
                return RunItem(item, sha256, unread(name, error))
            except Exception as error:
                record, trace = logged(crashed(unread(name, ""), "reading", error))
                return RunItem(item, sha256, record, trace=trace)
            mask = None
            if self.masks:
                mask = self.folder.mask(item.key, sha256, record.film.size)
            return RunItem(item, sha256, record, mask=mask)


def is_device(path: str | Path) -> bool:
    """Whether a path leads to what is neither file nor folder: reading it could take for ever."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path)
    except (OSError, ValueError):
        return False


def hash_or_nothing(item: Input) -> str:
    """SHA-256 of an input, as 64 hex digits; "" where it cannot be read."""
    if item.problem or is_device(item.path):
        return ""
    try:
        return file_hash(item.path)
    except (OSError, ValueError):
        return ""


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
