"""`pipeline serve`: a page and a JSON API over the chain. Needs the extra `[web]`; nothing heavy is imported here."""

from __future__ import annotations

from importlib.util import find_spec

from cxr_pipeline.configs.errors import CxrError

_NEEDED = {"fastapi": "fastapi", "h11": "h11", "uvicorn": "uvicorn", "python_multipart": "python-multipart"} | {
    "prometheus_client": "prometheus-client"
}


class WebError(CxrError, ValueError):
    """The server cannot start as it was called; says what to do."""


def check_installed(what: str = "pipeline serve") -> None:
    """Whether the extra is there.

    Args:
        what: the command that needs it.

    Raises:
        WebError: a package of it is missing.
    """
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise WebError(
            f"{what} needs {', '.join(missing)}, which is not installed. Install it: pip install 'cxr-pipeline[web]'"
        )
