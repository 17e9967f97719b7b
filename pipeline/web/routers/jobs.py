"""Jobs: several films that are handed in together, asked for, and fetched as a results folder."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse

from cxr_pipeline.about import NOTICE
from cxr_pipeline.results.folder import FOLDERS
from cxr_pipeline.web.answers import FILM_ID, JOB_ID, MEDIA, PICTURES, ApiError, problems, result_of
from cxr_pipeline.web.context import Server, multipart
from cxr_pipeline.web.films import UploadedFilm
from cxr_pipeline.web.jobs import Job

_ZIPPED = ("results.csv", "regions.json", "run.json")  # and the pictures; not what is for who runs the server

_ZIP_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {}}, "description": "results.csv, regions.json, pictures."}
}
_PICTURE_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind: {} for kind in sorted(set(MEDIA.values()))}, "description": "A PNG or JPEG file."}
}

JobId = Annotated[str, InPath(pattern=JOB_ID, description="As POST /v1/jobs gave it.")]
FilmId = Annotated[str, InPath(pattern=FILM_ID, description="As the job lists it.")]
Picture = Annotated[
    Literal["film.png", "mask.png", "crop.png", "heatmap.png", "overlay.jpg"],
    InPath(description="film.png is for screens; mask, crop and heat map have native pixels."),
]


def router(server: Server) -> APIRouter:
    """The routes below /v1/jobs."""
    routes = APIRouter(tags=["jobs"], dependencies=server.secured)
    _hand_in(routes, server)
    _ask(routes, server)
    _fetch(routes, server)
    return routes


def _hand_in(routes: APIRouter, server: Server) -> None:
    @routes.post(
        "/v1/jobs",
        status_code=202,
        response_model=server.job_model,
        responses=problems(408, 413, 415, 422, 429, 500, 503),
        openapi_extra=multipart(several=True),
    )
    async def create_job(request: Request, response: Response) -> Any:
        """Hand in films, each in a field `file`. Ask for the job until it is done; a bad film costs only itself."""
        job = await server.submit(request, most=server.most, pictures=True)
        response.headers["Location"] = f"{server.settings.root_path}/v1/jobs/{job.id}"
        return _shown(server, job)

    @routes.delete("/v1/jobs/{job}", status_code=204, response_class=Response, responses=problems(404, 422))
    def delete_job(job: JobId) -> None:
        """Delete a job and its films now. What the operator keeps by --keep stays."""
        server.queue.discard(server.queue.job(job))


def _ask(routes: APIRouter, server: Server) -> None:
    @routes.get("/v1/jobs/{job}", response_model=server.job_model, responses=problems(404, 422))
    def get_job(job: JobId) -> Any:
        """How far a job is, and the results of its films so far."""
        return _shown(server, server.queue.job(job))

    @routes.get("/v1/jobs/{job}/results", response_model=server.results_model, responses=problems(404, 409, 422))
    def get_results(job: JobId) -> Any:
        """The results of a finished job, one film after the other."""
        done = _finished(server, job)
        return {"results": [result_of(film.row, film.boxes, server.columns) for film in done.films], "notice": NOTICE}


def _fetch(routes: APIRouter, server: Server) -> None:
    @routes.get(
        "/v1/jobs/{job}/results.zip",
        response_class=FileResponse,
        responses=_ZIP_ANSWER | problems(404, 409, 422),
    )
    def get_zip(
        request: Request,
        job: JobId,
        background: BackgroundTasks,
        discard: Annotated[bool, Query(description="Delete the job once all of it was sent.")] = False,
    ) -> FileResponse:
        """The results folder of a finished job, as `pipeline run` would have left it, as a ZIP file."""
        done = _finished(server, job)
        with done.closing:
            path = done.folder / "results.zip"
            assert done.results is not None  # of every job that a caller can name
            if not path.exists():
                _zip(done.results, path)
        if discard and "range" not in request.headers:  # a part of it is not all of it
            background.add_task(server.queue.discard, done)
        return FileResponse(path, media_type="application/zip", filename=f"results-{done.id[:8]}.zip")

    @routes.get(
        "/v1/jobs/{job}/films/{film}/{picture}",
        response_class=FileResponse,
        responses=_PICTURE_ANSWER | problems(404, 422),
    )
    def get_picture(job: JobId, film: FilmId, picture: Picture) -> FileResponse:
        """A picture of a film that is done."""
        held = server.queue.job(job)
        found = held.film(film)
        path = held.picture(found, picture) if found is not None else None
        if path is None:
            raise ApiError(404, "no_such_picture", f"there is no {picture} of that film. The job lists what there is")
        return FileResponse(path, media_type=MEDIA[path.suffix])


def _shown(server: Server, job: Job) -> dict[str, Any]:
    done = [film for film in job.films if film.state == "done"]
    counts = Counter(film.row["status"] for film in done)
    return {
        "id": job.id,
        "status": job.status,
        "total": len(job.films),
        "done": len(done),
        "counts": {status: counts[status] for status in ("ok", "refused", "failed")},
        "films": [_shown_film(server, job, film) for film in job.films],
        "forgotten_in": server.queue.forgotten_in(job),
        "notice": NOTICE,
    }


def _shown_film(server: Server, job: Job, film: UploadedFilm) -> dict[str, Any]:
    done = film.state == "done"
    return {
        "id": film.id,
        "name": film.upload.name,
        "state": film.state,
        "result": result_of(film.row, film.boxes, server.columns) if done else None,
        "pictures": [name for name in PICTURES if job.picture(film, name)] if done else [],
    }


def _finished(server: Server, name: str) -> Job:
    job = server.queue.job(name)
    if not job.finished.done():
        done = sum(film.state == "done" for film in job.films)
        raise ApiError(
            409, "not_finished", f"{done} of {len(job.films)} films are done. Ask again when the job's status is done"
        )
    return job


def _zip(results: Path, path: Path) -> None:
    """The files of a results folder that are for people; pictures are packed already."""
    part = path.with_suffix(".part")
    pictures = sorted(
        file for folder in FOLDERS for file in (results / folder).glob("*") if not file.name.startswith(".")
    )
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:
        for one in [*(results / name for name in _ZIPPED), *pictures]:
            if one.is_file():
                file.write(one, one.relative_to(results).as_posix())
    part.rename(path)
