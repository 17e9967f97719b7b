"""The chain over a stream of films, into a results folder; `run.steps` has its threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2

from cxr_pipeline.about import cores, version
from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import PRIVATE
from cxr_pipeline.data.formats.small import Wanted
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.results.filmfiles import FilmFiles
from cxr_pipeline.results.folder import Identity, ResultsFolder
from cxr_pipeline.results.outputs import Output, chosen
from cxr_pipeline.results.quick import finished
from cxr_pipeline.results.settled import settled
from cxr_pipeline.results.worklist import Work, work_of, write_worklist
from cxr_pipeline.run.inputs import Input, assign_ids
from cxr_pipeline.run.isolation import SECONDS
from cxr_pipeline.run.reading import Desk, hash_or_nothing
from cxr_pipeline.run.steps import Steps
from cxr_pipeline.stages.base import FAILED, OK, REFUSED, Record, Stage

_SHOWN = 10  # refused and failed films that a summary names


class RunError(CxrError, RuntimeError):
    """The run had to stop: the disk is full, or the folder cannot be written. What is finished is kept."""


@dataclass
class Summary:
    """How a run ended.

    Attributes:
        counts: this call's inputs by status: ok, refused, failed.
        already: how many of them were done before.
        others: rows of other inputs, that earlier calls left in the same folder.
        problems: (status, image, error) of the first films that are not ok.
        seconds: spent a part (of all threads together), and in all.
        work: what the folder's films are to be read for, and in which order.
        unchanged: there was nothing to do, and nothing was written.
    """

    out: Path
    counts: dict[str, int]
    already: int
    others: int
    problems: list[tuple[str, str, str]]
    seconds: dict[str, float]
    work: Work | None = None
    unchanged: bool = False

    @property
    def exit_code(self) -> int:
        """0 when all inputs are ok, 1 when some were refused or failed."""
        return 1 if self.counts[REFUSED] or self.counts[FAILED] else 0


class Tally:
    """What became of a call's inputs so far: see the fields of `Summary`. `progress` is told of each."""

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[tuple[str, str, str]] = []
        self.already = 0
        self._progress = progress or (lambda done: None)

    def add(self, row: dict[str, str], *, already: bool = False) -> None:
        """Count an input by its row; `already`: it was done before."""
        self.already += already
        self.counts[row["status"]] += 1
        if row["status"] != OK and len(self.problems) < _SHOWN:
            self.problems.append((row["status"], row["image"], row["error"]))
        self._progress(sum(self.counts.values()))


