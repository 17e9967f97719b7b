"""Films that came in, on the disk before the sender is answered, and until they are judged.

::

    DIR/spool/
      new/<name>.dcm      came in and is not judged yet: this folder is the queue
      films/<name>.dcm    taken to be judged; what `results.csv` names

A film is in `new` until its results are safely on the disk. So whatever is killed and whenever, the next start finds
in `new` what is left to do, and finds nothing there that is done.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cxr_pipeline.data.files import PART, PRIVATE, folder_mode, sweep

SUFFIX = ".dcm"
_SPARE = 200_000_000  # bytes that the disk keeps free beside a film that comes in
# What file systems answer that sync no folders, such as network drives.
_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, getattr(errno, "ENOTSUP", errno.EINVAL))
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Taken:
    """A film that is to be judged: its name, where it lies, and which version of it that is."""

    name: str
    path: Path
    version: tuple[int, int, int]


class Spool:
    """The films of a node. Safe to use from several threads; one process a folder, which its owner sees to.

    Args:
        folder: made where it does not exist, with those in it.
        mode: permissions of the films.
        keep: whether a film stays in `films` once it is judged.
        spare: bytes that the disk has to keep free.

    Raises:
        OSError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, *, mode: int = PRIVATE, keep: bool = True, spare: int = _SPARE) -> None:
        self.folder, self.new, self.films = folder, folder / "new", folder / "films"
        self.mode, self.keep, self.spare = mode, keep, spare
        for one in (folder, self.new, self.films):
            one.mkdir(mode=folder_mode(mode), parents=True, exist_ok=True)
        sweep(self.new)
        sweep(self.films)
        self._change = threading.Condition()
        found = sorted(self.new.glob(f"*{SUFFIX}"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        self._queue = OrderedDict((path.stem, path.stat().st_mtime) for path in found)  # name -> when it came
        self._in_work = 0
        self._latest: dict[str, tuple[int, int, int]] = {}  # name -> the version in `films`, until it is settled

    def __len__(self) -> int:
        """How many films wait or are in work."""
        return len(self._queue) + self._in_work

    def path_of(self, name: str) -> Path:
        """Where a film lies once it is taken."""
        return self.films / f"{name}{SUFFIX}"

    def holds(self, name: str) -> bool:
        """Whether the film of that name is on the disk, judged or not."""
        return any((folder / f"{name}{SUFFIX}").is_file() for folder in (self.new, self.films))

    def waits(self, name: str) -> bool:
        """Whether a film of that name came whose results are not safe yet."""
        return (self.new / f"{name}{SUFFIX}").is_file()

    def has_room(self, size: int) -> bool:
        """Whether the disk takes a film of `size` bytes and keeps the spare."""
        return shutil.disk_usage(self.new).free >= size + self.spare

    def put(self, name: str, data: bytes) -> None:
        """Keep a film: when this returns, not even a power cut takes it back. A film of the same name is replaced.

        Raises:
            OSError: the disk takes no more; nothing of the film stays.
        """
        path = self.new / f"{name}{SUFFIX}"
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), self.mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with self._change:  # not while `settle` looks at the name
                os.replace(part, path)
                self._queue.setdefault(name, path.stat().st_mtime)
                self._change.notify_all()
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        sync(self.new)

    def take(self, most: int, wait: float) -> list[Taken]:
        """The films that came first, at most so many; none where none comes within `wait` seconds.

        What an earlier process took and did not finish is among them again.

        Raises:
            OSError: the disk takes no more; the films stay in the queue.
        """
        with self._change:
            if not self._queue:
                self._change.wait(wait)
            names = list(self._queue)[:most]
            taken = [self._placed(name) for name in names if (self.new / f"{name}{SUFFIX}").is_file()]
            for name in names:
                del self._queue[name]
            self._in_work += len(taken)
        return taken

    def _placed(self, name: str) -> Taken:
        """Put a film into `films` under its name; the one in `new` stays until the results are safe."""
        source, target = self.new / f"{name}{SUFFIX}", self.path_of(name)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PART}")
        try:
            os.link(source, part)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, part)
        os.replace(part, target)
        part.unlink(missing_ok=True)  # a link that is renamed onto a link to the same file stays
        self._latest[name] = _version(source)
        return Taken(name, target, self._latest[name])

    def settle(self, taken: Taken) -> None:
        """Forget a film whose results are safe. One that came again meanwhile is in the queue or in work, and stays."""
        path = self.new / f"{taken.name}{SUFFIX}"
        with self._change:
            try:
                if path.exists() and _version(path) == taken.version:
                    path.unlink()
                if self._latest.get(taken.name) == taken.version:  # else `films` has a newer one, which is being judged
                    del self._latest[taken.name]
                    if not self.keep:
                        taken.path.unlink(missing_ok=True)
            finally:
                self._in_work -= 1

    def leave(self, taken: Taken) -> None:
        """Have a film wait for the next start: it could not be judged, for a reason that may pass."""
        with self._change:
            self._in_work -= 1
            if self._latest.get(taken.name) == taken.version:
                del self._latest[taken.name]

    def give_back(self, taken: Taken) -> None:
        """Put a film that could not be judged now into the queue again, at its end."""
        with self._change:
            self._in_work -= 1
            self._queue.setdefault(taken.name, 0.0)
            self._change.notify_all()

    def wake(self) -> None:
        """Let whoever waits in `take` return."""
        with self._change:
            self._change.notify_all()


def name_of(uid: str) -> str:
    """The name of the film with that SOP Instance UID: the UID itself, or a hash of what is none."""
    if len(uid) <= 64 and _UID.fullmatch(uid):
        return uid
    return "uid-" + hashlib.sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder; where the system lets it be opened.

    Raises:
        OSError: the disk did not take it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
    finally:
        os.close(descriptor)


def _version(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns
