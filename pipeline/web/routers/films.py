"""One film, one answer."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from cxr_pipeline.web.answers import ApiError, problems, result_of
from cxr_pipeline.web.context import Server, multipart

# Codes of RadiographError that have an HTTP status of their own; all others are 422.
_STATUS = {"not_an_image": 415, "too_large": 413}


def router(server: Server) -> APIRouter:
    """The route that judges one film while the caller waits."""
    routes = APIRouter(tags=["films"], dependencies=server.secured)

    @routes.post(
        "/v1/analyze",
        response_model=server.result_model,
        responses=problems(408, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=multipart(several=False),
    )
    async def analyze(request: Request) -> Any:
        """Judge one film and wait for the answer: its row of results.csv, and its boxes."""
        job = await server.submit(request, most=1, pictures=False)
        seconds = server.settings.timeout
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(job.finished)), seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise ApiError(
                504,
                "timeout",
                f"the film was not judged within {seconds:g} s. Try again later, use POST /v1/jobs, or start "
                "the server with a larger --timeout",
            ) from None
        finally:
            await run_in_threadpool(server.queue.discard, job)
        (film,) = job.films
        if film.problem is not None:
            raise ApiError(_STATUS.get(film.problem.code, 422), film.problem.code, film.problem.reason)
        if film.crashed:
            raise ApiError(500, "internal", "the server failed on this film. Tell who runs it; its log says where")
        return result_of(film.row, film.boxes, server.columns)

    return routes
