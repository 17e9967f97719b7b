"""Networks that open late: a run with nothing to do opens none, and others open theirs while films are looked up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from cxr_pipeline.models.runtimes import Network


class LateNetwork:
    """A network that opens when it is called first, if nobody opened it before. Safe to use from several threads."""

    def __init__(self, opening: Callable[[], Network]) -> None:
        self._opening = opening
        self._network: Network | None = None
        self._guard = threading.Lock()

    def open(self) -> Network:
        """Open it, if it is not open yet.

        Raises:
            models.store.WeightsError: its file is damaged.
        """
        with self._guard:
            if self._network is None:
                self._network = self._opening()
            return self._network

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The network's outputs by name; see `models.runtimes.Network`."""
        return (self._network or self.open())(batch)


class Waiting:
    """The networks of a chain that wait to be opened.

    Attributes:
        threads: cores for each network that was given none; None lets it take all.
    """

    def __init__(self) -> None:
        self.threads: int | None = None
        self._networks: list[LateNetwork] = []
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def add(self, opening: Callable[[], Network]) -> LateNetwork:
        """One more network."""
        self._networks.append(LateNetwork(opening))
        return self._networks[-1]

    def start(self) -> None:
        """Begin to open all of them in a thread of its own; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._open, name="cxr-open", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when all are open.

        Raises:
            models.store.WeightsError: the file of one is damaged.
        """
        self.start()
        assert self._thread is not None
        while self._thread.is_alive():
            self._thread.join(0.5)  # with a limit, so that Ctrl-C gets through on every system
        if self._error is not None:
            raise self._error

    def _open(self) -> None:
        try:
            for network in self._networks:
                network.open()
        except BaseException as error:
            self._error = error


_COLLECTING: ContextVar[Waiting | None] = ContextVar("cxr_late_networks", default=None)


@contextmanager
def late_networks() -> Iterator[Waiting]:
    """Within the block, `models.store.open_network` returns networks that are not open yet; they are in what it gives.

    A missing file is seen at once, a damaged one when the network is opened.
    """
    waiting = Waiting()
    token = _COLLECTING.set(waiting)
    try:
        yield waiting
    finally:
        _COLLECTING.reset(token)


def collecting() -> Waiting | None:
    """Where networks wait that are asked for now; None outside of `late_networks`."""
    return _COLLECTING.get()
