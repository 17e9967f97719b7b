"""Reading compressed DICOM in processes of their own: a decoder that crashes or hangs costs its film alone.

The decoders of JPEG, JPEG-LS, JPEG 2000 and RLE behind pydicom are C libraries fed with whatever lies in a folder. In
the run's own process a crash would end the run, and a hang hold a thread for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from cxr_pipeline.data.radiograph import Radiograph, RadiographError, read

SECONDS = 120.0  # far above what any film takes that is sound
_FAMILY = "AF_PIPE" if sys.platform == "win32" else "AF_UNIX"
_START = 60.0  # seconds for a helper to start on a busy machine


class IsolatedReader:
    """`data.radiograph.read`, with compressed DICOM read by helper processes; safe to call from several threads.

    Args:
        seconds: what a helper may take for a film before it is stopped.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._guard = threading.Lock()
        self._idle: list[_Helper] = []
        self._all: list[_Helper] = []

    def __call__(self, path: str | Path, *, id: str | None = None) -> Radiograph:
        """Read a film.

        Raises:
            RadiographError: whatever is wrong with the file, a decoder that crashed or ran out of time too.
        """
        if not is_compressed_dicom(path):
            return read(path, id=id)
        helper = self._take()
        try:
            answer = helper.ask((str(path), id), self.seconds)
        except TimeoutError:
            self._drop(helper)
            raise RadiographError(
                path, f"decoding it took longer than {self.seconds:g} s and was stopped. Export it again", "too_slow"
            ) from None
        except (EOFError, OSError):
            self._drop(helper)
            raise RadiographError(
                path, "the decoder crashed on it: the file is damaged. Export it again, uncompressed", "decoder_crashed"
            ) from None
        with self._guard:
            self._idle.append(helper)
        if isinstance(answer, RadiographError):
            raise answer
        return answer

    def close(self) -> None:
        """End all helpers."""
        with self._guard:
            helpers, self._all, self._idle = self._all, [], []
        for helper in helpers:
            helper.stop()

    def _take(self) -> _Helper:
        with self._guard:
            if self._idle:
                return self._idle.pop()
        helper = _Helper()
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

    def __init__(self) -> None:
        key = os.urandom(16)
        with Listener(family=_FAMILY, authkey=key) as listener:
            root = str(Path(__file__).parent.parent)
            env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cxr_pipeline.run.isolation", listener.address],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=env,
                start_new_session=True,  # Ctrl-C is for the run, which then ends its helpers
            )
            self._process.stdin.write(key.hex().encode() + b"\n")
            self._process.stdin.flush()
            self._connection = self._accept(listener)

    def _accept(self, listener: Listener) -> Connection:
        """The helper's connection; an error where it dies before it calls."""
        answer: list[Connection] = []
        waiting = threading.Thread(target=lambda: answer.append(listener.accept()), daemon=True)
        waiting.start()
        waiting.join(_START)
        if not answer:
            self._process.kill()
            raise OSError("no helper process could be started to decode DICOM")
        return answer[0]

    def ask(self, question: tuple[str, str | None], seconds: float) -> Any:
        self._connection.send(question)
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._connection.close()


def is_compressed_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM whose pixels need a decoder; False for what is not there, or no DICOM."""
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return False
        from pydicom.filereader import read_file_meta_info

        return bool(read_file_meta_info(path).TransferSyntaxUID.is_compressed)
    except Exception:  # whatever is wrong with it, the reader says better
        return False


def serve(address: str, key: bytes) -> None:
    """Read films for the process that listens at `address`, until it hangs up."""
    with Client(address, authkey=key) as connection:
        while True:
            try:
                path, name = connection.recv()
            except (EOFError, OSError):
                return
            try:
                answer: Any = read(path, id=name)
            except RadiographError as error:
                answer = error
            connection.send(answer)


if __name__ == "__main__":
    serve(sys.argv[1], bytes.fromhex(sys.stdin.readline().strip()))
