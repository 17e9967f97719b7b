"""The application: routes of the API and of the page."""

from __future__ import annotations

import asyncio
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import BackgroundTasks, FastAPI, Query, Request, Response, Security
from fastapi import Path as InPath
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from cxr_pipeline.about import NOTICE, version
from cxr_pipeline.results.folder import FOLDERS
from cxr_pipeline.results.outputs import columns
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.web.answers import (
    FILM_ID,
    JOB_ID,
    PICTURES,
    ApiError,
    Health,
    Limits,
    job_models,
    problems,
    result_model,
    result_of,
)
from cxr_pipeline.web.films import Film
from cxr_pipeline.web.jobs import Desk, Job
from cxr_pipeline.web.security import Guard, problem
from cxr_pipeline.web.settings import Settings
from cxr_pipeline.web.uploads import receive

PAGES = Path(__file__).parent / "pages"
MOST_FILES = 200  # films of one job; larger ones are for `pipeline run`
_ZIPPED = ("results.csv", "regions.json", "run.json")  # and the pictures; not what is for who runs the server

# Codes of RadiographError that have an HTTP status of their own; all others are 422.
_STATUS = {"not_an_image": 415, "too_large": 413}
_CODES = {400: "malformed", 404: "not_found", 405: "method_not_allowed"}

JobId = Annotated[str, InPath(pattern=JOB_ID, description="As POST /v1/jobs gave it.")]
FilmId = Annotated[str, InPath(pattern=FILM_ID, description="As the job lists it.")]
Picture = Annotated[
    Literal["film.png", "mask.png", "crop.png", "heatmap.png", "overlay.png"],
    InPath(description="film.png is for screens; mask, crop and heat map have native pixels."),
]


