"""The outputs that a call asks for by its options: names, headers of films that are no DICOM, and identifiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.results.outputs import chosen, output_class, output_names
from cxr_pipeline.results.outputs.base import Output
from cxr_pipeline.results.outputs.identifiers import PLAIN, PSEUDONYM, Identifiers


def asked(
    outputs: str | Sequence[str] | None = None,
    *,
    native_heatmaps: bool = False,
    dicom_header: Path | None = None,
    identifiers: str | None = None,
) -> tuple[Output, ...]:
    """The outputs of a run.

    Args:
        outputs, native_heatmaps: see `results.outputs.chosen`.
        dicom_header: a table of headers for films that are no DICOM, see `dicom.films.read_headers`.
        identifiers: "pseudonym" or "plain" adds columns to results.csv that say whose a film is; None adds none.

    Raises:
        ResultsError: an output is unknown, or there is no such kind of identifiers.
        CxrError: a package is missing, the table cannot be used, or the site's secret cannot.
    """
    headers = None
    if dicom_header is not None:
        from cxr_pipeline.dicom.films import read_headers

        headers = read_headers(dicom_header)
    options: dict[str, dict[str, Any]] = {
        name: {"headers": headers} for name in output_names() if headers is not None and output_class(name).named
    }
    made = chosen(outputs, native_heatmaps=native_heatmaps, options=options)
    if identifiers is None:
        return made
    secret = None
    if identifiers == PSEUDONYM:
        from cxr_pipeline.dicom.pseudonyms import site_secret

        secret = site_secret()
    elif identifiers != PLAIN:
        raise ResultsError(f"identifiers are {PSEUDONYM} or {PLAIN}. Received: {identifiers!r}")
    return (*made, Identifiers(secret, headers))


def for_films(outputs: Iterable[Output], films: Iterable[str | Path]) -> None:
    """Tell outputs with a table of headers which films a run has: names that several of them share are no names."""
    names = list(films)
    for one in outputs:
        headers = getattr(one, "headers", None)
        if isinstance(one, Output) and headers is not None:
            one.headers = headers.for_films(names)  # type: ignore[attr-defined]
