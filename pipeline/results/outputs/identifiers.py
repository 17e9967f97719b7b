"""Columns of results.csv that say whose a film is: as the header has them, or as pseudonyms of the site.

No output that `--outputs` names: `--identifiers` asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from cxr_pipeline.results.outputs.base import JudgedFilm, Output

if TYPE_CHECKING:
    from cxr_pipeline.dicom.films import HeaderTable

PSEUDONYM, PLAIN = "pseudonym", "plain"
COLUMNS = ("patient_id", "study_uid", "accession", "study_date", "view")


class Identifiers(Output):
    """Patient, study and view of every film with a header, refused ones too.

    Args:
        secret: of the site, for pseudonyms; None writes what the header says.
        headers: for films that are no DICOM.
    """

    name: ClassVar[str] = "identifiers"
    about: ClassVar[str] = "columns of results.csv: patient, study and view"
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    detail: int | None = 1  # it looks at no pixel of the film

    def __init__(self, secret: bytes | None = None, headers: HeaderTable | None = None) -> None:
        self._secret, self.headers = secret, headers

    @property
    def key(self) -> str:
        """The name, whether they are pseudonyms, and which table they are of."""
        table = "" if self.headers is None else f" {self.headers.digest}"
        return f"{self.name} {PLAIN if self._secret is None else PSEUDONYM}{table}"

    def cells(self, film: JudgedFilm) -> Mapping[str, str]:
        """The columns; empty where the film has no header."""
        from cxr_pipeline.data.formats.dicom_header import text
        from cxr_pipeline.dicom.headers import HeaderError
        from cxr_pipeline.dicom.pseudonyms import Pseudonyms
        from cxr_pipeline.results.outputs.headers import dataset_of

        try:
            source = dataset_of(film, self.headers)
        except HeaderError:
            return {}
        if source is None:
            return {}
        patient, issuer, study, accession, date, view = (
            " ".join(text(source, keyword).replace("\0", "").split())
            for keyword in (
                *("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "AccessionNumber", "StudyDate", "ViewPosition"),
            )
        )
        if self._secret is not None:
            hidden, person = Pseudonyms(self._secret), f"{issuer}\0{patient}"
            date = hidden.date(date, person)
            study, accession = hidden.uid(study), hidden.name("accession", accession)
            patient = hidden.name("patient", person) if patient else ""
            view = view if view.isascii() and len(view) <= 16 else ""
        found = dict(zip(COLUMNS, (patient, study, accession, date, view), strict=True))
        return {name: value for name, value in found.items() if value}
