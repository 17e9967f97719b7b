"""`fhir/<id>.json`: the answer as a FHIR R4 Bundle of a DiagnosticReport and its Observations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from cxr_pipeline.results.outputs.base import JudgedFilm, Output, judged_so_far

if TYPE_CHECKING:
    from cxr_pipeline.dicom.films import HeaderTable


class FhirBundles(Output):
    """The Bundle of every judged film whose header says whose it is.

    Args:
        headers: for films that are no DICOM, see `dicom.films.read_headers`.
    """

    name: ClassVar[str] = "fhir"
    about: ClassVar[str] = "DiagnosticReport and Observations as a FHIR R4 Bundle, JSON"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    named: ClassVar[bool] = True
    detail: int | None = 1  # it looks at no pixel of the film
    decides: ClassVar[bool] = True

    def __init__(self, headers: HeaderTable | None = None) -> None:
        self.headers = headers

    @property
    def key(self) -> str:
        """The name, and which table: with another one, films may be another patient's."""
        return self.name if self.headers is None else f"{self.name} {self.headers.digest}"

    @classmethod
    def check(cls) -> None:
        """See `Output.check`."""
        from cxr_pipeline.dicom.maker import need

        need("fhir.resources", extra="fhir")

    def files(self, film: JudgedFilm) -> Mapping[str, bytes]:
        """The Bundle as JSON; a warning where there can be none. Refused films get none."""
        from fhir.resources.R4B.bundle import Bundle

        from cxr_pipeline.dicom.bundle import bundle
        from cxr_pipeline.dicom.headers import HeaderError
        from cxr_pipeline.results.drawing import sentences
        from cxr_pipeline.results.outputs.headers import header_of, maker_of
        from cxr_pipeline.stages.apply import where

        if not judged_so_far(film.record):
            return {}
        try:
            header, _ = header_of(film, self.headers)
        except HeaderError as error:
            film.warn(f"no FHIR Bundle: {error}")
            return {}
        try:
            made = bundle(film.record, sentences(film.record)[0], header, maker_of(film))
            Bundle.model_validate(made)  # R4B: what is used here is the same in R4
        except Exception as error:  # as with the DICOM answers; the error's own text may quote the header
            film.warn(f"no FHIR Bundle: the film's header gives none that is valid ({_places(error) or where(error)})")
            return {}
        return {".json": (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode()}


def _places(error: Exception) -> str:
    """Which elements a validator found wrong, without their values."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return ""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return ", ".join(dict.fromkeys(".".join(str(part) for part in one["loc"]) for one in found))[:200]
