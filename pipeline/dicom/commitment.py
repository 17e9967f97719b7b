"""Storage commitment: a peer asks whether its films are safe here, and is told, even where this node is killed between.

A request is a file before it is answered::

    DIR/spool/commitment/<hash>.json     asked for and not told yet

The answer goes out over the association that the request came by, while that is open; else over a new one, to the
address that the peer was named with.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from cxr_pipeline.data.files import sha256_of, write_json
from cxr_pipeline.dicom.peers import Peer
from cxr_pipeline.stages.apply import where

_SOP_INSTANCE = "1.2.840.10008.1.20.1.1"  # well-known, of the push model
SOP_CLASS = "1.2.840.10008.1.20.1"
_ALL, _SOME = 1, 2  # event types: all are committed; some are not
_NO_SUCH_OBJECT = 0x0112
_FIRST, _LONGEST, _GIVE_UP = 2.0, 300.0, 7 * 86_400.0  # seconds

_SETTLED = 1.0  # seconds after which a caller that has not hung up waits for the answer
_ANSWER = 10.0  # seconds

_log = logging.getLogger("cxr.dicom")


class Commitment:
    """Takes requests, and tells peers what is safe.

    Args:
        folder: of requests that are not told yet.
        title: of this node.
        peers: with host and port, of those that a new association is opened to.
        holds: whether the object of that UID is safe on the disk.
        tls: for connections to peers.
    """

    def __init__(
        self, folder: Path, title: str, peers: Sequence[Peer], holds: Callable[[str], bool], tls: Any = None
    ) -> None:
        self.folder, self._title, self._holds, self._tls = folder, title, holds, tls
        self._peers = {peer.title: peer for peer in peers if peer.host and peer.port}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._change = threading.Condition()
        self._open: dict[
            str, tuple[Any, float]
        ] = {}  # name of the request -> the association that it came by, and when
        self._tries: dict[Path, tuple[float, float]] = {}  # when next, and how long to wait after that
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cxr-commitment", daemon=True)

    def start(self) -> None:
        """Begin to tell what is not told yet."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not told yet is told after the next start."""
        with self._change:
            self._stopping.set()
            self._change.notify_all()
        if self._thread.is_alive():  # not where the node could not even begin to listen
            self._thread.join(10)

    def __len__(self) -> int:
        """How many requests are not told yet."""
        return sum(1 for _ in self.folder.glob("*.json"))

    def ask(self, caller: Peer, wanted: Dataset, association: Any = None) -> None:
        """Take a request; it is on the disk when this returns.

        Raises:
            OSError: the disk takes no more.
            AttributeError: the request lacks what it must have.
        """
        objects = [
            [str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID)] for one in wanted.ReferencedSOPSequence
        ]
        request = {"caller": caller.title, "transaction": str(wanted.TransactionUID), "objects": objects}
        name = sha256_of(f"{caller.title} {wanted.TransactionUID}".encode())[:32]
        write_json(self.folder / f"{name}.json", request, durable=True, mode=0o600)
        with self._change:
            self._open[name] = (association, time.monotonic())
            self._change.notify_all()

    def _run(self) -> None:
        while True:
            with self._change:
                if self._stopping.is_set():
                    return
                self._change.wait(0.5 if self._open or any(self.folder.glob("*.json")) else 5.0)
            for path in sorted(self.folder.glob("*.json")):
                if self._stopping.is_set():
                    return
                self._try(path)

    def _try(self, path: Path) -> None:
        now = time.monotonic()
        again, wait = self._tries.get(path, (0.0, _FIRST))
        association, came = self._open.get(path.stem, (None, 0.0))
        if now < again or now < came + _SETTLED:
            return
        self._open.pop(path.stem, None)
        notified, age = False, 0.0
        try:
            age = time.time() - path.stat().st_mtime
            notified = self._tell(json.loads(path.read_bytes()), association)
        except Exception as error:  # whatever a peer asked for or answered: this thread must live on
            _log.debug("commitment: %s", where(error))
        if notified or age > _GIVE_UP:
            path.unlink(missing_ok=True)
            self._tries.pop(path, None)
        else:
            self._tries[path] = (now + wait, min(_LONGEST, 2 * wait))

    def _tell(self, request: dict[str, Any], association: Any) -> bool:
        """Tell the result; False where the peer cannot be reached now."""
        report, kind = self._report(request)
        if association is not None and association.is_established:
            association.dimse_timeout = _ANSWER
            try:
                status, _ = association.send_n_event_report(report, kind, SOP_CLASS, _SOP_INSTANCE)
                if status.get("Status") == 0:
                    return True
            except (RuntimeError, ValueError):  # it was released meanwhile
                pass
        peer = self._peers.get(request["caller"])
        return peer is not None and self._call(peer, report, kind)

    def _report(self, request: dict[str, Any]) -> tuple[Dataset, int]:
        report, held, missing = Dataset(), [], []
        report.TransactionUID = request["transaction"]
        for sop_class, uid in request["objects"]:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
            if self._holds(uid):
                held.append(item)
            else:
                item.FailureReason = _NO_SUCH_OBJECT
                missing.append(item)
        if held:
            report.ReferencedSOPSequence = held
        if missing:
            report.FailedSOPSequence = missing
        return report, _SOME if missing else _ALL

    def _call(self, peer: Peer, report: Dataset, kind: int) -> bool:
        from pynetdicom import AE, build_role

        ae = AE(self._title)
        ae.connection_timeout = 10
        ae.add_requested_context(SOP_CLASS)
        role = build_role(SOP_CLASS, scu_role=False, scp_role=True)
        tls: dict[str, Any] = {"tls_args": (self._tls, None)} if self._tls is not None else {}
        association = ae.associate(peer.host, peer.port, ae_title=peer.title, ext_neg=[role], **tls)
        if not association.is_established:
            return False
        try:
            status, _ = association.send_n_event_report(report, kind, SOP_CLASS, _SOP_INSTANCE)
            return status.get("Status") == 0
        finally:
            association.release()
