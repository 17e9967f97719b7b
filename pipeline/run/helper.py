"""The process that decodes films for a run: how it is started, before anything heavy is imported.

A helper needs as long to start as the run itself. The command line starts the first one, and both import side by side.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path

# Of memory that decoding one film may take: 100 megapixels as 32-bit floats, their samples, and three copies of either.
BYTES = 2_500_000_000
_FAMILY = "AF_PIPE" if sys.platform == "win32" else "AF_UNIX"
_START = 120.0  # seconds for a helper to start on a busy machine


class Process:
    """A process that serves `run.isolation.serve`. It ends with the thread that made this object (Linux), or when told.

    Args:
        memory: bytes that reading a film may take there.
    """

    def __init__(self, memory: int = BYTES) -> None:
        self.memory = memory
        key = os.urandom(16)
        self._listener: Listener | None = Listener(_address(), family=_FAMILY, authkey=key)
        self._connection: Connection | None = None
        root = str(Path(__file__).parent.parent)
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
            "OPENBLAS_NUM_THREADS": "1",  # each thread's buffers would count as memory
            "OMP_NUM_THREADS": "1",
            "RUST_BACKTRACE": "0",  # of a decoder that panics on a damaged film: 20 s each, and nobody reads it
        }
        name = os.fsdecode(self._listener.address).replace("\0", "@", 1)  # an argument cannot hold a zero byte
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cxr_pipeline.run.isolation", name, str(memory), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=env,
            start_new_session=True,  # Ctrl-C is for the run, which then ends its helpers
        )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once: that shows when it does not call
            self.process.stdin.write(key.hex().encode() + b"\n")
            self.process.stdin.flush()

    @property
    def connection(self) -> Connection:
        """The line to the process; waits for it to call where it has just been started.

        Raises:
            OSError: it did not.
        """
        if self._connection is None:
            assert self._listener is not None
            self._connection = self._accepted(self._listener)
            self._hang_up()
        return self._connection

    def _accepted(self, listener: Listener) -> Connection:
        answer: list[Connection] = []

        def accept() -> None:
            while not answer:
                try:
                    answer.append(listener.accept())
                except (AuthenticationError, EOFError, ConnectionError):  # somebody else, who does not know the key
                    continue
                except OSError:  # the line was closed
                    return

        waiting = threading.Thread(target=accept, daemon=True)
        waiting.start()
        begun = time.monotonic()
        while waiting.is_alive() and self.alive and time.monotonic() - begun < _START:
            waiting.join(0.1)
        if not answer:
            self.process.kill()
            raise OSError("no helper process could be started to decode films")
        return answer[0]

    def _hang_up(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @property
    def alive(self) -> bool:
        """Whether the process runs: the system ends it with the thread that started it."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        if self._connection is not None:
            self._connection.close()
        self._hang_up()


def _address() -> str | None:
    """A name to listen at. On Linux one without a file: a path in a deep temporary folder is too long for a socket."""
    return f"\0cxr-{os.urandom(16).hex()}" if sys.platform.startswith("linux") else None


_early: list[Process] = []
_guard = threading.Lock()


def start_early() -> None:
    """Start a helper that the next reader takes: to be called from the main thread, with which it ends."""
    with _guard:
        _early.append(Process())


def take_early(memory: int) -> Process | None:
    """A helper that was started early with this limit, if there is one left that runs."""
    with _guard:
        while _early:
            one = _early.pop()
            if one.alive and one.memory == memory:
                return one
            one.stop()
    return None


def stop_early() -> None:
    """End the helpers that nobody took."""
    with _guard:
        while _early:
            _early.pop().stop()
