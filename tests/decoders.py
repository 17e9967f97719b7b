"""Processes that decode films, kept from one test to the next: most of a short run's time goes into starting them.

They are real ones, and are asked as ever; only their start is shared. A fresh one is started where a test has another
working folder or environment, as a process takes both from the one that starts it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from cxr_pipeline.run import helper, isolation

MOST = 4  # that wait for the next test
_START = helper.Process


class Pool:
    """Processes that nobody asks at the moment, each with what it took from this process at its start."""

    def __init__(self):
        self._starter = ThreadPoolExecutor(1)  # a process ends with the thread that started it
        self._guard = threading.Lock()
        self._idle = []

    def take(self, memory):
        inherited = _inherited(memory)
        with self._guard:
            for number, (before, process) in enumerate(self._idle):
                if before == inherited:
                    del self._idle[number]
                    if process.alive:
                        return inherited, process
                    process.stop()
                    break
        return inherited, self._starter.submit(_START, memory).result()

    def put(self, inherited, process):
        with self._guard:
            self._idle.append((inherited, process))
            old = self._idle[:-MOST]
            del self._idle[:-MOST]
        for _, one in old:
            one.stop()

    def close(self):
        for _, one in self._idle:
            one.stop()
        self._starter.shutdown()


def _inherited(memory):
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return memory, os.getcwd(), env


@contextmanager
def lent_by(pool: Pool) -> Iterator[None]:
    """Have all readers of films take their processes from `pool`, and give them back to it when they end them."""

    class Lent:
        """Stands for `helper.Process`."""

        def __init__(self, memory=helper.BYTES):
            self.memory = memory
            self.guard, self.ended, self.asked = threading.Lock(), False, False
            self._inherited, self._lent = pool.take(memory)

        @property
        def process(self):
            return self._lent.process

        @property
        def connection(self):
            return self._lent.connection

        @property
        def alive(self):
            return not self.ended and self._lent.alive

        def stop(self):
            with self.guard:
                if self.ended:
                    return
                self.ended = True
            if self.asked or not self._lent.alive:  # in the middle of an answer, or told to end by a test
                self._lent.stop()
            else:
                pool.put(self._inherited, self._lent)

    class Helper(isolation._Helper):
        def ask(self, question, seconds):
            with self._started.guard:
                if self._started.ended:
                    raise OSError("the line is closed")  # as that of a process which was ended
                self._started.asked = True
            answer = super().ask(question, seconds)
            self._started.asked = False
            return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helper, "Process", Lent)
        patch.setattr(isolation, "Process", Lent)
        patch.setattr(isolation, "_Helper", Helper)
        yield
