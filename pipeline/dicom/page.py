"""What `pipeline listen --http` shows: the queue on a page, and figures for Prometheus. Needs the extra `[web]` too."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, PlainTextResponse
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cxr_pipeline.about import version
from cxr_pipeline.web.metrics import Metrics
from cxr_pipeline.web.routers.pages import PAGES as SHARED
from cxr_pipeline.web.security import Guard
from cxr_pipeline.web.server import listen, server_config
from cxr_pipeline.web.settings import Settings

if TYPE_CHECKING:
    from cxr_pipeline.dicom.listen import Listener

PAGES = Path(__file__).parent / "pages"
_RECEIVED = ("new", "again", "left alone", "no room", "unreadable")


def page_settings(host: str, port: int, api_key: str | None, allow_hosts: tuple[str, ...]) -> Settings:
    """Where the page is served, checked as that of `pipeline serve` is.

    Raises:
        WebError: others than this machine could look and there is no API key.
    """
    settings = Settings(host=host, port=port, api_key=api_key, allow_hosts=allow_hosts)
    settings.check()
    return settings


def serve(listener: Listener, settings: Settings) -> str:
    """Serve the page from a thread that ends with the process; its address.

    Raises:
        WebError: the address cannot be listened on.
    """
    socket = listen(settings)
    host, port = socket.getsockname()[:2]
    server = uvicorn.Server(server_config(settings, create_app(listener, settings)))
    threading.Thread(target=server.run, kwargs={"sockets": [socket]}, name="cxr-page", daemon=True).start()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def create_app(listener: Listener, settings: Settings) -> FastAPI:
    """The page's application, behind the same guard as that of `pipeline serve`."""
    metrics = Metrics(lambda: len(listener.spool), lambda: 0)
    metrics.add(_Figures(listener))
    app = FastAPI(title="cxr-pipeline listen", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    files = {"queue.js": PAGES / "queue.js", "page.css": SHARED / "page.css"}

    @app.get("/")
    def get_page() -> FileResponse:
        return FileResponse(PAGES / "queue.html")

    @app.get("/pages/{name}")
    def get_file(name: str) -> Response:
        return FileResponse(files[name]) if name in files else Response(status_code=404)

    @app.get("/v1/queue")
    def get_queue() -> dict[str, Any]:
        return state(listener)

    @app.get("/healthz")
    def get_health(response: Response) -> dict[str, Any]:
        healthy = listener.healthy
        response.status_code = 200 if healthy else 503
        return {"status": "ok" if healthy else "stuck", "version": version(), "queue": len(listener.spool)}

    @app.get("/metrics")
    def get_metrics() -> PlainTextResponse:
        return PlainTextResponse(metrics.text())

    return app


def state(listener: Listener) -> dict[str, Any]:
    """How the node stands: figures, destinations, the last films by their ids; nothing that names a patient."""
    counts, now = listener.counts, time.monotonic()
    return {
        "title": listener.settings.node.title,
        "waiting": len(listener.spool),
        "callers": listener.node.associations(),
        "received": {name: counts[name] for name in _RECEIVED},
        "judged": {name: counts[name] for name in ("ok", "refused", "failed")},
        "problem": listener.problem,
        "destinations": [
            {
                "name": one.name,
                "waiting": len(one),
                "sent": one.sent,
                "refused": one.refused,
                "outdated": len(one.outdated),
                "problem": one.problem,
                "again_in": round(max(0.0, one.again - now)) if one.problem else None,
            }
            for one in listener.senders
        ],
        "films": list(listener.recent),
    }


class _Figures(Collector):
    """Figures of the node for Prometheus, taken when they are asked for."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def collect(self) -> Iterator[Any]:
        now = state(self._listener)
        objects = CounterMetricFamily("cxr_objects", "DICOM objects received, by what became of them.", labels=["what"])
        for what, count in now["received"].items():
            objects.add_metric([what.replace(" ", "_")], count)
        films = CounterMetricFamily("cxr_node_films", "Films judged, by status.", labels=["status"])
        for status, count in now["judged"].items():
            films.add_metric([status], count)
        sent = CounterMetricFamily("cxr_answers", "Answers sent, by destination.", labels=["destination", "what"])
        waiting = GaugeMetricFamily("cxr_answers_waiting", "Films whose answers wait.", labels=["destination"])
        down = GaugeMetricFamily("cxr_destination_down", "1 where the last try failed.", labels=["destination"])
        for number, one in enumerate(now["destinations"], 1):  # by number: no label holds an address
            sent.add_metric([str(number), "sent"], one["sent"])
            sent.add_metric([str(number), "refused"], one["refused"])
            waiting.add_metric([str(number)], one["waiting"])
            down.add_metric([str(number)], 1.0 if one["problem"] else 0.0)
        callers = GaugeMetricFamily("cxr_associations", "Callers that are connected.", value=now["callers"])
        yield from (objects, films, sent, waiting, down, callers)