@dataclass
class Runner:
    """Runs a chain of stages over inputs into a results folder.

    Args:
        stages: the loaded chain, in order.
        out: the results folder.
        identity: what the results are made with; by default that of the stages as they are.
        batch_size: films that the networks see at once.
        workers: threads that read, and as many that write; by default one a core.
        reader: reads a film; raises RadiographError where it cannot. By default `data.radiograph.read` in
            processes of its own.
        seconds_a_film: what reading one may take; a film that takes longer is failed, and the run goes on.
        outputs: what is written of each film; by default what a reader needs, see `results.outputs.chosen`.
        mode: permissions of what is written; a stricter umask takes bits away.
        verify: read again every file of the films that are done, and not only a sample.
        fast_decode: decode large films at a half or less of their size, where that serves all stages and outputs.
            By default those alone whose scores stay the same to half a point, see `data.radiograph.read`.
        judges: threads that judge, a batch each; more than one only where several threads may call the stages at once,
            see `stages.base.Stage.shared`.
        ready: called before films are judged, such as to wait for networks that open late; not where all are done.
        saved: called by the threads that write, with the content hash and the record of each film that was judged here.
    """

    stages: Sequence[Stage]
    out: Path
    identity: Identity | None = None
    batch_size: int = 8
    workers: int | None = None
    reader: Callable[..., Radiograph] | None = None
    seconds_a_film: float = 2 * SECONDS
    outputs: Sequence[Output] | None = None
    mode: int = PRIVATE
    verify: bool = False
    fast_decode: bool | None = None
    judges: int = 1
    ready: Callable[[], None] | None = None
    saved: Callable[[str, Record], None] | None = None
    _seconds: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def run(
        self,
        inputs: Sequence[Input],
        *,
        overwrite: bool = False,
        shard: tuple[int, int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Summary:
        """Judge all inputs that are not done yet and put the folder into its final form.

        Where a finished folder holds all of it already, nothing is opened or written, see `results.settled`.
        A film that cannot be read, judged or drawn costs only itself. After an interruption, or any error raised from
        here, the folder holds all that was finished, and the same call goes on from there.

        Args:
            overwrite: discard what a run with other weights or another config left in the folder.
            shard: (i, n) judges the i-th of n parts of the inputs, for `results.merge` to join.
            progress: called with the number of inputs finished so far.

        Raises:
            ResultsError: the folder belongs to another run.
            RunError: the disk or the folder takes no more.
            KeyboardInterrupt: the run was interrupted; what was being written is finished first.
        """
        begun, started = time.monotonic(), _now()
        self._seconds.clear()
        identity = self.identity or identity_of(self.stages)
        if not overwrite and (before := self._settled(identity, inputs, shard)) is not None:
            return self._unchanged(before, inputs, time.monotonic() - begun, progress)
        if self.ready is not None:
            self.ready()
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # our threads take a film each; OpenCV's own would only get in their way
        try:
            with ResultsFolder(
                self.out,
                identity,
                overwrite=overwrite,
                shard=shard,
                total=len(inputs),
                outputs=self.outputs,
                mode=self.mode,
                verify=self.verify,
            ) as folder:
                ids = assign_ids(inputs, folder.ids())  # of all inputs, so that shards agree on them
                if shard is not None:
                    from cxr_pipeline.results.merge import write_places

                    places = {one.key: place for place, one in enumerate(inputs) if one.shard(shard[1]) == shard[0]}
                    write_places(self.out, places, mode=self.mode)
                    inputs = [one for one in inputs if one.key in places]
                tally = Tally(progress)
                self.spread(folder, inputs, ids, tally)
                seconds = {name: self._seconds.get(name, 0.0) for name in ("read", *identity.stages, "write")}
                seconds["total"] = time.monotonic() - begun
                total = folder.finish([item.key for item in inputs], seconds, started, _now())
                counts = {status: tally.counts[status] for status in (OK, REFUSED, FAILED)}
                work = write_worklist(self.out)
                others = sum(total.values()) - len(inputs)
                return Summary(self.out, counts, tally.already, others, tally.problems, seconds, work)
        except OSError as error:
            raise RunError(
                f"{error.filename or self.out}: {error.strerror or error}. Make room or change the access rights, "
                "then run the same command again: it goes on where it stopped"
            ) from error
        finally:
            cv2.setNumThreads(threads)

    def spread(self, folder: ResultsFolder, inputs: Sequence[Input], ids: dict[str, str], tally: Tally) -> None:
        """Have the inputs judged that are not done yet: here, or wherever an engine has room for them."""
        self.judge(folder, inputs, ids, tally)

    def _settled(
        self, identity: Identity, inputs: Sequence[Input], shard: tuple[int, int] | None
    ) -> list[dict[str, Any]] | None:
        """The entries of a folder that needs nothing; None where there is something to do."""
        if not finished(self.out):
            return None
        total = len(inputs)
        if shard is not None:
            inputs = [one for one in inputs if one.shard(shard[1]) == shard[0]]
        films = FilmFiles(self.out, identity, (), outputs=self.outputs, mode=self.mode, verify=self.verify)
        part = {"number": shard[0], "of": shard[1], "inputs": total} if shard else None

        def hashes() -> Iterator[str]:
            with ThreadPoolExecutor(self.workers or cores()) as pool:
                yield from pool.map(hash_or_nothing, inputs)

        return settled(self.out, identity, films, [one.key for one in inputs], hashes, part)

    def _unchanged(
        self, entries: list[dict[str, Any]], inputs: Sequence[Input], seconds: float, progress: Callable | None
    ) -> Summary:
        """How a run ends that has nothing to do, from the folder's entries, those of other inputs first."""
        tally, mine = Tally(), {one.key for one in inputs}
        for entry in entries:
            if entry["key"] in mine:
                tally.add(entry["row"], already=True)
        if progress is not None:
            progress(tally.already)
        counts = {status: tally.counts[status] for status in (OK, REFUSED, FAILED)}
        work = work_of(entry["row"] for entry in entries)
        work = replace(work, excel_missing=not (self.out / "worklist.xlsx").is_file())
        others = len(entries) - tally.already
        spent = {"total": seconds}
        return Summary(self.out, counts, tally.already, others, tally.problems, spent, work, unchanged=True)

    def judge(self, folder: Desk, inputs: Sequence[Input], ids: dict[str, str], tally: Tally) -> None:
        """Judge the inputs that are not done yet, under the names `ids`, and save each."""
        Steps(self, folder, inputs, ids, tally).go()

    @property
    def least(self) -> int | None:
        """Pixels that the long side of a film has to keep for all stages and outputs; None for all that it has."""
        outputs = chosen() if self.outputs is None else self.outputs
        needs = [*(stage.detail for stage in self.stages), *(one.detail for one in outputs)]
        whole = self.reader is not None  # a reader of somebody's own decides itself
        return None if whole or None in needs else max(need for need in needs if need is not None)

    @property
    def how(self) -> dict[str, Any]:
        """What films are read with, see `data.radiograph.read`."""
        if self.least is None:
            return {}
        wanted = Wanted(self.least, tuple(side for stage in self.stages for side in stage.grids))
        small = {} if self.fast_decode is False else {"least": self.least, "rough": self.fast_decode is True}
        return {"wanted": wanted, **small}

    @property
    def seconds(self) -> dict[str, float]:
        """Spent a part so far, of all threads together."""
        return dict(self._seconds)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the seconds of a block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spent({part: time.perf_counter() - begun})

    def spent(self, seconds: dict[str, float]) -> None:
        """Count seconds that other clocks measured, by part."""
        with self._guard:
            for part, spent in seconds.items():
                self._seconds[part] = self._seconds.get(part, 0.0) + spent


def identity_of(stages: Sequence[Stage], **further: Any) -> Identity:
    """The identity of stages as they are; `further` are fields of `Identity`."""
    fields: dict[str, Any] = {"version": version(), "runtime": "onnx", "classes": classes_of(stages)} | further
    columns = tuple(column.name for stage in stages for column in stage.columns)
    return Identity(stages={stage.name: stage.identity for stage in stages}, columns=columns, **fields)


def classes_of(stages: Iterable[Stage]) -> tuple[str, ...]:
    """The classes of the chain's classifier, in its order; empty where it has none."""
    return next((tuple(stage.classes) for stage in stages if stage.classes), ())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
