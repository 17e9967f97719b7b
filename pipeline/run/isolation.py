"""Reading films in processes of their own: a decoder that crashes, hangs or swallows memory costs its film alone.

The decoders of PNG, JPEG, TIFF and DICOM are C libraries fed with whatever lies in a folder. In the run's own process a
crash would end the run, a hang hold a thread for ever, and a bomb take the memory of the machine. A helper may take
`SECONDS` for a film and `BYTES` of memory beyond its own; the pixels come back in shared memory, without a copy.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cxr_pipeline.data.locks import end_with_parent
from cxr_pipeline.data.radiograph import Radiograph, RadiographError, read
from cxr_pipeline.run.helper import BYTES, Process, take_early

SECONDS = 120.0  # far above what any film takes that is sound
TRIES = 2  # helpers that a film may crash before it is failed: the first may have died of something else
_SHARES = hasattr(os, "memfd_create")


class Tries(Protocol):
    """Remembers what is being read, on the disk, so that a film that ends the whole process is known afterwards."""

    def begin(self, key: str) -> int:
        """Note that reading `key` begins; returns how often it was begun before and never ended."""

    def end(self, key: str) -> None:
        """Note that reading `key` ended, well or not."""


class TriesFolder:
    """`Tries` as one small file per film that is being read, in a folder: none are left where nothing was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, key: str) -> int:
        """See `Tries`."""
        path = self.folder / _file_name(key)
        try:
            before = len(path.read_bytes())
        except OSError:
            before = 0
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b".")
        return before

    def end(self, key: str) -> None:
        """See `Tries`."""
        with contextlib.suppress(OSError):
            (self.folder / _file_name(key)).unlink()

    def close(self) -> None:
        """Remove the folder, if nothing is being read."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _file_name(key: str) -> str:
    from hashlib import sha256

    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class IsolatedReader:
    """`data.radiograph.read` in helper processes, used again and again; safe to call from several threads.

    Args:
        seconds: what a helper may take for a film before it is stopped.
        bytes: of memory that it may take for a film; enforced where the system can (Linux).
        tries: remembers what is being read; None where nothing is kept.
    """

    def __init__(self, seconds: float = SECONDS, bytes: int = BYTES, tries: Tries | None = None) -> None:
        self.seconds, self.bytes, self.tries = seconds, bytes, tries
        self._guard = threading.Lock()
        self._idle: list[_Helper] = []
        self._all: list[_Helper] = []

    def __call__(self, path: str | Path, *, id: str | None = None, **how: Any) -> Radiograph:
        """Read a film; see `data.radiograph.read` for `how`.

        Raises:
            RadiographError: whatever is wrong with the file, a decoder that crashed or ran out of time or memory too.
        """
        if self.tries is None:
            return self._read(path, id, how)
        key = os.path.abspath(path)
        if self.tries.begin(key) >= TRIES:
            self.tries.end(key)
            raise RadiographError(
                path,
                f"the whole run was killed {TRIES} times while it was read: it is left out. Export it again, smaller",
                "killed_the_run",
            )
        try:
            return self._read(path, id, how)
        finally:
            self.tries.end(key)

    def _read(self, path: str | Path, id: str | None, how: dict[str, Any]) -> Radiograph:
        for attempt in range(1, TRIES + 1):
            helper = self._take()
            try:
                answer = helper.ask((str(path), id, how), self.seconds)
            except TimeoutError:
                self._drop(helper)
                raise RadiographError(
                    path,
                    f"decoding it took longer than {self.seconds:g} s and was stopped. Export it again",
                    "too_slow",
                ) from None
            except (EOFError, OSError):
                self._drop(helper)
                if attempt == TRIES:
                    raise RadiographError(
                        path,
                        "the decoder crashed on it: the file is damaged. Export it again, uncompressed",
                        "decoder_crashed",
                    ) from None
                continue
            except BaseException:
                self._drop(helper)
                raise
            with self._guard:
                self._idle.append(helper)
            if isinstance(answer, RadiographError):
                raise answer
            return answer
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End all helpers."""
        with self._guard:
            helpers, self._all, self._idle = self._all, [], []
        for helper in helpers:
            helper.stop()
        if isinstance(self.tries, TriesFolder):
            self.tries.close()

    def _take(self) -> _Helper:
        with self._guard:
            while self._idle:
                helper = self._idle.pop()
                if helper.alive:
                    return helper
                self._all.remove(helper)
        helper = _Helper(self.bytes)
        with self._guard:
            self._all.append(helper)
        return helper

    def _drop(self, helper: _Helper) -> None:
        helper.stop()
        with self._guard:
            if helper in self._all:
                self._all.remove(helper)


