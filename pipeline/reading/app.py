"""The reading page's server: films one after the other, answers kept at once. For this machine, with a key of its own.

Other users of the machine can reach its ports, and other sites its browser: everything but the page's own files needs
the key that stands in the address which the command prints.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from cxr_pipeline.about import NOTICE, version
from cxr_pipeline.data.radiograph import RadiographError
from cxr_pipeline.reading import ReadingError
from cxr_pipeline.reading.labels import agreement, agreement_said
from cxr_pipeline.reading.pictures import ChangedError, Pictures, lungs
from cxr_pipeline.reading.session import Session
from cxr_pipeline.report.films import size_of, turbo
from cxr_pipeline.results.drawing import FAINT
from cxr_pipeline.texts import Texts
from cxr_pipeline.web.answers import ApiError
from cxr_pipeline.web.app import answer_errors
from cxr_pipeline.web.metrics import Metrics
from cxr_pipeline.web.security import Guard
from cxr_pipeline.web.settings import Settings

PAGES = Path(__file__).parent / "pages"


class Answer(BaseModel):
    """What a reader says of a film, and how many seconds it was looked at."""

    answer: str = Field(max_length=100)
    seconds: float = Field(0, ge=0, le=1e6, allow_inf_nan=False)


def create_app(session: Session, settings: Settings, pictures: Pictures, language: str = "en") -> FastAPI:
    """The application of one reader at one folder.

    Args:
        settings: with an API key.
        pictures: closed by who opened it.
    """
    app = FastAPI(
        title="cxr-pipeline read", version=version(), summary=NOTICE, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_middleware(Guard, settings=settings, metrics=Metrics(lambda: 0, lambda: 0))
    answer_errors(app)
    _state(app, session, language)
    _films(app, session, pictures)

    @app.get("/")
    def get_page() -> FileResponse:
        return FileResponse(PAGES / "reading.html")

    app.mount("/pages", StaticFiles(directory=PAGES))
    return app


def _state(app: FastAPI, session: Session, language: str) -> None:
    say = Texts(language)

    def state() -> dict[str, Any]:
        answers = session.clicks.answers
        return {
            "films": len(session.sample),
            "done": sum(film["id"] in answers for film in session.sample),
            "next": session.next,
            "answered": [answers.get(film["id"]) for film in session.sample],
            "skipped": [n for n, film in enumerate(session.sample, 1) if film["id"] in session.gone],
        }

    @app.get("/v1/reading")
    def get_reading() -> dict[str, Any]:
        """Who reads, what a film may be answered with, and how far it is."""
        about = {"reader": session.reader, "blind": session.blind, "answers": session.answers, "notice": NOTICE}
        about |= {"colours": turbo(), "faint": FAINT, "texts": say.table, "language": say.language}
        return about | {"cutoff": session.cutoff, **state()}

    @app.post("/v1/films/{number}/answer")
    def post_answer(number: int, given: Answer) -> dict[str, Any]:
        """Keep an answer: it is on the disk when this answers."""
        try:
            session.answer(number, given.answer, seconds=round(given.seconds, 1))
        except ReadingError as error:
            raise ApiError(422, "no_such_answer", str(error)) from None
        return state()

    @app.get("/v1/agreement")
    def get_agreement() -> dict[str, Any]:
        """How far the readers of this folder agree."""
        pairs = agreement(session.everyone())
        return {"pairs": pairs, "said": agreement_said(pairs)}

    @app.post("/v1/labels")
    def post_labels() -> dict[str, Any]:
        """Write the labels of all that was answered so far."""
        return {"path": str(session.write())}


def _films(app: FastAPI, session: Session, pictures: Pictures) -> None:
    def shown(number: int) -> tuple[dict[str, Any], Any]:
        try:
            film = session.film(number)
        except ReadingError as error:
            raise ApiError(404, "no_such_film", str(error)) from None
        try:
            picture = pictures.film(film)
        except (ChangedError, RadiographError, OSError) as error:
            session.gone.add(film["id"])  # the page goes on with the next one
            raise why(number, error) from None
        session.gone.discard(film["id"])
        return film, picture

    def why(number: int, error: Exception) -> ApiError:
        if isinstance(error, RadiographError):
            return ApiError(422, error.code, error.reason)
        if isinstance(error, OSError):
            return ApiError(409, "gone", f"film {number} cannot be read ({error.strerror}). Put it back")
        return ApiError(409, "changed", str(error))

    @app.get("/v1/films/{number}")
    def get_film(number: int) -> dict[str, Any]:
        """A film: its size and outline; what the network said only where the reading is not blind."""
        film, picture = shown(number)
        entry = session.entry(film)
        row, size = entry["row"], size_of(entry["row"])
        height, width = picture.levels.shape
        out = {"number": number, "width": width, "height": height, "low": picture.low, "high": picture.high}
        out |= {"native": [size[1], size[0]] if size else [width, height], "lungs": lungs(session.results, entry)}
        out["answer"] = session.clicks.answers.get(film["id"])
        if not session.blind:
            out |= {"name": Path(film["image"]).name, "score": float(row["tb_score"]), "screen": row.get("screen")}
            out |= {"label": row.get("label"), "boxes": entry.get("regions") or [], "heat": bool(entry.get("heat"))}
        return out

    @app.get("/v1/films/{number}/levels")
    def get_levels(number: int) -> Response:
        """The film's grey levels: height x width numbers of 16 bit, the lower byte first."""
        _, picture = shown(number)
        return Response(picture.levels.tobytes(), media_type="application/octet-stream")

    @app.get("/v1/films/{number}/heat.png")
    def get_heat(number: int) -> Response:
        """The heat map of the whole film, small; none in a blind reading."""
        if session.blind:
            raise ApiError(403, "blind", "this reading is blind. Begin it with --not-blind to see the heat map")
        heat = session.entry(shown(number)[0]).get("heat")
        if not heat:
            raise ApiError(404, "no_heat", "this film has no heat map")
        return Response(base64.b64decode(heat), media_type="image/png")
