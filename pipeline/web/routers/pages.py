"""The page, and the page of the API."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

PAGES = Path(__file__).parent.parent / "pages"


def router() -> APIRouter:
    """The routes / and /docs; the files of both lie below /pages."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def get_page() -> FileResponse:
        return FileResponse(PAGES / "index.html")

    @routes.get("/docs")
    def get_docs() -> FileResponse:
        return FileResponse(PAGES / "docs.html")

    return routes
