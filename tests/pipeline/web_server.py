"""A server for tests: over the chain without networks, in this process, or listening on a port of its own."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import uvicorn

from pipeline.chain import Chain
from pipeline.runner import identity_of
from pipeline.web.server import config, listen
from pipeline.web.settings import Settings
from tests.pipeline import fake_chain


def fake(**options):
    """A chain without networks; `options` as `fake_chain.chain` takes them."""
    stages = fake_chain.chain(**options)
    return Chain(stages, identity_of(stages), {})


@contextmanager
def listening(chain=None, **settings):
    """A server on a free port of this machine; gives its address."""
    wanted = Settings(port=0, **settings)
    with listen(wanted) as socket:
        server = uvicorn.Server(config(wanted, chain or fake()))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
