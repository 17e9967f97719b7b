"""The same run on Ray Data: paths go out to workers on one machine or many, which read, judge and write the pictures.

The process that was called (the driver) alone holds the folder's lock, writes the journal and the tables. A worker is a
Ray actor with a chain of its own; it takes a block of films, writes their pictures into the shared folder under their
final names, and answers with their entries for the journal, some hundred bytes per film. Equal films leave equal bytes,
so a block that is judged twice, because its worker was killed, does no harm.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import cv2

from cxr_pipeline.models.runtimes import RUNTIMES
from cxr_pipeline.results.filmfiles import FilmFiles
from cxr_pipeline.results.folder import Identity, ResultsFolder
from cxr_pipeline.results.outputs import Output
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.engines.base import Engine, EngineError, RunnerOptions
from cxr_pipeline.run.engines.cluster import connected, import_ray, quiet, room_for
from cxr_pipeline.run.inputs import Input
from cxr_pipeline.run.isolation import IsolatedReader
from cxr_pipeline.run.runner import RunError, Runner, Tally
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.films import unread

if TYPE_CHECKING:
    import numpy as np

    from cxr_pipeline.run.spec import ChainSpec

_BATCHES = 4  # of the networks in a block: what a killed worker loses, and what an answer carries
_BLOCKS = 10_000  # of a run; larger runs have larger blocks, so that the driver stays light


class RayEngine(Engine):
    """Workers of a Ray cluster, each with a chain of its own."""

    name: ClassVar[str] = "ray"
    summary: ClassVar[str] = "workers of a Ray cluster, of this machine or many"
    options: ClassVar[tuple[str, ...]] = ("address", "cpus_per_worker", "gpus_per_worker")

    @classmethod
    def check(cls, runtime: str, **options: Any) -> None:
        """Ray has to be installed; GPUs are for the runtime that uses them.

        Raises:
            EngineError: which of the two it is.
        """
        if options.get("gpus_per_worker") and not RUNTIMES[runtime].gpu:
            able = " or ".join(name for name, one in RUNTIMES.items() if one.gpu)
            raise EngineError(
                f"--gpus-per-worker: {runtime} runs on CPUs here. Add --runtime {able}, or leave the option out"
            )
        import_ray()

    @classmethod
    def runner(cls, chain: Chain, spec: ChainSpec, out: Path, options: RunnerOptions, **own: Any) -> RayRunner:
        """See `Engine.runner`."""
        opening = spec.absolute().open
        ready = chain.networks.wait
        return RayRunner(chain.stages, out, identity=chain.identity, ready=ready, opening=opening, **options, **own)


def _shown(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a film's own files say of the run; the rest, such as cards, need not go to each worker."""
    return {name: about[name] for name in ("date", "language", "weights") if name in about}


