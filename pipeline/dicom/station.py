"""A results folder that films come to one after the other: the same threads, batches and files as in a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from cxr_pipeline.about import cores
from cxr_pipeline.data.files import PRIVATE
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.dicom.spool import sync
from cxr_pipeline.results.folder import ResultsFolder
from cxr_pipeline.results.outputs import Output
from cxr_pipeline.results.worklist import write_worklist
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.inputs import Input
from cxr_pipeline.run.isolation import IsolatedReader, TriesFolder
from cxr_pipeline.run.runner import Runner, Tally


class Station:
    """Judges films as they come, into one results folder, with networks and decoders that stay loaded.

    One thread at a time may call it.

    Args:
        chain: loaded.
        out: the results folder; one that a run or an earlier station left is gone on with.
        outputs: what is written of each film; by default what a reader needs.
        batch_size: films that the networks see at once.
        workers: threads that read, and as many that write; by default one a core.
        mode: permissions of what is written.

    Raises:
        ResultsError: the folder belongs to another run.
        OSError: it cannot be made or written.
    """

    def __init__(
        self,
        chain: Chain,
        out: Path,
        *,
        outputs: Sequence[Output] | None = None,
        batch_size: int = 8,
        workers: int | None = None,
        mode: int = PRIVATE,
    ) -> None:
        self.out, self.chain = out, chain
        workers = workers or cores()
        self.folder = ResultsFolder(out, chain.identity, outputs=outputs, mode=mode)
        self._tries = TriesFolder(out / ".trying")
        self._reader = _LastingReader(IsolatedReader(tries=self._tries), workers)
        how = Runner(chain.stages, out, outputs=outputs).how
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "reader": partial(self._reader, **how)}
        self._runner = Runner(chain.stages, out, identity=chain.identity, outputs=outputs, mode=mode, **options)
        self._started, self._begun = _now(), time.monotonic()
        self._threads = cv2.getNumThreads()
        self._stale = len(self.folder.journal) > 0
        self._refreshed, self._refreshing = time.monotonic(), 0.0
        cv2.setNumThreads(1)  # as in a run: our threads take a film each

    def __enter__(self) -> Station:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def judge(
        self, inputs: Sequence[Input], ids: dict[str, str], notify: Callable[[dict[str, str], bool], None] | None = None
    ) -> None:
        """Judge films that are not done yet, and save each.

        Args:
            inputs: all with different keys.
            ids: their names by key; unique in the folder.
            notify: called with the row of each, and whether it was done before.

        Raises:
            OSError: the disk takes no more; what is finished is kept, and the same call goes on from there.
        """
        tally = _Telling(notify)
        try:
            self._runner.judge(self.folder, inputs, ids, tally)
        finally:
            self._stale = self._stale or tally.new

    def entry(self, key: str) -> dict[str, Any] | None:
        """What the journal holds of a film."""
        return self.folder.journal.get(key)

    def secure(self, keys: Sequence[str]) -> None:
        """Wait until the disk has all files of these films, and then their entries."""
        folders = set()
        for key in keys:
            for name in (self.entry(key) or {}).get("files", ()):
                sync(self.out / name)
                folders.add((self.out / name).parent)
        for one in folders:
            sync(one)
        sync(self.out / "journal.jsonl")

    def forget(self, keys: Sequence[str]) -> None:
        """Drop what is held of films, such as those that were taken away before they could be read."""
        journal = self.folder.journal
        gone = set(keys)
        journal.rewrite([key for key in journal.keys() if key not in gone])  # noqa: SIM118  (no dict)
        self._stale = True

    def refresh(self, *, often: float = 0.0) -> None:
        """Bring the tables of all films up to date, where films came since.

        Args:
            often: at least so many seconds apart, and never so often that it takes more than a fifth of the time.
        """
        now = time.monotonic()
        if not self._stale or now - self._refreshed < max(often, 4 * self._refreshing):
            return
        self.folder.refresh()
        write_worklist(self.out)
        self._refreshed, self._stale = time.monotonic(), False
        self._refreshing = self._refreshed - now

    def close(self) -> None:
        """Put the folder into its final form, and let go of it."""
        cv2.setNumThreads(self._threads)
        self._reader.close()
        try:
            journal = self.folder.journal
            seconds = {**self._runner.seconds, "total": time.monotonic() - self._begun}
            self.folder.finish(list(journal.keys()), seconds, self._started, _now())
            write_worklist(self.out)
        finally:
            self.folder.close()
            self._tries.close()


class _Telling(Tally):
    """A tally that tells of each row, from whichever thread counts it. `new`: some were not done before."""

    def __init__(self, notify: Callable[[dict[str, str], bool], None] | None) -> None:
        super().__init__()
        self._notify, self.new = notify or (lambda row, already: None), False

    def add(self, row: dict[str, str], *, already: bool = False) -> None:
        """See `Tally`."""
        super().add(row, already=already)
        self.new = self.new or not already
        self._notify(row, already)


class _LastingReader:
    """A reader whose helper processes are started from threads that live as long as the station.

    On Linux a helper ends with the thread that started it, and a runner's own threads end with each call.
    """

    def __init__(self, reader: IsolatedReader, workers: int) -> None:
        self._reader = reader
        self._threads = ThreadPoolExecutor(workers, "cxr-decode")

    def __call__(self, path: str | Path, *, id: str | None = None, **how: Any) -> Radiograph:
        return self._threads.submit(self._reader, path, id=id, **how).result()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._reader.close()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
