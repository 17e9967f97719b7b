"""Jobs: a bounded queue of films, one thread that owns the chain, folders deleted when nobody asks any more."""

from __future__ import annotations

import errno
import logging
import math
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from cxr_pipeline.data.files import PRIVATE, write_bytes
from cxr_pipeline.data.locks import temporary_folder
from cxr_pipeline.results.folder import ResultsFolder
from cxr_pipeline.results.outputs import chosen, regions_of, row_of
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.isolation import IsolatedReader
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.stages.apply import where
from cxr_pipeline.stages.base import FAILED
from cxr_pipeline.web.answers import PICTURES, ApiError
from cxr_pipeline.web.films import UploadedFilm, screen_png, through
from cxr_pipeline.web.metrics import Metrics
from cxr_pipeline.web.settings import Settings
from cxr_pipeline.web.uploads import Upload

_SWEEP = 2.0  # seconds between two looks at what is to be deleted
_SPARE = 200_000_000  # bytes that the disk has free at least when an upload begins
_STUCK = 300.0  # seconds on one film, above --timeout, after which the server calls itself stuck

_log = logging.getLogger("cxr.web")


@dataclass
class Job:
    """Films handed in together.

    Attributes:
        folder: of this job in the server's temporary folder: uploads, pictures for the page, the results.
        results: its results folder; None for a job that only answers numbers.
        finished: set when its last film is done, with the job.
        touched: when it was last asked for, on the monotonic clock.
    """

    id: str
    folder: Path
    films: list[UploadedFilm]
    results: Path | None
    finished: Future[Job] = field(default_factory=Future)
    touched: float = field(default_factory=time.monotonic)
    discarded: bool = False
    pending: deque[UploadedFilm] = field(default_factory=deque)
    closing: threading.Lock = field(default_factory=threading.Lock)
    writer: ResultsFolder | None = None
    started: str = ""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """waiting, running or done."""
        if self.finished.done():
            return "done"
        return "running" if any(film.state != "waiting" for film in self.films) else "waiting"

    def film(self, name: str) -> UploadedFilm | None:
        """The film of that id."""
        return next((film for film in self.films if film.id == name), None)

    def picture(self, film: UploadedFilm, name: str) -> Path | None:
        """The file of a picture, `name` as in `PICTURES`; None where there is none."""
        root = self.folder if name == "film.png" else self.results
        file = film.id + name[name.index(".") :]
        path = None if root is None or film.state != "done" else root / PICTURES[name] / file
        return path if path is not None and path.is_file() else None


