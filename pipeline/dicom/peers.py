"""Other DICOM nodes, as a person names them: `AET`, `AET@host` or `AET@host:port`."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from cxr_pipeline.dicom import NodeError

_TITLE = re.compile(r"[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?")


@dataclass(frozen=True)
class Peer:
    """A DICOM node. `host` is empty, and `port` 0, where it was named by its title alone."""

    title: str
    host: str = ""
    port: int = 0

    @classmethod
    def parsed(cls, text: str) -> Peer:
        """The peer that a person named.

        Raises:
            NodeError: the text has another form.
        """
        title, at, place = text.partition("@")
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]@/]+)(?::(\d{1,5}))?", place)
        if (at and not found) or (found and found[2] and not 0 < int(found[2]) < 65536):
            raise NodeError(f"a DICOM node is named AET, AET@host or AET@host:port. Received: {text!r}")
        if not found:
            return cls(checked_title(title))
        return cls(checked_title(title), found[1].strip("[]"), int(found[2] or 0))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.title + (f"@{host}" if host else "") + (f":{self.port}" if self.port else "")

    def is_at(self, address: str) -> bool:
        """Whether a connection from that address may be this peer's."""
        if not self.host:
            return True
        try:
            found = {info[4][0] for info in socket.getaddrinfo(self.host, None)}
            return _plain(address) in {_plain(str(one)) for one in found}
        except (OSError, ValueError):
            return False


def checked_title(title: str) -> str:
    """An AE title as the standard has it.

    Raises:
        NodeError: it is none.
    """
    if not _TITLE.fullmatch(title):
        raise NodeError(f"an AE title has 1 to 16 characters, ASCII and no backslash. Received: {title!r}")
    return title


def _plain(address: str) -> str:
    """An address as text to compare, those of IPv4 within IPv6 as IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(found, "ipv4_mapped", None) or found)


ANYBODY = "any"


def allowed(named: Iterable[str], bind: str) -> tuple[Peer, ...]:
    """The peers that may call a node that listens on the address `bind`; empty for everybody.

    Raises:
        NodeError: a peer is named wrongly, or others than this machine could call and nobody was named.
    """
    named = list(named)
    if not named and not _loopback(bind):
        raise NodeError(
            f"--bind {bind} can be called from other machines. Name those that may: --allow AET@host (repeatable), or "
            "--allow any; or listen on 127.0.0.1"
        )
    return () if ANYBODY in named else tuple(Peer.parsed(one) for one in named)


def known_places(peers: Iterable[Peer], send_to: Iterable[str]) -> tuple[Peer, ...]:
    """The peers whose host and port are known, from those that may call and those that answers go to."""
    sent = [Peer.parsed(one) for one in send_to if not one.startswith(("http://", "https://"))]
    return tuple(peer for peer in (*sent, *peers) if peer.host and peer.port)


def _loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name: whatever it stands for
        return False