@dataclass(kw_only=True)
class RayRunner(Runner):
    """Runs a chain of stages over inputs into a results folder, on the workers of a Ray cluster.

    `stages`, `identity`, `batch_size` and `seconds_a_film` as in `Runner`; films are always read by its own reader.
    The folder, the films and the weights must lie under the same paths on all machines. Where Ray has been started in
    this process that cluster is taken, and left running.

    Args:
        opening: called with `threads=n` in each worker, opens the chain that `stages` is here, for n cores; it has to
            pickle, as `ChainSpec.open` does.
        workers: actors; by default as many as the cluster has room for.
        cpus_per_worker: cores of each, which may be a fraction; it bounds the threads of its networks too.
        gpus_per_worker: GPUs of each, which may be a fraction: networks of a runtime with `gpu` then run on it.
        address: of a cluster; by default that in RAY_ADDRESS, or else one of this machine alone, for this run.
        retries: how often the films of a killed worker are given to another: together first, then one by one. A film
            whose worker dies each time is failed.

    Raises:
        EngineError: Ray is not installed.
    """

    opening: Callable[..., Chain]
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    address: str | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        import_ray()

    def spread(self, folder: ResultsFolder, inputs: Sequence[Input], ids: dict[str, str], tally: Tally) -> None:
        """Judge the inputs that are not done yet on the cluster, and save each.

        Raises:
            EngineError: the cluster cannot be reached, or has no room for a worker.
            RunError: the cluster was lost, or a worker has other weights, or another version, than this process.
            OSError: the disk or the folder takes no more, here or on a worker.
        """
        task = _Task(
            opening=self.opening,
            identity=replace(folder.identity, about=_shown(folder.identity.about)),
            out=os.path.abspath(self.out),
            classes=tuple(folder.films.classes),
            outputs=folder.films.outputs,
            mode=folder.films.mode,
            verify=folder.films.verify,
            batch_size=self.batch_size,
            threads=max(1, math.ceil(self.cpus_per_worker)),
            seconds_a_film=self.seconds_a_film,
            gpu=self.gpus_per_worker > 0,
            how=self.how,
        )
        waiting = {one.key: one for one in inputs}
        with connected(self.address) as (ray, own):
            workers = self.workers
            if own or workers is None:  # others may grow when there is work
                room = room_for(ray.nodes(), self.cpus_per_worker, self.gpus_per_worker)
                workers = min(workers or room, room)
            films = films_a_block(len(inputs), self.batch_size, workers)
            for size in (films, 1):  # one by one what is left, to find the film that kills its worker
                for answer in self._answers(ray, task, list(waiting.values()), ids, folder, workers, size):
                    self._record(folder, answer, waiting, tally)
                if not waiting:
                    break
        for item in waiting.values():
            error = (
                f"{Path(item.path).name}: the process that judged it was killed each time, {1 + self.retries} times "
                "alone. Try it with --engine local"
            )
            row = folder.save(item.key, item.path, "", unread(ids[item.key], error))
            tally.add(row)
        folder.films.sweep()  # of killed workers

    def _answers(
        self,
        ray: ModuleType,
        task: _Task,
        inputs: Sequence[Input],
        ids: dict[str, str],
        folder: ResultsFolder,
        workers: int,
        size: int,
    ) -> Iterator[dict[str, Any]]:
        """What the workers answer on blocks of up to `size` films; nothing on a block whose workers all died."""
        blocks = []
        for start in range(0, len(inputs), size):
            films = [_sent(one, ids[one.key], folder) for one in inputs[start : start + size]]
            blocks.append({"films": pickle.dumps(films)})
        with quiet(ray):
            answers = self._planned(ray, task, blocks, workers)
            arriving = iter(answers.iter_batches(batch_size=None, prefetch_batches=0))
            try:
                for batch in arriving:
                    yield from map(json.loads, batch["answer"])
            except ray.exceptions.RayError as error:
                raise RunError(
                    f"the Ray cluster ended the run ({type(error).__name__}: {' '.join(str(error).split())[:300]}). "
                    "What is finished is kept: run the same command again, it goes on where it stopped"
                ) from error
            finally:
                arriving.close()

    def _planned(self, ray: ModuleType, task: _Task, blocks: list[dict[str, bytes]], workers: int) -> Any:
        """The dataset of answers, of which nothing has run yet: one row per block."""
        with warnings.catch_warnings():
            # Of `max_restarts` and `max_task_retries`, which Ray 2.64 will no longer take (hence the bound in
            # pyproject.toml): without them a film that kills its worker would be tried for ever.
            warnings.filterwarnings("ignore", ".*ray_remote_args")
            return ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
                _Worker,
                fn_constructor_args=(task,),
                batch_size=1,  # of blocks
                # One at a time: a film that kills its worker shall not take a block that waits there with it.
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks)), max_tasks_in_flight_per_actor=1),
                num_cpus=self.cpus_per_worker,
                num_gpus=self.gpus_per_worker,
                max_restarts=-1,
                max_task_retries=self.retries,
            )

    def _record(self, folder: ResultsFolder, answer: dict[str, Any], waiting: dict[str, Input], tally: Tally) -> None:
        self.spent(answer["seconds"])
        for key in answer["done"]:
            if waiting.pop(key, None) is not None:
                tally.add(folder.journal[key]["row"], already=True)
        for key, entry in answer["entries"]:
            if waiting.pop(key, None) is not None:
                folder.adopt(key, entry)
                tally.add(entry["row"])
        if "disk" in answer:
            raise OSError(*answer["disk"])
        if "error" in answer:
            raise RunError(answer["error"]) from RuntimeError(answer["trace"])


@dataclass(frozen=True)
class _Task:
    """What a worker needs to know, as plain values."""

    opening: Callable[..., Chain]
    identity: Identity
    out: str
    classes: tuple[str, ...]
    outputs: tuple[Output, ...]
    mode: int
    verify: bool
    batch_size: int
    threads: int
    seconds_a_film: float
    gpu: bool
    how: dict[str, Any]