class Places:
    """Room in the queue, taken when an upload is there and given back if nothing comes of it. Use as a context."""

    def __init__(self, queue: JobQueue, count: int) -> None:
        self._queue, self._count, self.kept = queue, count, False

    def __enter__(self) -> Places:
        self._queue.take(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        if not self.kept:
            self._queue.take(-self._count)


class JobQueue:
    """Takes jobs, judges their films one by one, each job in its turn, and forgets them.

    Args:
        chain: used by this object's thread alone.
        settings: bounds and times.
    """

    def __init__(self, chain: Chain, settings: Settings) -> None:
        self.chain, self.settings = chain, settings
        self.classes = chain.identity.classes
        self.metrics = Metrics(lambda: self.waiting, lambda: len(self._jobs))
        self.waiting = 0  # films that wait or are in work, and places held for uploads
        self._change = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._turns: deque[Job] = deque()
        self._stopping = False
        self._average = 0.5  # seconds per film, of the last ones
        self._since: float | None = None  # when the film in work was begun
        self._reader = IsolatedReader(settings.timeout)
        # Where numbers alone are asked for. Crops and the picture for the page show a film's own pixels.
        self._how = Runner(chain.stages, Path(), outputs=()).how
        self._in_work: tuple[Job, UploadedFilm] | None = None
        self._outputs = chosen("masks,overlays,crops,regions", native_heatmaps=True)  # the page draws them all
        self._temporary = ExitStack()
        self._thread = threading.Thread(target=self._run, name="cxr-web", daemon=True)

    def start(self) -> None:
        """Make the temporary folder, delete those that killed servers left, begin to work."""
        self.root = self._temporary.enter_context(temporary_folder("web"))
        self._thread.start()

    def stop(self) -> None:
        """Finish the film in work, leave the others, delete everything temporary."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        self._thread.join(self.settings.timeout)
        for job in list(self._jobs.values()):
            self._close(job)
            if not job.finished.done():
                job.finished.set_exception(ApiError(503, "stopping", "the server is stopping. Try again later"))
        self._reader.close()
        self._temporary.close()

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and is not stuck on a film."""
        since = self._since
        stuck = since is not None and time.monotonic() - since > self.settings.timeout + _STUCK
        return self._thread.is_alive() and not stuck

    def take(self, count: int) -> None:
        """Hold places in the queue, or give them back.

        Raises:
            ApiError: there are not so many.
        """
        with self._change:
            if self._stopping and count > 0:
                raise ApiError(503, "stopping", "the server is stopping. Try again later", {"Retry-After": "30"})
            if count > 0 and self.waiting + count > self.settings.queue:
                seconds = str(min(60, max(1, math.ceil(self._average * self.waiting))))
                raise ApiError(
                    429,
                    "queue_full",
                    f"{self.waiting} films wait and {count} more came; {self.settings.queue} are allowed. "
                    f"Try again in {seconds} s",
                    {"Retry-After": seconds},
                )
            self.waiting += count

    def check_room(self) -> None:
        """Turn a request away before its films are read, where there is no room for any.

        Raises:
            ApiError: the queue is full, or the server is stopping.
        """
        self.take(1)
        self.take(-1)

    def places(self, count: int) -> Places:
        """Room for an upload of so many films.

        Raises:
            ApiError: on entering; the queue is full.
        """
        return Places(self, count)

    def new_folder(self) -> Path:
        """A folder for a job, with a folder for its uploads.

        Raises:
            ApiError: the disk is nearly full.
        """
        if shutil.disk_usage(self.root).free < self.settings.upload_bytes + _SPARE:
            raise ApiError(
                503,
                "disk_full",
                "the server's disk is nearly full. Try again later, or discard jobs",
                {"Retry-After": "60"},
            )
        folder = self.root / secrets.token_hex(16)
        for name in ("uploads", "view"):
            (folder / name).mkdir(parents=True)
        return folder

    def drop_folder(self, folder: Path) -> None:
        """Delete the folder of a job that was not submitted."""
        shutil.rmtree(folder, ignore_errors=True)

    def submit(self, folder: Path, uploads: Sequence[Upload], places: Places, *, pictures: bool) -> Job:
        """Queue a job; its places are given back film by film as they are done.

        Args:
            folder: of `new_folder`, with the uploads in it.
            pictures: make a results folder, not only numbers. With --keep there always is one.
        """
        films = [UploadedFilm(f"film-{number:04d}", upload) for number, upload in enumerate(uploads, 1)]
        results = folder / "results" if pictures else None
        if self.settings.keep is not None:
            now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
            results = self.settings.keep / f"{now}-{folder.name[:8]}"
        job = Job(folder.name, folder, films, results, pending=deque(films))
        with self._change:
            places.kept = True
            self._jobs[job.id] = job
            self._turns.append(job)
            self._change.notify_all()
        return job

    def job(self, name: str) -> Job:
        """The job of that id, which now is held for longer.

        Raises:
            ApiError: there is none.
        """
        with self._change:
            job = self._jobs.get(name)
            if job is None:
                minutes = self.settings.forget_after
                raise ApiError(
                    404,
                    "no_such_job",
                    f"there is no such job. Jobs are deleted {minutes:g} min after they were last asked for",
                )
            job.touched = time.monotonic()
            return job

    def forgotten_in(self, job: Job) -> float | None:
        """Seconds until a finished job is deleted if nobody asks."""
        if not job.finished.done():
            return None
        return max(0.0, round(job.touched + 60 * self.settings.forget_after - time.monotonic(), 1))

    def discard(self, job: Job) -> None:
        """Delete a job, the films that wait too; one in work is finished first. What --keep keeps stays."""
        with self._change:
            if self._jobs.pop(job.id, None) is None:
                return
            job.discarded = True
            self.waiting -= len(job.pending)
            job.pending.clear()
            if job in self._turns:
                self._turns.remove(job)
            busy = any(film.state == "running" for film in job.films)
        if not busy:
            self._end(job)

    def _run(self) -> None:
        """Work until told to stop. Whatever ends the work costs the film in work, and nothing else."""
        while not self._stopping:
            try:
                self._work()
            except BaseException as error:  # a stage that calls sys.exit, a disk that fails under a deletion
                _log.error("the judging thread was ended and begins again: %s", where(error))
                self._give_up()

    def _give_up(self) -> None:
        """Fail the film that was in work when the thread was ended."""
        if self._in_work is None:
            return
        job, film = self._in_work
        film.row = _lost(film, "the server failed on it. Tell who runs it")
        film.crashed = True
        with suppress(Exception):
            self._conclude(job, film, 0.0)

    def _work(self) -> None:
        swept = time.monotonic()
        while True:
            with self._change:
                while not self._turns and not self._stopping and time.monotonic() - swept < _SWEEP:
                    self._change.wait(_SWEEP)
                if self._stopping:
                    return
                job = film = None
                if self._turns:
                    job = self._turns.popleft()
                    film = job.pending.popleft()
                    film.state, self._since, self._in_work = "running", time.monotonic(), (job, film)
                    if job.pending:
                        self._turns.append(job)  # behind the other jobs: a large one keeps nobody waiting
            if job is not None and film is not None:
                self._finish(job, film)
            if time.monotonic() - swept >= _SWEEP:
                self._sweep()
                swept = time.monotonic()

    def _finish(self, job: Job, film: UploadedFilm) -> None:
        begun = time.monotonic()
        try:
            self._judge(job, film)
        except Exception as error:  # the disk is full, for one; this thread must live on
            _log.error("a film failed outside of the chain: %s", where(error))
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            why = "the server's disk is full. Try again later" if full else "the server failed on it. Tell who runs it"
            film.row = _lost(film, why)
            film.crashed = True
        self._conclude(job, film, time.monotonic() - begun)

    def _conclude(self, job: Job, film: UploadedFilm, took: float) -> None:
        """Count a film as done and give its place back; once, whatever happened to it."""
        if film.state == "done":
            return
        with suppress(OSError):
            film.upload.path.unlink(missing_ok=True)
        self._average += 0.1 * (took - self._average)
        self.metrics.films.labels(film.row["status"]).inc()
        self.metrics.film_seconds.observe(took)
        job.seconds += took
        with self._change:
            film.state, self._since, self._in_work = "done", None, None
            self.waiting -= 1
            over = job.discarded or all(other.state == "done" for other in job.films)
        if over:
            self._end(job)

    def _judge(self, job: Job, film: UploadedFilm) -> None:
        how = self._how if job.results is None else {}
        record, trace = through(film, partial(self._reader, **how), self.chain.stages)
        sha256, name = film.upload.sha256, film.upload.name
        if job.results is None:
            film.row = row_of(record) | {"image": name, "id": film.id, "sha256": sha256}
        else:
            if job.writer is None:
                job.started = _now()
                job.writer = ResultsFolder(
                    job.results, self.chain.identity, total=len(job.films), outputs=self._outputs
                )
            film.row = job.writer.save(
                film.id, name, sha256, record, trace=trace if self.settings.keep is not None else ""
            )
            if record.radiograph is not None:
                view = job.folder / "view" / f"{film.id}.png"
                write_bytes(view, screen_png(record.film.pixels), mode=PRIVATE)
        if record.regions is not None:
            film.boxes = regions_of(record, self.classes)

    def _end(self, job: Job) -> None:
        """Close a job's results, once; delete it where it was discarded."""
        with job.closing:
            if not job.finished.done():
                try:
                    if job.writer is not None:
                        keys = [film.id for film in job.films if job.writer.journal.get(film.id)]
                        job.writer.finish(keys, {"total": job.seconds}, job.started, _now())
                except Exception as error:
                    _log.error("the results of a job could not be closed: %s", where(error))
                self._close(job)
                shutil.rmtree(job.folder / "uploads", ignore_errors=True)
                job.touched = time.monotonic()
                job.finished.set_result(job)
            if job.discarded:
                shutil.rmtree(job.folder, ignore_errors=True)

    def _close(self, job: Job) -> None:
        if job.writer is not None:
            job.writer.close()
            job.writer = None

    def _sweep(self) -> None:
        """Delete what nobody asked for in time, and the oldest jobs where there are too many."""
        now, limit = time.monotonic(), 60 * self.settings.forget_after
        with self._change:
            over = [job for job in self._jobs.values() if job.finished.done()]
        over.sort(key=lambda job: job.touched)
        late = [job for job in over if now - job.touched > limit]
        for job in {job.id: job for job in [*late, *over[: max(0, len(over) - self.settings.max_jobs)]]}.values():
            self.discard(job)


def _lost(film: UploadedFilm, why: str) -> dict[str, str]:
    """The row of a film that the server could not finish."""
    return {"image": film.upload.name, "id": film.id, "status": FAILED, "error": f"{film.id}: {why}"}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
