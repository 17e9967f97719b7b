"""What outputs of one film share that need its header: the film's data set, read once, or its row of a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_pipeline.results.outputs.base import JudgedFilm

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from cxr_pipeline.dicom.films import HeaderTable
    from cxr_pipeline.dicom.headers import FilmHeader
    from cxr_pipeline.dicom.maker import Maker

_SHA256 = 64  # hex digits


def dataset_of(film: JudgedFilm, table: HeaderTable | None) -> Dataset | None:
    """The film's data set as it stands, also of a film that was refused; None where it is no DICOM, nor in the table.

    Args:
        table: for films that are no DICOM.

    Raises:
        HeaderError: the file cannot be read again, or has changed.
    """
    return _shared(film, "dataset", lambda: _dataset_of(film, table))


def header_of(film: JudgedFilm, table: HeaderTable | None) -> tuple[FilmHeader, bool]:
    """What answers take over from the header of a film that was read, and whether the film itself is a DICOM file.

    Args:
        table: for films that are no DICOM.

    Raises:
        HeaderError: there is no header, or none that answers can be written for.
    """
    return _shared(film, "header", lambda: _header_of(film, table))


def _shared(film: JudgedFilm, name: str, make: Callable[[], Any]) -> Any:
    """What is made once for a film, whichever output asks first; an error too."""
    from cxr_pipeline.dicom.headers import HeaderError

    if name not in film.shared:
        try:
            film.shared[name] = make()
        except HeaderError as error:
            film.shared[name] = error
    found = film.shared[name]
    if isinstance(found, HeaderError):
        raise found
    return found


def _path(film: JudgedFilm) -> str:
    radiograph = film.record.radiograph
    return radiograph.source if radiograph is not None else film.image


def _dataset_of(film: JudgedFilm, table: HeaderTable | None) -> Dataset | None:
    from cxr_pipeline.data.files import sha256_of
    from cxr_pipeline.data.formats.dicom_marks import is_dicom
    from cxr_pipeline.dicom.films import as_dataset
    from cxr_pipeline.dicom.headers import HeaderError, parsed

    radiograph, path = film.record.radiograph, _path(film)
    if radiograph is None or radiograph.format == "dicom":
        try:
            raw = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise HeaderError(f"the film cannot be read again ({error})") from error
        if len(film.sha256) == _SHA256 and sha256_of(raw) != film.sha256:
            raise HeaderError("the film's file has changed since it was judged. Run again")
        if radiograph is not None or is_dicom(raw[:4096]):
            return parsed(raw, path)
    row = table.find(path) if table is not None else None
    return None if row is None else as_dataset(row)


def _header_of(film: JudgedFilm, table: HeaderTable | None) -> tuple[FilmHeader, bool]:
    from cxr_pipeline.dicom.films import listed_header
    from cxr_pipeline.dicom.headers import HeaderError, film_header

    radiograph = film.record.radiograph
    if radiograph is None:
        raise HeaderError("the film could not be read")
    source = dataset_of(film, table)
    if source is None:
        raise HeaderError(
            "the film is no DICOM file, and no patient is known of it. "
            + ("Add it to the table of --dicom-header" if table is not None else "Give --dicom-header TABLE.csv")
        )
    if radiograph.format == "dicom":
        return film_header(source, radiograph.size), True
    return listed_header(source, radiograph, film.sha256), False


def maker_of(film: JudgedFilm) -> Maker:
    """The program with the weights that judged a film."""
    import json

    from cxr_pipeline.data.files import sha256_of
    from cxr_pipeline.dicom.maker import Maker

    stages = film.identity.stages
    digest = sha256_of(json.dumps(stages, sort_keys=True).encode())[:16]
    name = str(film.identity.about.get("weights") or "unnamed").rstrip("/\\")
    return Maker(name.replace("\\", "/").rpartition("/")[2], film.identity.version, digest, dict(stages))