class _Helper:
    """A process that reads one film after the other."""

    def __init__(self, memory: int) -> None:
        self._started = take_early(memory) or Process(memory)
        self._process = self._started.process
        self._connection = self._started.connection

    @property
    def alive(self) -> bool:
        """See `Process.alive`."""
        return self._started.alive

    def ask(self, question: tuple[str, str | None, dict[str, Any]], seconds: float) -> Any:
        self._connection.send(question)
        if not self._connection.poll(seconds):
            raise TimeoutError
        answer = self._connection.recv()
        if isinstance(answer, RadiographError):
            return answer
        film, shape = answer
        return replace(film, pixels=self._pixels(shape))

    def _pixels(self, size: tuple[int, int]) -> np.ndarray:
        """The film's pixels (H, W) float32, out of shared memory where there is any, or else out of the pipe."""
        count = size[0] * size[1]
        if not _SHARES:
            return np.frombuffer(bytearray(self._connection.recv_bytes()), np.float32, count).reshape(size)
        from multiprocessing.reduction import recv_handle

        handle = recv_handle(self._connection)
        try:
            shared = mmap.mmap(handle, 4 * count)
        finally:
            os.close(handle)
        return np.frombuffer(shared, np.float32, count).reshape(size)  # the array keeps the map alive, and ends it

    def stop(self) -> None:
        self._started.stop()


def serve(address: str, key: bytes, memory: int, parent: int) -> None:
    """Read films for the process that listens at `address`, until it hangs up.

    Args:
        address: of the listener.
        key: that both sides know.
        memory: bytes that reading a film may take.
        parent: the listener's process; this one ends with it.
    """
    end_with_parent(parent)
    _limit(memory)
    with Client(f"\0{address[1:]}" if address.startswith("@") else address, authkey=key) as connection:
        while True:
            try:
                path, name, how = connection.recv()
            except (EOFError, OSError):
                return
            try:
                film = read(path, id=name, **how)
            except RadiographError as error:
                connection.send(error)
                continue
            _send(connection, film, parent)


def _send(connection: Connection, film: Radiograph, parent: int) -> None:
    pixels = np.ascontiguousarray(film.pixels, np.float32)
    connection.send((replace(film, pixels=np.empty(0, np.float32)), pixels.shape))
    if not _SHARES:
        connection.send_bytes(pixels.data.cast("B"))
        return
    from multiprocessing.reduction import send_handle

    handle = os.memfd_create("film", os.MFD_CLOEXEC)
    try:
        os.ftruncate(handle, pixels.nbytes)
        view, at = pixels.data.cast("B"), 0
        while at < len(view):
            at += os.write(handle, view[at:])
        send_handle(connection, handle, parent)
    finally:
        os.close(handle)


def _limit(memory: int) -> None:
    """Let this process take so many bytes of memory more than it has; on Linux alone, others cannot tell."""
    try:
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    except (ImportError, OSError, ValueError):
        return


if __name__ == "__main__":
    serve(sys.argv[1], bytes.fromhex(sys.stdin.readline().strip()), int(sys.argv[2]), int(sys.argv[3]))
