"""Listening for `pipeline read`, on this machine alone."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from cxr_pipeline.reading.app import create_app
from cxr_pipeline.reading.pictures import Pictures
from cxr_pipeline.reading.session import Session
from cxr_pipeline.web.server import listen, server_config
from cxr_pipeline.web.settings import Settings

_log = logging.getLogger("cxr.read")


def serve(session: Session, *, port: int = 0, language: str = "en", tell: Callable[[str], None] = print) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        port: 0 takes a free one. tell: gets the page's address, which holds the key.

    Raises:
        WebError: the port cannot be listened on.
    """
    settings = Settings(host="127.0.0.1", port=port, api_key=secrets.token_urlsafe(24))
    pictures = Pictures()
    try:
        with listen(settings) as listener:
            # Behind the #, which a browser sends to nobody.
            tell(f"http://127.0.0.1:{listener.getsockname()[1]}/#{settings.api_key}")
            app = create_app(session, settings, pictures, language)
            with suppress(KeyboardInterrupt):
                uvicorn.Server(server_config(settings, app)).run(sockets=[listener])
    finally:
        pictures.close()
