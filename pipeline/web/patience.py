"""How long a connection may take: deadlines for headers and answers, and how many one address may hold.

uvicorn bounds the number of connections and the pause between two requests, but waits for the end of a header for ever:
a few hundred half-sent ones would keep everybody else out. Here connections that are in no request (new ones, and those
between two requests) have a deadline and a number, above which the oldest of them gives way. Who sends a request at
once, as every program and browser does, is never among the oldest. Bodies are watched by `security.Guard`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from ipaddress import ip_address
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # from the first byte of a header to its end, or of a connection to its first header
LINGER = 2.0  # seconds to read an answer that came before the whole body was sent
WRITE_SECONDS = 60.0  # that a caller may take none of what is sent to it
WAITING = 256  # connections that are in no request
PER_ADDRESS = 64  # connections of one address; of this machine's own, where a reverse proxy may be, any number


class Waiting:
    """The connections of one server that are in no request, the oldest first, and the number per address.

    Args:
        most: that may be in no request; beyond it the oldest is closed.
        per_address: connections that one address may hold, in requests or not; this machine's own are not counted.
    """

    def __init__(self, most: int = WAITING, per_address: int = PER_ADDRESS) -> None:
        self.most, self.per_address = most, per_address
        self._waiting: OrderedDict[PatientProtocol, None] = OrderedDict()
        self._addresses: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a connection; False where its address holds too many."""
        if _own(address):
            return True
        self._addresses[address] += 1
        return self._addresses[address] <= self.per_address

    def leave(self, address: str) -> None:
        """Count a connection no more."""
        if not _own(address):
            self._addresses[address] -= 1
            if self._addresses[address] <= 0:
                del self._addresses[address]

    def add(self, one: PatientProtocol) -> None:
        """A connection waits for a request; where there are too many, the one that waits longest is closed."""
        self._waiting[one] = None
        if len(self._waiting) > self.most:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.give_way()

    def remove(self, one: PatientProtocol) -> None:
        """A connection has a request, or is closed."""
        self._waiting.pop(one, None)


def _own(address: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ip_address(address).is_loopback
    except ValueError:  # a Unix socket has none
        return True


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with an end to its patience. Made by `protocol`, which gives it the server's `waiting`."""

    waiting: Waiting
    _deadline: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    _address: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a header, unless the address holds too many connections."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        if not self.waiting.enter(self._address):
            transport.write(
                b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            transport.close()
            return
        self._wait(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        self._stop_writing()
        if self._address is not None:
            self.waiting.leave(self._address)
            self._address = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the deadline of a header begins with its first one and is not moved by further ones."""
        if self._deadline is None and self.conn.their_state is h11.IDLE:
            self._wait(HEADER_SECONDS)
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """After an answer: an unfinished body is not waited for, and a begun next header has its deadline."""
        unfinished = self.conn.their_state is h11.SEND_BODY
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if unfinished:
            self._wait(LINGER)
        elif self.conn.their_state is h11.IDLE:
            self._wait(HEADER_SECONDS if self.conn.trailing_data[0] else self.timeout_keep_alive)

    def pause_writing(self) -> None:
        """The caller takes nothing: it has some time to go on."""
        super().pause_writing()
        self._stop_writing()
        self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The caller goes on."""
        self._stop_writing()
        super().resume_writing()

    def give_way(self) -> None:
        """Close the connection, which is in no request."""
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.abort()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(seconds, self.give_way)
        self.waiting.add(self)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.waiting.remove(self)

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None


def protocol(waiting: Waiting | None = None) -> type[PatientProtocol]:
    """The protocol of one server, for uvicorn's setting `http`.

    Args:
        waiting: counts its connections.
    """
    about: dict[str, Any] = {"waiting": waiting or Waiting()}
    return type("PatientProtocol", (PatientProtocol,), about)
