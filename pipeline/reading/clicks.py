"""What a reader clicked: a line of JSON for each answer, on the disk before the page is told."""

from __future__ import annotations

import errno
import json
import os
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cxr_pipeline.data.files import PRIVATE, sync_folder


class Clicks:
    """The answers of one reader, in a file that is only ever added to. The last answer to a film counts.

    Args:
        path: `NAME.jsonl`; made with the first answer. Lines that a kill tore are left out.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, str] = {}  # by id of the film, in the order of the last answers
        self._guard = threading.Lock()
        self._torn = False
        data = path.read_bytes() if path.exists() else b""
        self._torn = bool(data) and not data.endswith(b"\n")
        for line in data.splitlines():
            try:
                one = json.loads(line)
                film, answer = str(one["id"]), str(one["answer"])
            except (ValueError, KeyError, TypeError):
                continue
            self._take(film, answer)

    def _take(self, film: str, answer: str) -> None:
        self.answers.pop(film, None)
        self.answers[film] = answer

    def add(self, film: str, answer: str, **further: Any) -> None:
        """Keep an answer: when this returns, the disk has it.

        Raises:
            OSError: the disk takes no more.
        """
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = json.dumps({"id": film, "answer": answer, "at": when, **further}) + "\n"
        with self._guard:
            new = not self.path.exists()
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE)
            data = (b"\n" if self._torn else b"") + line.encode()
            self._torn = True  # until all of it is there: what follows a half line begins a line of its own
            try:
                # In one piece, so that lines of two windows do not mix.
                if os.write(file, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file)
            finally:
                os.close(file)
            if new:
                sync_folder(self.path.parent)  # the name of a new file is on the disk only then
            self._torn = False
            self._take(film, answer)
