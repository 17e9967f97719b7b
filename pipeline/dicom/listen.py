"""`pipeline listen`: the node, the queue of films, the chain and the senders, put together."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cxr_pipeline.data.files import PRIVATE, csv_line, write_csv
from cxr_pipeline.dicom.commitment import Commitment
from cxr_pipeline.dicom.destinations import Destination
from cxr_pipeline.dicom.node import Node, NodeSettings
from cxr_pipeline.dicom.objects import Facts
from cxr_pipeline.dicom.peers import Peer
from cxr_pipeline.dicom.send import Sender, SentLog
from cxr_pipeline.dicom.spool import Spool, Taken, name_of
from cxr_pipeline.dicom.station import Station
from cxr_pipeline.results.journal import key_of
from cxr_pipeline.results.outputs import Output
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.inputs import Input

LEFT_ALONE, OUTDATED = "left_alone.csv", "outdated.csv"
_OUTDATED_COLUMNS = ("id", "status", "error", "destination", "answers")
_COLUMNS = ("time", "caller", "sop_class", "sop_instance", "modality", "reason")
_AT_ONCE = 64  # films taken from the queue together: the chain works in batches, and more would make a stop slow
_REFRESH = 5.0  # seconds between two looks whether the tables are up to date
_PAUSE, _LONGEST_PAUSE = 2.0, 60.0  # seconds to wait with a full disk
_STUCK = 900.0  # seconds on one batch after which the node calls itself stuck
_SHOWN = 50  # films on the page

_log = logging.getLogger("cxr.dicom")


@dataclass(frozen=True)
class ListenSettings:
    """What a listening node does with films.

    Attributes:
        out: the results folder, which also holds the queue.
        node: where it listens.
        outputs: what is written of each film; `dicom` is what is sent.
        batch_size, workers, mode: as in a run.
        keep_films: films stay in `spool/films` when they are judged.
        peers: with host and port, of those that ask for storage commitment.
    """

    out: Path
    node: NodeSettings
    outputs: Sequence[Output] | None = None
    batch_size: int = 8
    workers: int | None = None
    mode: int = PRIVATE
    keep_films: bool = True
    peers: tuple[Peer, ...] = ()


class Listener:
    """A node at work. `run` judges in the thread that calls it, until `stop`.

    Args:
        chain: loaded.
        settings: of the node and the folder.
        destinations: where answers go.
        tls: for calls to peers that asked for storage commitment.
    """

    def __init__(
        self, chain: Chain, settings: ListenSettings, destinations: Sequence[Destination] = (), tls: Any = None
    ) -> None:
        self.settings, out = settings, settings.out
        options: dict[str, Any] = {
            "outputs": settings.outputs,
            "batch_size": settings.batch_size,
            "workers": settings.workers,
        }
        self.station = Station(chain, out, mode=settings.mode, **options)
        self.counts: Counter[str] = Counter()
        self.recent: deque[dict[str, str]] = deque(maxlen=_SHOWN)
        self.problem = ""
        self.film_seconds = 0.0
        self._since: float | None = None  # when the batch in work was begun
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        try:
            self.spool = Spool(out / "spool", mode=settings.mode, keep=settings.keep_films)
            self._sent = SentLog(out, settings.mode)
        except BaseException:
            self.station.close()
            raise
        self.senders = [Sender(one, out, self.station.entry, self._sent, notify=self._count) for one in destinations]
        self.commitment = Commitment(
            out / "spool" / "commitment", settings.node.title, settings.peers, self._holds, tls
        )
        self.node = Node(
            settings.node, self.spool, done=self._done, notify=self._record, commitment=self._ask_for_commitment
        )
        self._settling = ThreadPoolExecutor(1, "cxr-settle")

    def start(self) -> int:
        """Begin to listen and to send; the port.

        Raises:
            NodeError: the address cannot be listened on.
        """
        port = self.node.start()
        films = self.station.folder.journal.keys()
        for one in self.senders:
            one.start(films)
        self.commitment.start()
        return port

    def run(self) -> None:
        """Judge what comes until told to stop; then put the folder into its final form."""
        pause = _PAUSE
        settling: deque[Future[None]] = deque()
        try:
            while not self._stopping.is_set():
                try:
                    self._turn(settling)
                    pause, self.problem = _PAUSE, ""
                except OSError as error:
                    self.problem = f"{error.filename or self.settings.out}: {error.strerror or error}"
                    _log.error("%s. Films wait until there is room", self.problem)
                    self._stopping.wait(pause)
                    pause = min(_LONGEST_PAUSE, 2 * pause)
        finally:
            self.close()

    def stop(self) -> None:
        """Have `run` return when the films in work are judged. Safe in a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        """End all that runs beside; films that wait are judged after the next start."""
        self.node.stop()
        self._settling.shutdown(wait=True)
        self.commitment.stop()
        for one in self.senders:
            one.stop()
        self._sent.close()
        self.station.close()

    @property
    def healthy(self) -> bool:
        """Whether films are judged: not stuck on one, no full disk."""
        since = self._since
        return not self.problem and (since is None or time.monotonic() - since < _STUCK)

    def _turn(self, settling: deque[Future[None]]) -> None:
        """Judge what waits, or bring the tables up to date where nothing does."""
        while settling and (settling[0].done() or len(settling) > 2):
            settling.popleft().result()
        taken = self.spool.take(_AT_ONCE, wait=0.5 if settling else 1.0)
        if not taken:
            if not settling:
                self.station.refresh(often=_REFRESH)
            return
        begun = self._since = time.monotonic()
        inputs = {one.name: Input(str(one.path), key_of(one.path), (one.name,) * 3) for one in taken}
        try:
            self.station.judge(list(inputs.values()), {one.key: name for name, one in inputs.items()}, self._finished)
        except BaseException:
            for one in taken:
                self.spool.give_back(one)
            raise
        finally:
            self._since = None
        self.film_seconds = (time.monotonic() - begun) / len(taken)
        settling.append(self._settling.submit(self._settle, taken))
        self.station.refresh(often=12 * _REFRESH)

    def _settle(self, taken: list[Taken]) -> None:
        """Once results are safe on the disk, take their films from the queue, and send the answers.

        Raises:
            OSError: the disk did not take them; the films are in the queue again.
        """
        keys = [key_of(one.path) for one in taken]
        try:
            self.station.secure(keys)
        except OSError:
            for one in taken:
                self.spool.give_back(one)
            raise
        for one, key in zip(taken, keys, strict=True):
            entry = self.station.entry(key)
            try:
                if entry is None or entry["retry"]:
                    self.spool.leave(one)
                else:
                    self.spool.settle(one)
            except OSError as error:  # it is found done by the next start
                _log.error("%s: %s", error.filename, error.strerror)
        for sender in self.senders:
            for key in keys:
                sender.add(key)

    def _finished(self, row: dict[str, str], already: bool) -> None:
        if already:
            return
        shown = {name: row.get(name) or "" for name in ("id", "status", "label", "screen", "tb_score")}
        with self._guard:
            self.counts[row["status"]] += 1
            self.recent.appendleft({"time": _now(), **shown})

    def _done(self, name: str, sha256: str) -> bool:
        """Whether a film was judged already as it is, so that it need not be judged again."""
        if self.spool.waits(name):  # another version may be on its way, and the one that comes last counts
            return False
        entry = self.station.entry(key_of(self.spool.path_of(name)))
        return entry is not None and entry["row"]["sha256"] == sha256 and not entry["retry"]

    def _holds(self, uid: str) -> bool:
        """Whether a film stays here for good: with --forget-films none does, and its sender must keep it."""
        return self.settings.keep_films and self.spool.holds(name_of(uid))

    def _ask_for_commitment(self, caller: Peer, wanted: Any, association: Any) -> None:
        self.commitment.ask(caller, wanted, association)
        self._count("commitment", 1)

    def _count(self, what: str, count: int) -> None:
        with self._guard:
            self.counts[what] += count
        if what == "outdated":
            self._write_outdated()

    def _write_outdated(self) -> None:
        """The table of answers that stand in a PACS, though their film was refused since."""
        rows = [
            {
                **{
                    name: (self.station.entry(film) or {"row": {}})["row"].get(name, "")
                    for name in ("id", "status", "error")
                },
                "destination": one.name,
                "answers": " ".join(held),
            }
            for one in self.senders
            for film, held in list(one.outdated.items())
        ]
        with suppress(OSError):  # the page and the log say it too
            write_csv(self.settings.out / OUTDATED, _OUTDATED_COLUMNS, rows, mode=self.settings.mode)

    def _record(self, what: str, caller: Peer, facts: Facts, why: str) -> None:
        """Count an object that came, and write down one that is left alone."""
        self._count(what, 1)
        if what not in ("left alone", "unreadable"):
            return
        row = {"time": _now(), "caller": caller.title, "sop_class": facts.sop_class, "sop_instance": facts.uid}
        line = csv_line(_COLUMNS, {**row, "modality": facts.modality, "reason": why})
        path = self.settings.out / LEFT_ALONE
        with self._guard, suppress(OSError):  # a full disk must not keep the caller from its answer
            if not path.exists():
                line = csv_line(_COLUMNS, dict(zip(_COLUMNS, _COLUMNS, strict=True))) + line
            with open(path, "ab", buffering=0, opener=self._private) as file:
                file.write(line)

    def _private(self, path: str, flags: int) -> int:
        return os.open(path, flags, self.settings.mode)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