def create_app(settings: Settings, chain: Chain) -> FastAPI:
    """The server's application, which owns the chain from its start to its end.

    Args:
        settings: where it listens, and its limits; checked already.
        chain: loaded, with all stages.
    """
    desk = Desk(chain, settings)
    names = columns(chain.identity.classes, chain.identity.columns)
    result = result_model(names)
    job_model, results_model = job_models(result)
    most = min(MOST_FILES, settings.queue)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        desk.start()
        try:
            yield
        finally:
            await run_in_threadpool(desk.stop)

    app = FastAPI(
        title="cxr-pipeline",
        version=version(),
        summary=NOTICE,
        description="Chest X-rays in; lung masks, a TB score and regions to look at out. Errors are JSON: a code for "
        "programs and a sentence for people.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=problems(400, 403) if settings.api_key is None else problems(400, 401),
    )
    app.state.desk = desk
    app.add_middleware(Guard, settings=settings, metrics=desk.metrics)
    _answer_errors(app)
    secured = _security(settings)

    @app.post(
        "/v1/analyze",
        response_model=result,
        responses=problems(408, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_multipart(several=False),
        dependencies=secured,
        tags=["films"],
    )
    async def analyze(request: Request) -> Any:
        """Judge one film and wait for the answer: its row of results.csv, and its boxes."""
        job = await submit(request, most=1, pictures=False)
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(job.finished)), settings.timeout)
        except (asyncio.TimeoutError, TimeoutError):
            raise ApiError(
                504,
                "timeout",
                f"the film was not judged within {settings.timeout:g} s. Try again later, use POST /v1/jobs, or start "
                "the server with a larger --timeout",
            ) from None
        finally:
            await run_in_threadpool(desk.discard, job)
        (film,) = job.films
        if film.problem is not None:
            raise ApiError(_STATUS.get(film.problem.code, 422), film.problem.code, film.problem.reason)
        if film.crashed:
            raise ApiError(500, "internal", "the server failed on this film. Tell who runs it; its log says where")
        return result_of(film.row, film.boxes, names)

    async def submit(request: Request, *, most: int, pictures: bool) -> Job:
        with desk.places() as places:
            folder = desk.new_folder()
            try:
                uploads = await receive(request, folder / "uploads", settings, most)
                places.grow(len(uploads))
                return desk.submit(folder, uploads, places, pictures=pictures)
            except BaseException:
                desk.drop_folder(folder)
                raise

    @app.post(
        "/v1/jobs",
        status_code=202,
        response_model=job_model,
        responses=problems(408, 413, 415, 422, 429, 500, 503),
        openapi_extra=_multipart(several=True),
        dependencies=secured,
        tags=["jobs"],
    )
    async def create_job(request: Request, response: Response) -> Any:
        """Hand in films, each in a field `file`. Ask for the job until it is done; a bad film costs only itself."""
        job = await submit(request, most=most, pictures=True)
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return shown(job)

    def shown(job: Job) -> dict[str, Any]:
        done = [film for film in job.films if film.state == "done"]
        counts = Counter(film.row["status"] for film in done)
        return {
            "id": job.id,
            "status": job.status,
            "total": len(job.films),
            "done": len(done),
            "counts": {status: counts[status] for status in ("ok", "refused", "failed")},
            "films": [shown_film(job, film) for film in job.films],
            "forgotten_in": desk.forgotten_in(job),
            "notice": NOTICE,
        }

    def shown_film(job: Job, film: Film) -> dict[str, Any]:
        done = film.state == "done"
        return {
            "id": film.id,
            "name": film.upload.name,
            "state": film.state,
            "result": result_of(film.row, film.boxes, names) if done else None,
            "pictures": [name for name in PICTURES if job.picture(film, name)] if done else [],
        }

    def finished(job_id: str) -> Job:
        job = desk.job(job_id)
        if not job.finished.done():
            done = sum(film.state == "done" for film in job.films)
            raise ApiError(
                409,
                "not_finished",
                f"{done} of {len(job.films)} films are done. Ask again when the job's status is done",
            )
        return job

    @app.get(
        "/v1/jobs/{job}", response_model=job_model, responses=problems(404, 422), dependencies=secured, tags=["jobs"]
    )
    def get_job(job: JobId) -> Any:
        """How far a job is, and the results of its films so far."""
        return shown(desk.job(job))

    @app.delete(
        "/v1/jobs/{job}",
        status_code=204,
        response_class=Response,
        responses=problems(404, 422),
        dependencies=secured,
        tags=["jobs"],
    )
    def delete_job(job: JobId) -> None:
        """Delete a job and its films now. What the operator keeps by --keep stays."""
        desk.discard(desk.job(job))

    @app.get(
        "/v1/jobs/{job}/results",
        response_model=results_model,
        responses=problems(404, 409, 422),
        dependencies=secured,
        tags=["jobs"],
    )
    def get_results(job: JobId) -> Any:
        """The results of a finished job, one film after the other."""
        done = finished(job)
        return {"results": [result_of(film.row, film.boxes, names) for film in done.films], "notice": NOTICE}

    @app.get(
        "/v1/jobs/{job}/results.zip",
        response_class=FileResponse,
        responses={200: {"content": {"application/zip": {}}, "description": "results.csv, regions.json, pictures."}}
        | problems(404, 409, 422),
        dependencies=secured,
        tags=["jobs"],
    )
    def get_zip(
        job: JobId,
        background: BackgroundTasks,
        discard: Annotated[bool, Query(description="Delete the job once it was sent.")] = False,
    ) -> FileResponse:
        """The results folder of a finished job, as `pipeline run` would have left it, as a ZIP file."""
        done = finished(job)
        with done.closing:
            path = done.folder / "results.zip"
            if not path.exists():
                _zip(done.results, path)
        if discard:
            background.add_task(desk.discard, done)
        return FileResponse(path, media_type="application/zip", filename=f"results-{done.id[:8]}.zip")

    @app.get(
        "/v1/jobs/{job}/films/{film}/{picture}",
        response_class=FileResponse,
        responses={200: {"content": {"image/png": {}}, "description": "A PNG file."}} | problems(404, 422),
        dependencies=secured,
        tags=["jobs"],
    )
    def get_picture(job: JobId, film: FilmId, picture: Picture) -> FileResponse:
        """A picture of a film that is done."""
        held = desk.job(job)
        found = held.film(film)
        path = held.picture(found, picture) if found is not None else None
        if path is None:
            raise ApiError(404, "no_such_picture", f"there is no {picture} of that film. The job lists what there is")
        return FileResponse(path, media_type="image/png")

    @app.get("/v1/limits", response_model=Limits, dependencies=secured, tags=["server"])
    def get_limits() -> Any:
        """What the server takes."""
        return Limits(
            version=version(),
            classes=list(chain.identity.classes),
            max_upload_mb=settings.max_upload_mb,
            max_job_mb=settings.job_bytes / 1e6,
            max_megapixels=settings.pixels / 1e6,
            max_files=most,
            forget_after_minutes=settings.forget_after,
            kept=settings.keep is not None,
            unchecked=chain.identity.about.get("unchecked", ""),
        )

    @app.get(
        "/healthz",
        response_model=Health,
        responses={503: {"model": Health, "description": "It cannot judge films."}},
        tags=["server"],
    )
    def get_health(response: Response) -> Any:
        """Whether films are judged. Needs no key."""
        healthy = desk.healthy
        response.status_code = 200 if healthy else 503
        return Health(status="ok" if healthy else "stuck", version=version(), queue=desk.waiting)

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=secured, tags=["server"])
    def get_metrics() -> PlainTextResponse:
        """Counters for Prometheus."""
        return PlainTextResponse(desk.metrics.text())

    @app.get("/", include_in_schema=False)
    def get_page() -> FileResponse:
        return FileResponse(PAGES / "index.html")

    @app.get("/docs", include_in_schema=False)
    def get_docs() -> FileResponse:
        return FileResponse(PAGES / "docs.html")

    app.mount("/pages", StaticFiles(directory=PAGES))
    return app


def _zip(results: Path, path: Path) -> None:
    """The files of a results folder that are for people; pictures are packed already."""
    part = path.with_suffix(".part")
    pictures = sorted(file for folder in FOLDERS for file in (results / folder).glob("*.png"))
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:
        for one in [*(results / name for name in _ZIPPED), *pictures]:
            if one.is_file():
                file.write(one, one.relative_to(results).as_posix())
    part.rename(path)


def _multipart(*, several: bool) -> dict[str, Any]:
    """The request body for the OpenAPI document; it is read by hand, so that keys and queue are looked at first."""
    film: dict[str, Any] = {"type": "string", "format": "binary", "description": "PNG, JPEG, TIFF, BMP or DICOM."}
    field = {"type": "array", "items": film, "minItems": 1} if several else film
    schema = {"type": "object", "required": ["file"], "properties": {"file": field}, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _security(settings: Settings) -> list[Any]:
    """For the document alone: `Guard` looks at the key, before anything is read."""
    if settings.api_key is None:
        return []
    return [
        Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="ApiKey")),
        Security(HTTPBearer(auto_error=False, scheme_name="Bearer")),
    ]


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def own(_request: Request, error: ApiError) -> JSONResponse:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        return problem(ApiError(422, "invalid", f"{said}. See /docs for what is allowed"))

    @app.exception_handler(HTTPException)
    async def other(_request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, "refused")
        text = f"{str(error.detail).rstrip('.')}. See /docs for what there is"
        return problem(ApiError(error.status_code, code, text, dict(error.headers or {})))
