"""`dicom/<id>-*.dcm`: the answer as DICOM: Segmentation, Structured Report, overlay, presentation state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from cxr_pipeline.results.drawing import LONGEST
from cxr_pipeline.results.outputs.base import JudgedFilm, Output, judged_so_far

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from cxr_pipeline.dicom.films import HeaderTable
    from cxr_pipeline.dicom.headers import FilmHeader

_NAMES = {"seg": "Segmentation", "sr": "Structured Report", "sc": "Secondary Capture", "pr": "Presentation State"}


class DicomAnswers(Output):
    """The answers of every judged film whose header says whose it is.

    Args:
        headers: for films that are no DICOM, see `dicom.films.read_headers`.
    """

    name: ClassVar[str] = "dicom"
    about: ClassVar[str] = "Segmentation, Structured Report, overlay and Presentation State for a PACS"
    suffixes: ClassVar[tuple[str, ...]] = ("-film.dcm", "-seg.dcm", "-sr.dcm", "-sc.dcm", "-pr.dcm")
    named: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __init__(self, headers: HeaderTable | None = None) -> None:
        self.headers = headers
        # Only the overlay shows the film. One that is no DICOM, and has its header from the table, is written whole.
        self.detail = LONGEST if headers is None else None

    @property
    def key(self) -> str:
        """The name, and which table: with another one, films may be another patient's."""
        return self.name if self.headers is None else f"{self.name} {self.headers.digest}"

    @classmethod
    def check(cls) -> None:
        """See `Output.check`."""
        from cxr_pipeline.dicom.maker import need

        need("highdicom")

    def files(self, film: JudgedFilm) -> Mapping[str, bytes]:
        """The DICOM files of the film; a warning where one cannot be written. Refused films get none."""
        from cxr_pipeline.dicom.headers import HeaderError
        from cxr_pipeline.dicom.maker import packed
        from cxr_pipeline.results.outputs.headers import header_of
        from cxr_pipeline.stages.apply import where

        if not judged_so_far(film.record):
            return {}
        try:
            header, is_dicom = header_of(film, self.headers)
        except HeaderError as error:
            film.warn(f"no DICOM answer: {error}")
            return {}
        film.warn(*(f"DICOM answer: {note}" for note in header.notes))
        out: dict[str, bytes] = {}
        for kind, make in _answers(film, header, is_dicom).items():
            try:
                made = make()
                if made is not None:
                    out[f"-{kind}.dcm"] = packed(made, header)
            except Exception as error:
                # A header may break any rule: the film was judged all the same, and its other answers stand. The
                # error's own text may quote the header, and results.csv need not hold identifiers.
                film.warn(f"no DICOM {_NAMES.get(kind, kind)}: the film's header gives none ({where(error)})")
        return out


def _answers(film: JudgedFilm, header: FilmHeader, is_dicom: bool) -> dict[str, Callable[[], Dataset | None]]:
    """What makes each answer, by kind; None where there is nothing to say. In this order, as the report refers back."""
    from cxr_pipeline.dicom.capture import overlay_capture
    from cxr_pipeline.dicom.films import film_capture
    from cxr_pipeline.dicom.presentation import presentation
    from cxr_pipeline.dicom.report import report
    from cxr_pipeline.dicom.segmentation import segmentation, segments_of
    from cxr_pipeline.results.drawing import NOTICE, layout, overlay, sentences
    from cxr_pipeline.results.outputs.headers import maker_of

    record, maker = film.record, maker_of(film)
    segments = segments_of(record, header)
    made: dict[str, Dataset] = {}

    def lungs() -> Dataset | None:
        if segments:
            made["seg"] = segmentation(segments, header, maker)
        return made.get("seg")

    def drawn() -> Dataset | None:
        if header.colour or not (segments or record.regions):
            return None
        said = f"{sentences(record)[0]}\r\n{NOTICE}"
        return presentation(segments, record.regions or (), said, header, maker)

    height, width = record.size
    answers: dict[str, Callable[[], Dataset | None]] = {
        "seg": lungs,
        "sr": lambda: report(record, segments, made.get("seg"), header, maker),
        "sc": lambda: overlay_capture(overlay(record), layout(height, width)[:2], header, maker),
        "pr": drawn,
    }
    radiograph = record.radiograph
    if not is_dicom and radiograph is not None:
        answers = {"film": lambda: film_capture(radiograph, header, maker), **answers}
    return answers
