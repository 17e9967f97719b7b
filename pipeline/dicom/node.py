"""The DICOM node: takes objects by C-STORE, answers C-ECHO, and asks nobody for anything."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cxr_pipeline.data.files import sha256_of
from cxr_pipeline.dicom import NodeError
from cxr_pipeline.dicom.commitment import SOP_CLASS
from cxr_pipeline.dicom.objects import Facts, look
from cxr_pipeline.dicom.peers import Peer, checked_title
from cxr_pipeline.dicom.spool import Spool, name_of
from cxr_pipeline.stages.apply import where

if TYPE_CHECKING:
    from pynetdicom.events import Event

SUCCESS, NO_ROOM, NOT_ALLOWED, NOT_TAKEN, UNREADABLE = 0x0000, 0xA700, 0x0124, 0x0122, 0xC000
_LARGEST = 512_000_000  # bytes of one object, which is held in memory until it is on the disk
_TOGETHER = 4 * _LARGEST  # bytes of all objects that are coming at one time
_PDU = 131_072  # bytes; pynetdicom's own 16 KB cost a large film a second
_IDLE, _ANSWER = 60, 60  # seconds that an association may be silent, and that a message may take

# Transfer syntaxes that are taken: those that films are read in, so that what a peer holds comes through unchanged. Not
# the deflated one: its header cannot be looked at without unfolding all of it, which may be any size.
SYNTAXES = (
    *("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"),  # uncompressed
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)),  # JPEG, JPEG-LS, JPEG 2000
    "1.2.840.10008.1.2.5",  # RLE
)
_VERIFICATION = "1.2.840.10008.1.1"
_HANDSHAKE = 10.0  # seconds

_log = logging.getLogger("cxr.dicom")


@dataclass(frozen=True)
class NodeSettings:
    """Where a node listens, and to whom.

    Attributes:
        title: what it calls itself; callers must call it so.
        host: address to listen on.
        port: 0 takes one that is free.
        allow: peers that may call; empty for everybody.
        refuse_others: answer what is no film to be judged with "SOP class not supported" and not with success.
        associations: at once; further ones are turned away for the moment.
        tls: encrypts, and where it asks for certificates, knows the callers by them.
    """

    title: str = "CXR"
    host: str = "127.0.0.1"
    port: int = 11112
    allow: tuple[Peer, ...] = ()
    refuse_others: bool = False
    associations: int = 64
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        checked_title(self.title)


class Node:
    """A listening node. What it takes is in the spool before the sender is told so.

    Args:
        settings: where it listens.
        spool: takes the films.
        done: tells, by name and checksum, whether a film was judged already as it is.
        notify: called with what became of each object ("new", "again", "left alone", "no room", "unreadable"), the
            title of the caller, what is known of the object, and why.
        commitment: called with the caller, the data set and the association of a request for storage commitment,
            before that is answered.
    """

    def __init__(
        self,
        settings: NodeSettings,
        spool: Spool,
        *,
        done: Callable[[str, str], bool],
        notify: Callable[[str, Peer, Facts, str], None],
        commitment: Callable[[Peer, Any, Any], None] | None = None,
    ) -> None:
        from pynetdicom import AE, AllStoragePresentationContexts

        self.settings, self._spool, self._done, self._notify = settings, spool, done, notify
        self._commitment = commitment
        self._ae = AE(settings.title)
        self._ae.maximum_associations = settings.associations
        self._ae.maximum_pdu_size = _PDU
        self._ae.network_timeout, self._ae.dimse_timeout, self._ae.acse_timeout = _IDLE, _ANSWER, _ANSWER
        self._ae.require_called_aet = True
        if settings.allow:
            self._ae.require_calling_aet = sorted({peer.title for peer in settings.allow})
        self._ae.add_supported_context(_VERIFICATION)
        for context in AllStoragePresentationContexts:
            self._ae.add_supported_context(str(context.abstract_syntax), list(SYNTAXES))
        if commitment is not None:
            self._ae.add_supported_context(SOP_CLASS)
        self._server: Any = None
        self._arriving: dict[Any, int] = {}  # association -> bytes of the message that is coming
        self._cut: set[Any] = set()  # associations that are being ended, for what they sent
        self._guard = threading.Lock()

    def start(self) -> int:
        """Begin to listen; the port.

        Raises:
            NodeError: the address is taken, or none of this machine.
        """
        from pynetdicom import evt

        handlers: list[Any] = [
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._act),
            (evt.EVT_PDU_RECV, self._count),
            (evt.EVT_DIMSE_RECV, self._whole),
            (evt.EVT_CONN_CLOSE, self._gone),
        ]
        address = (self.settings.host, self.settings.port)
        try:
            self._server = self._ae.start_server(
                address, block=False, ssl_context=self.settings.tls, evt_handlers=handlers
            )
        except OSError as error:
            raise NodeError(
                f"cannot listen on {self.settings.host} port {self.settings.port} ({error.strerror or error}). "
                "Choose another --port, or --bind"
            ) from None
        return int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        """Take no more; associations that are open are ended."""
        if self._server is not None:
            self._server.shutdown()
            self._ae.shutdown()

    def associations(self) -> int:
        """How many callers are connected."""
        return len(self._ae.active_associations)

    def _caller(self, event: Event) -> Peer:
        requestor = event.assoc.requestor
        return Peer(str(requestor.ae_title).strip(), str(requestor.address), int(requestor.port or 0))

    def _allowed(self, event: Event) -> bool:
        """Whether the caller is one of `--allow`: its title was looked at already, here its address too."""
        caller = self._caller(event)
        allow = self.settings.allow
        return not allow or any(one.title == caller.title and one.is_at(caller.host) for one in allow)

    def _echo(self, event: Event) -> int:
        return SUCCESS if self._allowed(event) else NOT_ALLOWED

    def _store(self, event: Event) -> int:
        if not self._allowed(event):
            return NOT_ALLOWED
        caller, request = self._caller(event), cast(Any, event.request)
        facts = Facts("", "")
        try:
            data = event.encoded_dataset()
            facts = look(data, str(request.AffectedSOPClassUID))
            return self._judged(caller, facts, str(request.AffectedSOPInstanceUID), data)
        except OSError as error:
            self._notify("no room", caller, facts, error.strerror or type(error).__name__)
            return NO_ROOM
        except Exception as error:  # the peer is told, and the node lives on
            _log.error("an object that %s sent raised %s", caller.title, where(error))
            self._notify("unreadable", caller, facts, type(error).__name__)
            return UNREADABLE

    def _judged(self, caller: Peer, facts: Facts, uid: str, data: bytes) -> int:
        """What to answer to an object; a film is safe on the disk then."""
        if facts.left_alone:
            self._notify("left alone", caller, facts, facts.left_alone)
            return NOT_TAKEN if self.settings.refuse_others else SUCCESS
        if not self._spool.has_room(len(data)):
            self._notify("no room", caller, facts, "the disk is nearly full")
            return NO_ROOM
        name = name_of(uid)
        if self._done(name, sha256_of(data)):
            self._notify("again", caller, facts, "")
            return SUCCESS
        self._spool.put(name, data)
        self._notify("new", caller, facts, "")
        return SUCCESS

    def _act(self, event: Event) -> tuple[int, None]:
        """Take a request for storage commitment; the answer to it goes out later."""
        if not self._allowed(event):
            return NOT_ALLOWED, None
        if self._commitment is None or event.action_type != 1:
            return 0x0123, None  # no such action
        try:
            self._commitment(self._caller(event), event.action_information, event.assoc)
        except OSError:
            return 0x0213, None  # resource limitation
        except Exception as error:
            _log.error("a request for storage commitment raised %s", where(error))
            return 0x0110, None  # processing failure
        return SUCCESS, None

    def _count(self, event: Event) -> None:
        """End an association whose message grows beyond reason, alone or with those of others.

        Messages are held in memory until they are whole. Who is cut off sends again, as after any lost connection.
        """
        if type(event.pdu).__name__ != "P_DATA_TF":
            return
        with self._guard:
            if event.assoc in self._cut:
                return
            size = self._arriving.get(event.assoc, 0) + event.pdu.pdu_length
            self._arriving[event.assoc] = size
            together = sum(self._arriving.values())
            if size <= _LARGEST and together <= _TOGETHER:
                return
            self._cut.add(event.assoc)
            del self._arriving[event.assoc]  # its end takes a moment, in which it must not count against others
        if size > _LARGEST:
            _log.error("an object of more than %d MB was not taken", _LARGEST // 1_000_000)
        else:
            _log.error("more than %d MB came at one time: a caller was cut off", _TOGETHER // 1_000_000)
        threading.Thread(target=event.assoc.abort, daemon=True).start()

    def _whole(self, event: Event) -> None:
        with self._guard:
            self._arriving.pop(event.assoc, None)

    def _gone(self, event: Event) -> None:
        with self._guard:
            self._arriving.pop(event.assoc, None)
            self._cut.discard(event.assoc)


def tls_context(cert: Path | None, key: Path | None, ca: Path | None, *, server: bool) -> ssl.SSLContext | None:
    """The encryption that options ask for; None where they ask for none.

    Args:
        cert: certificate of this node, PEM.
        key: its key; None where it is in the same file.
        ca: authorities that the other side's certificate must be of: then it must show one.
        server: for what listens; else for what calls.

    Raises:
        NodeError: a file is missing or none, or what listens has no certificate.
    """
    if cert is None and ca is None:
        return None
    if server and cert is None:
        raise NodeError("--tls-ca needs --tls-cert: what listens has to show a certificate. Give one")
    context = _Patient(ssl.PROTOCOL_TLS_SERVER) if server else ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not server:
        context.check_hostname = False  # nodes are known by title and authority; their certificates seldom name hosts
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise NodeError(
            f"the certificate, its key or the authority cannot be used ({error}). Give PEM files that belong together"
        ) from None
    if server and ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _Patient(ssl.SSLContext):
    """A server's context with a limit to a handshake: the thread that does it accepts all calls."""

    def wrap_socket(self, sock: Any, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        sock.settimeout(_HANDSHAKE)
        wrapped = super().wrap_socket(sock, *args, **kwargs)
        wrapped.settimeout(None)
        return wrapped
