"""The page, and the page of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from cxr_pipeline.texts import FAILURES, LANGUAGES, REASONS, Texts

PAGES = Path(__file__).parent.parent / "pages"


def router(language: str | None = None) -> APIRouter:
    """The routes / and /docs; the files of both lie below /pages.

    Args:
        language: of the page's texts; None takes what the browser asks for.
    """
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def get_page() -> FileResponse:
        return FileResponse(PAGES / "index.html")

    @routes.get("/pages/texts.json")
    def get_texts(request: Request) -> dict[str, Any]:
        say = Texts(language or accepted(request.headers.get("accept-language", "")))
        reasons = {code: say(text) for code, text in REASONS.items() if say.table}
        failures = [[pattern, say(text)] for pattern, text in FAILURES.items() if say.table]
        return {"language": say.language, "texts": say.table, "reasons": reasons, "failures": failures}

    @routes.get("/docs")
    def get_docs() -> FileResponse:
        return FileResponse(PAGES / "docs.html")

    return routes


def accepted(header: str) -> str:
    """The language that a browser likes most, by its header Accept-Language, of those that there are; else English."""
    liked = []
    for place, part in enumerate(header.split(",")[:20]):
        name, _, share = part.strip().partition(";q=")
        code = name.split("-")[0].lower()
        try:
            quality = float(share or 1)
        except ValueError:
            continue
        if code in LANGUAGES and quality > 0:
            liked.append((-quality, place, code))
    return min(liked)[2] if liked else "en"
