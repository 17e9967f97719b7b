"""What the API answers: models for its OpenAPI document, and errors as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model

from cxr_pipeline.about import NOTICE

_TEXT = frozenset({"image", "id", "status", "error", "label", "screen", "warnings", "sha256"})
_WHOLE = frozenset({"width", "height", "regions"})
_ALWAYS = frozenset({"image", "id", "status", "error", "warnings", "sha256"})  # empty text rather than null
_MEANING = {
    "image": "Name that the caller gave the film, cleaned; never used as a path.",
    "id": "Name that the server gave it.",
    "status": "ok, refused or failed.",
    "error": "Why it is not ok.",
    "lung_fraction": "Share of the film's pixels that are lung.",
    "label": "The likeliest class.",
    "screen": "positive, negative or unsure: the decision at the operating threshold.",
    "score": "0 to 100; 50 is the operating threshold.",
    "tb_score": "0 to 100; 50 is the operating threshold.",
    "regions": "Number of boxes.",
    "sha256": "Of the uploaded bytes.",
}
JOB_ID, FILM_ID = r"^[0-9a-f]{32}$", r"^film-[0-9]{4}$"
PICTURES = {
    "film.png": "view",
    "mask.png": "masks",
    "crop.png": "crops",
    "heatmap.png": "heatmaps",
    "overlay.jpg": "overlays",
}
MEDIA = {".png": "image/png", ".jpg": "image/jpeg"}


class ApiError(Exception):
    """A request that is not answered: an HTTP status, a code as one word, and a sentence on what to do."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}
        super().__init__(message)


class Problem(BaseModel):
    """Why a request was not answered."""

    code: str = Field(description="One word for programs, such as too_large.", examples=["too_large"])
    message: str = Field(description="What was received, what is allowed, and what to do next.")


class Box(BaseModel):
    """A region to look at, in pixels of the film."""

    bbox: tuple[float, float, float, float] = Field(
        description="x, y, w, h from the top-left corner, in native pixels."
    )
    area: float
    score: float
    category: str = Field(description="The class whose map it is from.")
    side: str = Field(description="The patient's own: left or right.")
    zone: str = Field(description="upper, middle or lower.")


class Health(BaseModel):
    """Whether the server can judge films."""

    status: Literal["ok", "stuck"]
    version: str
    queue: int = Field(description="Films that wait or are in work.")


class Limits(BaseModel):
    """What the server takes, and how long it holds it."""

    version: str
    classes: list[str]
    formats: str  # of films, as people write them
    max_upload_mb: float
    max_job_mb: float
    max_megapixels: float
    max_files: int
    forget_after_minutes: float
    kept: bool = Field(description="Whether the operator keeps results on disk.")
    unchecked: str = Field("", description="Why films are not checked for being chest X-rays; empty where they are.")
    positive: str = Field("", description="The class that films are screened for; empty without one.")
    cutoff: float | None = Field(None, description="The score from which a film is screen positive.")
    notice: str = NOTICE


def result_model(columns: Sequence[str]) -> type[BaseModel]:
    """A row of `results.csv` as a model: the same names, numbers as numbers, null where the chain did not reach.

    Args:
        columns: of `results.csv`, see `results.outputs.columns`.
    """
    fields: dict[str, Any] = {}
    for name in columns:
        kind: Any = str if name in _TEXT else int if name in _WHOLE else float
        about = Field(description=_MEANING.get(name))
        fields[name] = (kind, about) if name in _ALWAYS else (kind | None, about)
    fields["boxes"] = (list[Box] | None, Field(description="The regions; null where the chain did not reach."))
    fields["notice"] = (str, NOTICE)
    return create_model("Result", __doc__="A film as results.csv has it, and its boxes.", **fields)


def result_of(row: dict[str, str], boxes: list[dict[str, Any]] | None, columns: Sequence[str]) -> dict[str, Any]:
    """The fields of `result_model` for a row of text and its regions."""
    out: dict[str, Any] = {}
    for name in columns:
        text = row.get(name)
        if name in _TEXT:
            out[name] = text or "" if name in _ALWAYS else text
        else:
            if name == "score":  # as results.csv calls it where the weights do not know TB
                text = row.get("tb_score")
            out[name] = None if not text else int(text) if name in _WHOLE else float(text)
    return out | {"boxes": boxes, "notice": NOTICE}


def job_models(result: type[BaseModel]) -> tuple[type[BaseModel], type[BaseModel]]:
    """The models of a job and of the results of a finished one."""
    of_film: dict[str, Any] = {
        "id": (str, Field(pattern=FILM_ID)),
        "name": (str, Field(description="As the caller called it, cleaned.")),
        "state": (Literal["waiting", "running", "done"], ...),
        "result": (result | None, None),
        "pictures": (list[str], Field(description="What can be fetched below /v1/jobs/{job}/films/{film}/.")),
    }
    film = create_model("Film", __doc__="A film of a job.", **of_film)
    of_job: dict[str, Any] = {
        "id": (str, Field(pattern=JOB_ID)),
        "status": (Literal["waiting", "running", "done"], ...),
        "total": (int, Field(description="Number of films.")),
        "done": (int, Field(description="How many are finished.")),
        "counts": (dict[str, int], Field(description="Finished films by status: ok, refused, failed.")),
        "films": (list[film], ...),
        "forgotten_in": (
            float | None,
            Field(description="Seconds until it is deleted, unless asked for; null while open."),
        ),
        "notice": (str, NOTICE),
    }
    job = create_model("Job", __doc__="Films that were handed in together.", **of_job)
    of_results: dict[str, Any] = {
        "results": (list[result], ...),  # type: ignore[valid-type]  # a model that `result_model` made
        "notice": (str, NOTICE),
    }
    results = create_model("Results", __doc__="The results of a finished job.", **of_results)
    return job, results


_WHEN = {
    400: "The request is malformed, or addressed to another host.",
    401: "The API key is missing or wrong.",
    403: "Another web site sent the request.",
    404: "There is no such job, film or picture, or it was deleted.",
    409: "The job is not finished yet.",
    408: "The upload stalled, or came too slowly.",
    413: "Too many bytes, pixels or files.",
    415: "Not multipart/form-data, or the file is no image that can be read.",
    422: "What was sent does not fit: no field `file`, a film that is damaged or no chest film, or a malformed id.",
    429: "The queue is full; try again after the seconds in Retry-After.",
    500: "The server failed on it.",
    503: "The server is stopping, or its disk is full.",
    504: "Judging the film took too long.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for errors of these kinds."""
    out: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        out[status] = {"model": Problem, "description": _WHEN[status]}
        if status == 429:
            out[status]["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return out
