"""Where answers are sent: another DICOM node (C-STORE), or a DICOMweb server (STOW-RS)."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.dicom import NodeError
from cxr_pipeline.dicom.peers import Peer
from cxr_pipeline.dicom.webclient import HTTP_ERRORS, client, wrong_status

_TAKEN = frozenset({0x0000, 0x0107, 0x0111, 0xB000, 0xB006, 0xB007})  # with 0x0111 the peer had it already
# Answers after which sending the same again is of no use. What is not among them may end by itself: a full disk, a
# peer that starts.
_FINAL = range(0xA900, 0xAA00), range(0xC000, 0xD000)
_FINAL_CODES = frozenset({0x0105, 0x0106, 0x0112, 0x0117, 0x0118, 0x0119, 0x0122, 0x0210})
_NO_ROOM = range(0xA700, 0xA800)  # which passes
_CONNECT, _ANSWER = 10, 60  # seconds


class UnreachableError(CxrError):
    """A destination that takes nothing now; sending is tried again later."""


class Destination(ABC):
    """One place that answers are sent to. Used by one thread.

    Attributes:
        name: as the user gave it, without a secret; also in the log of what was sent.
    """

    name: str

    @abstractmethod
    def send(self, files: Sequence[Path]) -> dict[Path, str]:
        """Send objects, each a DICOM file.

        Returns:
            Why, for each that the destination will never take.

        Raises:
            UnreachableError: not all could be sent now. Those that were are sent again with the others: by their UIDs
                the destination knows them.
        """

    def rest(self) -> None:  # noqa: B027  (not all have something to let go of)
        """Let go of connections: there is nothing to send for now."""


class StoreScu(Destination):
    """A DICOM node, by C-STORE over one association that is held while there is something to send.

    Args:
        peer: with host and port.
        ae_title: what this node calls itself.
        tls: for an encrypted connection.
    """

    scheme: ClassVar[str] = "dimse"

    def __init__(self, peer: Peer, ae_title: str, tls: ssl.SSLContext | None = None) -> None:
        from pynetdicom import AE

        self.name, self._peer, self._tls = str(peer), peer, tls
        self._ae = AE(ae_title)
        self._ae.connection_timeout, self._ae.acse_timeout = _CONNECT, _ANSWER
        self._ae.dimse_timeout = self._ae.network_timeout = _ANSWER
        self._syntaxes: dict[str, set[str]] = {}  # class -> transfer syntaxes to offer
        self._association: Any = None

    def send(self, files: Sequence[Path]) -> dict[Path, str]:
        """See `Destination`."""
        refused = {}
        kinds = {file: _kind(file) for file in files}
        for sop_class, syntax in kinds.values():
            known = self._syntaxes.setdefault(sop_class, {ExplicitVRLittleEndian, ImplicitVRLittleEndian})
            if syntax not in known:
                known.add(syntax)
                self.rest()
        if self._association is not None and any(kind not in self._offered for kind, _ in kinds.values()):
            self.rest()
        if self._association is None or not self._association.is_established:
            self._connect()
        for file in files:
            why = self._store(file)
            if why:
                refused[file] = why
        return refused

    def _connect(self) -> None:
        from pynetdicom import build_context

        self.rest()
        wanted = [build_context(one, sorted(syntaxes)) for one, syntaxes in self._syntaxes.items()]
        tls: dict[str, Any] = {"tls_args": (self._tls, None)} if self._tls is not None else {}
        association = self._ae.associate(self._peer.host, self._peer.port, wanted, self._peer.title, **tls)
        if not association.is_established:
            why = "rejected the association" if association.is_rejected else "cannot be reached"
            if not association.is_rejected and association.acceptor.primitive is not None:
                why = "takes none of the objects: no presentation context was accepted"
            raise UnreachableError(f"{self.name} {why}")
        self._association, self._offered = association, frozenset(self._syntaxes)

    def _store(self, file: Path) -> str:
        """Why the peer will never take a file; empty where it has it."""
        try:
            answer = self._association.send_c_store(file)
        except ValueError as error:  # no context for it was accepted, or the file is none
            return " ".join(str(error).split())[:200]
        except (RuntimeError, AttributeError) as error:  # the association is gone
            self._association = None
            raise UnreachableError(f"{self.name}: the association was lost ({error})") from None
        status = answer.get("Status")
        if status is None:
            self.rest()
            raise UnreachableError(f"{self.name} ended the association, or did not answer within {_ANSWER} s")
        if status in _TAKEN:
            return ""
        why = f"status {status:04X}{_comment(answer)}"
        if status in _FINAL_CODES or any(status in some for some in _FINAL):
            return why
        self.rest()
        raise UnreachableError(f"{self.name} answered with {why}")

    def rest(self) -> None:
        """See `Destination`."""
        if self._association is not None and self._association.is_established:
            self._association.release()
        self._association = None


class StowRs(Destination):
    """A DICOMweb server, by STOW-RS.

    Args:
        url: of the service, such as https://pacs.example.org/dicom-web.
        ca: file of certificates that the server's is checked against; None for the system's own.
    """

    def __init__(self, url: str, ca: Path | None = None) -> None:
        self.name, self._client = url, client(url, ca)

    def send(self, files: Sequence[Path]) -> dict[Path, str]:
        """See `Destination`."""
        refused = {}
        for file in files:  # one by one: the server's answer then is about this one, whatever it says
            try:
                answer = self._client.store_instances([pydicom.dcmread(file)])
            except HTTP_ERRORS as error:
                status = wrong_status(error)
                if status not in (400, 409, 413, 415, 422):
                    raise UnreachableError(f"{self.name}: {_short(error)}") from None
                refused[file] = f"HTTP {status}"
                continue
            failures = answer.get("FailedSOPSequence") or []
            if failures:
                reason = failures[0].get("FailureReason")
                if reason is None:
                    refused[file] = "refused"
                elif int(reason) in _NO_ROOM:
                    raise UnreachableError(f"{self.name} has no room (reason {int(reason):04X})")
                elif int(reason) not in _TAKEN:
                    refused[file] = f"reason {int(reason):04X}"
        return refused


def destination(text: str, ae_title: str, *, tls: ssl.SSLContext | None = None, ca: Path | None = None) -> Destination:
    """The destination that `--send-to` names: `AET@host:port`, or the http(s) address of a DICOMweb service.

    Raises:
        NodeError: it is neither.
    """
    if text.startswith(("http://", "https://")):
        return StowRs(text.rstrip("/"), ca)
    peer = Peer.parsed(text)
    if not peer.host or not peer.port:
        raise NodeError(
            f"--send-to reads AET@host:port, or the address of a DICOMweb service such as "
            f"https://pacs.example.org/dicom-web. Received: {text!r}"
        )
    return StoreScu(peer, ae_title, tls)


def _kind(file: Path) -> tuple[str, str]:
    meta = pydicom.filereader.read_file_meta_info(file)
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def _comment(answer: pydicom.Dataset) -> str:
    comment = str(answer.get("ErrorComment", "") or "")
    return f" ({comment})" if comment else ""


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
