"""The application: the routers put together, errors as JSON, and what stands in front of every request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from cxr_pipeline.about import NOTICE, version
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.web.answers import ApiError, problems
from cxr_pipeline.web.context import Server
from cxr_pipeline.web.routers import films, jobs, pages
from cxr_pipeline.web.routers import server as about
from cxr_pipeline.web.security import Guard, problem
from cxr_pipeline.web.settings import Settings

_CODES = {400: "malformed", 404: "not_found", 405: "method_not_allowed"}


def create_app(settings: Settings, chain: Chain) -> FastAPI:
    """The server's application, which owns the chain from its start to its end.

    Args:
        settings: where it listens, and its limits; checked already.
        chain: loaded, with all stages.
    """
    server = Server(settings, chain)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        server.queue.start()
        try:
            yield
        finally:
            await run_in_threadpool(server.queue.stop)

    app = FastAPI(
        title="cxr-pipeline",
        version=version(),
        summary=NOTICE,
        description="Chest X-rays in; lung masks, a TB score and regions to look at out. Errors are JSON: a code for "
        "programs and a sentence for people.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the request named, whatever that is
        lifespan=lifespan,
        responses=problems(400, 403) if settings.api_key is None else problems(400, 401),
    )
    app.state.queue = server.queue
    app.add_middleware(Guard, settings=settings, metrics=server.queue.metrics)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allow_origins),
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["X-API-Key", "Authorization", "Content-Type", "Range"],
            expose_headers=["Location", "Retry-After", "Content-Range", "Content-Disposition"],
        )
    answer_errors(app)
    for one in (films.router(server), jobs.router(server), about.router(server), pages.router(settings.language)):
        app.include_router(one)
    app.mount("/pages", StaticFiles(directory=pages.PAGES))
    return app


def answer_errors(app: FastAPI) -> None:
    """Make an application answer all errors as JSON: a code for programs, a sentence for people."""

    @app.exception_handler(ApiError)
    async def own(_request: Request, error: ApiError) -> JSONResponse:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        message = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        return problem(ApiError(422, "invalid", f"{message}. See /docs for what is allowed"))

    @app.exception_handler(HTTPException)
    async def other(_request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "refused")
        text = f"{str(error.detail).rstrip('.')}. See /docs for what there is"
        headers = dict(error.headers or {})
        if "GET" in headers.get("Allow", ""):
            headers["Allow"] += ", HEAD"
        return problem(ApiError(error.status_code, code, text, headers))
