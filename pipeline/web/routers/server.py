"""The server itself: what it takes, whether it is well, its figures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from cxr_pipeline.about import version
from cxr_pipeline.data.formats import labels
from cxr_pipeline.stages.scores import AT_THRESHOLD
from cxr_pipeline.web.answers import Health, Limits
from cxr_pipeline.web.context import Server


def router(server: Server) -> APIRouter:
    """The routes /v1/limits, /healthz and /metrics."""
    routes = APIRouter(tags=["server"])
    settings, identity = server.settings, server.chain.identity
    classify = identity.about.get("config", {}).get("classify", {})
    several = bool(classify.get("multi_label"))

    @routes.get("/v1/limits", response_model=Limits, dependencies=server.secured)
    def get_limits() -> Any:
        """What the server takes."""
        return Limits(
            version=version(),
            classes=list(identity.classes),
            formats=labels(),
            max_upload_mb=settings.max_upload_mb,
            max_job_mb=settings.job_bytes / 1e6,
            max_megapixels=settings.pixels / 1e6,
            max_files=server.most,
            forget_after_minutes=settings.forget_after,
            kept=settings.keep is not None,
            positive=("" if several else classify.get("positive")) or "",
            cutoff=None if several else classify.get("cutoff", AT_THRESHOLD),
            unchecked=identity.about.get("unchecked", ""),
        )

    @routes.get(
        "/healthz",
        response_model=Health,
        responses={503: {"model": Health, "description": "It cannot judge films."}},
    )
    def get_health(response: Response) -> Any:
        """Whether films are judged. Needs no key."""
        healthy = server.queue.healthy
        response.status_code = 200 if healthy else 503
        return Health(status="ok" if healthy else "stuck", version=version(), queue=server.queue.waiting)

    @routes.get("/metrics", response_class=PlainTextResponse, dependencies=server.secured)
    def get_metrics() -> PlainTextResponse:
        """Counters for Prometheus."""
        return PlainTextResponse(server.queue.metrics.text())

    return routes
