"""The steps of a run: threads read, judge in batches, and write, in queues that keep memory flat."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cxr_pipeline.about import cores
from cxr_pipeline.results.outputs import logged
from cxr_pipeline.run.inputs import Input
from cxr_pipeline.run.isolation import TriesFolder
from cxr_pipeline.run.reading import PIXELS, Desk, Reading, RunItem
from cxr_pipeline.stages.apply import apply
from cxr_pipeline.stages.base import Record

if TYPE_CHECKING:
    from cxr_pipeline.run.runner import Runner, Tally


class _Batch(NamedTuple):
    """Films that a thread judges."""

    films: list[RunItem]
    records: Future[list[Record]]


class Steps:
    """One call of `Runner.judge`: the queues between its steps.

    Batches are the same, and go to the writers in the same order, however many threads judge.
    """

    def __init__(
        self,
        runner: Runner,
        folder: Desk,
        inputs: Sequence[Input],
        ids: dict[str, str],
        tally: Tally,
    ) -> None:
        self.runner, self.folder, self.tally = runner, folder, tally
        self.workers = runner.workers or cores()
        self.reading = Reading(
            inputs,
            ids,
            folder,
            runner.reader,
            workers=self.workers,
            ahead=runner.batch_size + self.workers,
            limit=runner.seconds_a_film,
            masks=runner.stages[0].restorable,
            timed=lambda: runner.timed("read"),
            how=runner.how,
            tries=TriesFolder(Path(runner.out) / ".trying"),
        )
        self.judges = ThreadPoolExecutor(runner.judges, "cxr-judge") if runner.judges > 1 else None
        self.judging: deque[_Batch] = deque()
        self.writers = ThreadPoolExecutor(self.workers, "cxr-write")
        self.writing: deque[Future[dict[str, str]]] = deque()
        self.room = _Room(PIXELS, 2 * self.workers + runner.batch_size)
        self.judged = False

    def go(self) -> None:
        """Read, judge and write everything."""
        try:
            batch: list[RunItem] = []
            for film in self.reading:
                if film.done is not None:
                    self.tally.add(film.done["row"], already=True)
                elif not film.held.ok:
                    self._write(film)
                else:
                    batch.append(film)
                    # The first film alone, so that a person soon sees a result.
                    full = len(batch) == (self.runner.batch_size if self.judged else 1)
                    if full or sum(f.pixels for f in batch) >= PIXELS:
                        self._judge(batch)
                        batch = []
                self._pass_on()
            self._judge(batch)
            self._pass_on(wait=True)
        finally:
            self.reading.close()
            if self.judges is not None:
                self.judges.shutdown(wait=True, cancel_futures=True)
            self.writers.shutdown(wait=True, cancel_futures=True)

    def _judge(self, batch: list[RunItem]) -> None:
        """Have a batch judged: here, or by a thread that is free, which this waits for."""
        if not batch:
            return
        self.judged = True
        if self.judges is None:  # in this thread: a network may belong to the one that opened it
            self._judged(batch, self._records(batch))
            return
        while len(self.judging) >= self.runner.judges:
            self._pass_on_oldest()
        self.judging.append(_Batch(batch, self.judges.submit(self._records, batch)))

    def _records(self, batch: list[RunItem]) -> list[Record]:
        films, masks = [film.held for film in batch], [film.mask for film in batch]
        return apply(self.runner.stages, films, masks=masks, timed=self.runner.timed)

    def _judged(self, batch: list[RunItem], records: list[Record]) -> None:
        for film, record in zip(batch, records, strict=True):
            film.record, film.trace = logged(record)
            self._write(film)

    def _pass_on(self, *, wait: bool = False) -> None:
        """Give what is judged to the writers, and count what is written; all of it, if `wait`."""
        while self.judging and (wait or self.judging[0].records.done()):
            self._pass_on_oldest()
        self._count_written(wait=wait)

    def _pass_on_oldest(self) -> None:
        batch = self.judging.popleft()
        self._judged(batch.films, batch.records.result())

    def _count_written(self, *, wait: bool = False) -> None:
        while self.writing and (wait or self.writing[0].done()):
            self.tally.add(self.writing.popleft().result())

    def _write(self, film: RunItem) -> None:
        """Hand a film to the writers; waits while they are behind, and raises what went wrong with earlier ones."""
        self._count_written()
        self.room.take(film.pixels)
        self.writing.append(self.writers.submit(self._save, film))

    def _save(self, film: RunItem) -> dict[str, str]:
        try:
            with self.runner.timed("write"):
                row = self.folder.save(film.item.key, film.item.path, film.sha256, film.held, trace=film.trace)
                if self.runner.saved is not None:
                    self.runner.saved(film.sha256, film.held)
                return row
        finally:
            self.room.give(film.pixels)


class _Room:
    """How much may wait for the writers: at most so many films and pixels, but always one."""

    def __init__(self, pixels: int, films: int) -> None:
        self._pixels, self._films = pixels, films
        self._used, self._count = 0, 0
        self._change = threading.Condition()

    def take(self, pixels: int) -> None:
        with self._change:
            while self._count and (self._used + pixels > self._pixels or self._count >= self._films):
                self._change.wait(0.5)  # with a limit, so that Ctrl-C gets through on every system
            self._used += pixels
            self._count += 1

    def give(self, pixels: int) -> None:
        with self._change:
            self._used -= pixels
            self._count -= 1
            self._change.notify_all()