@dataclass(frozen=True)
class _Sent:
    """A film on its way to a worker: `item.path` is absolute there, `image` is the path as given."""

    item: Input
    id: str
    image: str
    entry: dict[str, Any] | None  # of an earlier run


def _sent(item: Input, name: str, folder: ResultsFolder) -> _Sent:
    at = item if item.problem else replace(item, path=os.path.abspath(item.path))  # with a problem it is not opened
    return _Sent(at, name, item.path, folder.journal.get(item.key))


class _Worker:
    """An actor: judges blocks of films with a chain of its own, opened when the first block comes.

    Whatever goes wrong is part of its answer. To Ray it never fails, so that what Ray retries is a killed process.
    """

    def __init__(self, task: _Task) -> None:
        self._task = task
        self._runner: Runner | None = None

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[str]]:
        (pickled,) = block["films"]
        sent: list[_Sent] = pickle.loads(pickled)
        answer: dict[str, Any] = {"done": [], "entries": [], "seconds": {}}
        try:
            runner = self._runner = self._runner or self._opened()
            task = self._task
            films = FilmFiles(
                Path(task.out),
                task.identity,
                task.classes,
                outputs=task.outputs,
                mode=task.mode,
                verify=task.verify,
            )
            desk = _Desk(films, sent)
            before, tally = runner.seconds, Tally()
            try:
                runner.judge(desk, [one.item for one in sent], {one.item.key: one.id for one in sent}, tally)
            finally:
                answer["done"], answer["entries"] = desk.already, desk.entries
                answer["seconds"] = {name: s - before.get(name, 0.0) for name, s in runner.seconds.items()}
        except OSError as error:
            answer["disk"] = [error.errno, error.strerror or str(error), error.filename or self._task.out]
        except Exception as error:
            answer["error"] = f"a worker on {socket.gethostname()}: {error}"
            answer["trace"] = traceback.format_exc()
        return {"answer": [json.dumps(answer)]}

    def _opened(self) -> Runner:
        task = self._task
        cv2.setNumThreads(1)  # as in `Runner.run`
        if task.gpu:
            os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # or the first worker takes all of its memory
        for pool in ("INTRAOP", "INTEROP"):
            os.environ.setdefault(f"TF_NUM_{pool}_THREADS", str(task.threads))
        chain = task.opening(threads=task.threads)
        for name in ("version", "runtime", "classes", "stages"):
            own, expected = getattr(chain.identity, name), getattr(task.identity, name)
            if own != expected:
                raise RunError(
                    f"it would judge with other {name} ({own}) than the process that was called ({expected}). Give all "
                    "machines the same version of this program and the same weights, then run the same command again"
                )
        return Runner(
            chain.stages,
            Path(task.out),
            identity=chain.identity,
            batch_size=task.batch_size,
            workers=task.threads,
            reader=partial(IsolatedReader(), **task.how),
            seconds_a_film=task.seconds_a_film,
        )


@dataclass
class _Desk:
    """Stands in for the results folder in a worker: keeps for the driver what it would write into the journal."""

    films: FilmFiles
    sent: Sequence[_Sent]
    entries: list[tuple[str, dict[str, Any]]] = field(default_factory=list, init=False)
    already: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._by_key = {one.item.key: one for one in self.sent}

    def done(self, key: str, sha256: str) -> dict[str, Any] | None:
        entry = self.films.done(self._by_key[key].entry, sha256)
        if entry is not None:
            self.already.append(key)
        return entry

    def mask(self, key: str, sha256: str, size: tuple[int, int]) -> np.ndarray | None:
        return self.films.mask(self._by_key[key].entry, sha256, size)

    def save(self, key: str, image: str, sha256: str, record: Record, *, trace: str = "") -> dict[str, str]:
        entry = self.films.write(self._by_key[key].image, sha256, record, trace=trace)
        self.entries.append((key, entry))  # of several threads; appending is atomic
        return entry["row"]


def films_a_block(films: int, batch_size: int, workers: int) -> int:
    """How many films a worker takes at a time.

    Some batches of the networks; fewer where there is little to do for each worker, more where there would be too many
    blocks for the driver.
    """
    even = math.ceil(films / (2 * workers))
    return max(1, min(_BATCHES * batch_size, even), math.ceil(films / _BLOCKS))
