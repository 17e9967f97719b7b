"""Answers on their way: what a results folder holds and a destination does not have yet, sent until it has it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cxr_pipeline.data.files import PRIVATE
from cxr_pipeline.dicom.destinations import Destination, UnreachableError
from cxr_pipeline.dicom.spool import sync
from cxr_pipeline.results.journal import Journal, any_entry
from cxr_pipeline.stages.base import OK

OUTPUT = "dicom"  # the output whose files are sent
_FIRST, _LONGEST = 1.0, 300.0  # seconds between two tries: the first, and at most
_REST = 3.0  # seconds without anything to send after which a connection is given back

_log = logging.getLogger("cxr.dicom")


class SentLog:
    """What was sent where, on the disk: `sent.jsonl` in the results folder. Safe to use from several threads.

    An entry is of a film and a destination: the checksums of the files that it has, or will never take.
    """

    def __init__(self, out: Path, mode: int = PRIVATE) -> None:
        self._path = out / "sent.jsonl"
        self._journal = Journal(self._path, parse=any_entry, mode=mode)

    def has(self, film: str, destination: str, files: dict[str, str]) -> bool:
        """Whether the destination has just these files of a film. What it refused is tried again by a later start."""
        entry = self._journal.get(_key(film, destination))
        return entry is not None and entry.get("files") == files and not entry.get("refused")

    def add(self, film: str, destination: str, files: dict[str, str], refused: dict[str, str]) -> None:
        """Note that a destination has these files, or refused some for good; on the disk when this returns.

        Raises:
            OSError: the disk takes no more.
        """
        entry = {"files": files, "refused": refused, "at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        self._journal.append(_key(film, destination), entry)
        sync(self._path)

    def held(self, film: str, destination: str) -> list[str]:
        """The answers of a film that the destination took, by the names of their files, of whatever version."""
        entry = self._journal.get(_key(film, destination)) or {}
        return sorted(set(entry.get("files", ())) - set(entry.get("refused", ())))

    def close(self) -> None:
        """Close the file."""
        self._journal.close()


def _key(film: str, destination: str) -> str:
    return f"{film}>{destination}"


def files_of(entry: dict[str, Any] | None) -> dict[str, str]:
    """The answers of a film for a PACS, with their checksums: of judged films alone, none of refused or failed ones."""
    if entry is None or entry["row"]["status"] != OK:
        return {}
    return {name: facts["sha256"] for name, facts in entry["files"].items() if name.startswith(f"{OUTPUT}/")}


class Sender:
    """Sends the answers of a results folder to one destination, each film's together, from a thread of its own.

    Nothing is lost while the destination is down: a film stays in the queue until the destination has it, and the next
    start makes the queue anew from the results folder and the log of what was sent.

    Args:
        destination: used by this object's thread alone.
        out: the results folder.
        entry: the journal's entry of a film.
        log: what was sent; shared by all senders of the folder.
        notify: called with "sent", "refused" or "outdated", and the number of objects, or of films for the last.
        first: seconds until a failed try is repeated; twice as long each time, up to five minutes.
    """

    def __init__(
        self,
        destination: Destination,
        out: Path,
        entry: Callable[[str], dict[str, Any] | None],
        log: SentLog,
        *,
        notify: Callable[[str, int], None] = lambda what, count: None,
        first: float = _FIRST,
    ) -> None:
        self.destination, self.out = destination, out
        self._entry, self._log, self._notify, self._first = entry, log, notify, first
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._change = threading.Condition()
        self._stopping = False
        self.problem, self.again = "", 0.0  # why the last try failed, and when the next is, on the monotonic clock
        self.sent = self.refused = 0
        self.outdated: dict[str, list[str]] = {}  # film -> answers that stand there, though it was refused since
        self._thread = threading.Thread(target=self._run, name=f"cxr-send {destination.name}", daemon=True)

    @property
    def name(self) -> str:
        """Of the destination."""
        return self.destination.name

    def __len__(self) -> int:
        """How many films are still to be sent."""
        return len(self._queue)

    def start(self, films: Iterable[str]) -> None:
        """Begin, with the films of the journal that the destination does not have yet."""
        for film in films:
            files = files_of(self._entry(film))
            self._compare(film, files)
            if files and not self._log.has(film, self.name, files):
                self._queue[film] = None
        self._thread.start()

    def add(self, film: str) -> None:
        """Send the answers of a film, which are safe on the disk."""
        with self._change:
            self._queue[film] = None
            self._change.notify_all()

    def stop(self, patience: float = 10.0) -> None:
        """Let the film in work be sent; the others are sent after the next start."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join(patience)

    def idle(self) -> bool:
        """Whether everything was sent."""
        return not self._queue

    def _run(self) -> None:
        wait, resting = 0.0, True
        while True:
            with self._change:
                if wait:
                    self.again = time.monotonic() + wait
                    self._change.wait_for(lambda: self._stopping, wait)
                elif not self._queue:
                    self._change.wait_for(lambda: self._stopping or self._queue, None if resting else _REST)
                if self._stopping:
                    break
                film = next(iter(self._queue), None)
            if film is None:
                self._rest()
                resting = True
                continue
            resting = False
            try:
                self._send(film)
            except UnreachableError as error:
                wait = self._failed(film, str(error), wait)
            except Exception as error:  # a full disk under the log, or a file that is none: this thread must live on
                wait = self._failed(film, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", wait)
            else:
                wait, self.problem = 0.0, ""
        self._rest()

    def _send(self, film: str) -> None:
        """Send one film, and take it from the queue. One that was judged anew meanwhile stays in it."""
        files = files_of(self._entry(film))
        paths = {self.out / name: name for name in files}
        gone = [path for path in paths if not path.is_file()]
        if files and not self._log.has(film, self.name, files):
            refused = self.destination.send([path for path in paths if path not in gone])
            refusals = {paths[path]: why for path, why in refused.items()} | {
                paths[path]: "no such file" for path in gone
            }
            self._log.add(film, self.name, files, refusals)
            self.sent += len(paths) - len(refusals)
            self.refused += len(refusals)
            self._notify("sent", len(paths) - len(refusals))
            if refusals:
                self._notify("refused", len(refusals))
                _log.warning(
                    "%s refused %d objects of a film: %s", self.name, len(refusals), next(iter(refusals.values()))
                )
        self._compare(film, files)
        with self._change:
            if files_of(self._entry(film)) == files:
                self._queue.pop(film, None)

    def _compare(self, film: str, files: dict[str, str]) -> None:
        """Note a film that has no answer any more, while the destination holds those to an earlier version of it.

        A PACS takes no object back from who sent it: a person has to delete them there.
        """
        held = [] if files else self._log.held(film, self.name)
        if held == self.outdated.get(film, []):
            return
        if held:
            self.outdated[film] = held
            entry = self._entry(film) or {"row": {}}
            row = entry["row"]
            _log.warning(
                "%s holds %d answers to an earlier version of %s, which is %s now. Delete them there",
                *(self.name, len(held), row.get("id", film), row.get("status", "gone")),
            )
        else:
            del self.outdated[film]
        self._notify("outdated", 1 if held else -1)

    def _failed(self, film: str, why: str, wait: float) -> float:
        """Note a failed try; how long to wait. Another film is tried next, lest a bad one hold up all."""
        if why != self.problem:
            _log.warning("%s. It is tried again", why)
        self.problem = why
        with self._change:
            if film in self._queue:
                self._queue.move_to_end(film)
        longer = min(_LONGEST, 2 * wait if wait else self._first)
        return longer * random.uniform(0.8, 1.0)

    def _rest(self) -> None:
        try:
            self.destination.rest()
        except Exception as error:
            _log.debug("%s: %s", self.name, error)
