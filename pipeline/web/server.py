"""Listening: the socket, uvicorn, and what the terminal says."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from cxr_pipeline.about import NOTICE
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.web import WebError
from cxr_pipeline.web.app import create_app
from cxr_pipeline.web.patience import Waiting, protocol
from cxr_pipeline.web.settings import Settings

_CONNECTIONS = 1024  # at once; further ones are answered 503. Those in no request are bounded in `patience`
_GRACE = 10  # seconds for open requests when the server is told to stop

_log = logging.getLogger("cxr.web")


def serve(settings: Settings, chain: Chain) -> None:
    """Serve until Ctrl-C or SIGTERM; temporary folders are deleted then.

    Raises:
        WebError: the address cannot be listened on.
        OSError: the folder for --keep cannot be made.
    """
    if settings.keep is not None:
        settings.keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    with listen(settings) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _log.info("http://%s:%d  (Ctrl-C ends it; the API: /docs). %s", shown, port, NOTICE)
        kept = f"Results are kept in {settings.keep}" if settings.keep is not None else "Nothing is kept"
        _log.info("%s. Key needed: %s", kept, "yes" if settings.api_key is not None else "no, for this machine alone")
        with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended
            uvicorn.Server(config(settings, chain)).run(sockets=[listener])


def config(settings: Settings, chain: Chain) -> uvicorn.Config:
    """Uvicorn's settings for the server of films."""
    return server_config(settings, create_app(settings, chain))


def server_config(settings: Settings, app: FastAPI) -> uvicorn.Config:
    """Uvicorn's settings: no access log, which holds paths; no trust in forwarded headers; HTTP alone."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        http=protocol(Waiting(per_address=settings.per_address)),
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_GRACE,
    )


def listen(settings: Settings) -> socket.socket:
    """A listening socket.

    Raises:
        WebError: the address is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=512)
    except OSError as error:
        raise WebError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror or error}). "
            "Choose another --port, or --host"
        ) from None
