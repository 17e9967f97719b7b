"""`pipeline run --from dicomweb:URL?query`: films of a PACS, asked for by QIDO-RS and fetched by WADO-RS.

They come into `DIR/pulled/<SOP Instance UID>.dcm` of the results folder, each whole or not at all. What is there is not
fetched again when the same call is given again.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from pydicom.datadict import keyword_for_tag, tag_for_keyword

from cxr_pipeline.data.files import PRIVATE, folder_mode, sweep, write_bytes
from cxr_pipeline.data.formats.dicom_header import RADIOGRAPHS
from cxr_pipeline.dicom import NodeError
from cxr_pipeline.dicom.objects import FILMS, look
from cxr_pipeline.dicom.spool import SUFFIX, name_of
from cxr_pipeline.dicom.webclient import HTTP_ERRORS, client, explained, wrong_status
from cxr_pipeline.results.journal import key_of
from cxr_pipeline.run.inputs import Input

if TYPE_CHECKING:
    from dicomweb_client import DICOMwebClient

PREFIX = "dicomweb:"
_SERIES = frozenset({"Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "BodyPartExamined"}) | {
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "Laterality", "StationName"),
}
_INSTANCE = frozenset({"SOPInstanceUID", "SOPClassUID", "InstanceNumber"})
_OPTIONS = frozenset({"limit", "offset", "fuzzymatching"})
_AT_ONCE = 4  # films fetched side by side
_TRIES, _WAIT = 4, 1.0  # for one film, and the seconds before the second, twice as many before the third, ...
_NO_USE = frozenset({400, 404, 406, 410, 415})  # to try again

Record = dict[str, dict[str, Any]]  # DICOM JSON


@dataclass(frozen=True)
class Source:
    """A DICOMweb service, and which of its films are asked for.

    Attributes:
        url: of the service.
        study, series, instance: what has to match on each level, by keyword.
        options: limit, offset and fuzzymatching, of the search for studies.
    """

    url: str
    study: dict[str, str] = field(default_factory=dict)
    series: dict[str, str] = field(default_factory=dict)
    instance: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parsed(cls, text: str) -> Source:
        """The source that a person named: `dicomweb:https://host/path?Keyword=value&...`.

        Raises:
            NodeError: it has another form, or a key of the query is no DICOM keyword or tag.
        """
        parts = urlsplit(text.removeprefix(PREFIX))
        if not text.startswith(PREFIX) or parts.scheme not in ("http", "https") or not parts.hostname:
            raise NodeError(
                f"--from reads {PREFIX}https://pacs.example.org/dicom-web?StudyDate=20240101-20240131, with any keys "
                f"of QIDO-RS. Received: {text!r}"
            )
        out = cls(f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/"))
        for key, value in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)):
            if key in _OPTIONS:
                out.options[key] = _option(key, value)
            else:
                name = _keyword(key)
                level = out.series if name in _SERIES else out.instance if name in _INSTANCE else out.study
                level[name] = value
        return out


def _keyword(key: str) -> str:
    name = keyword_for_tag(int(key, 16)) if re.fullmatch(r"[0-9A-Fa-f]{8}", key) else key
    if not name or tag_for_keyword(name) is None:
        raise NodeError(
            f"the query names {key!r}, which is no DICOM keyword such as StudyDate, PatientID, AccessionNumber, "
            "ModalitiesInStudy, Modality or BodyPartExamined, and no option (limit, offset, fuzzymatching)"
        )
    return name


def _option(key: str, value: str) -> Any:
    if key == "fuzzymatching" and value in ("true", "false"):
        return value == "true"
    if key != "fuzzymatching" and value.isdigit():
        return int(value)
    raise NodeError(f"the query's {key} must be {'true or false' if key == 'fuzzymatching' else 'a whole number'}")


def pull(
    source: Source, out: Path, *, mode: int = PRIVATE, progress: Callable[[int, int], None] | None = None
) -> list[Input]:
    """Fetch the films that a service has for a query. What by its class or modality is no film stays there.

    Args:
        out: the results folder; made where it does not exist.
        mode: permissions of the films.
        progress: called with how many are here, and of how many.

    Returns:
        The films in the service's order, as inputs of a run. One that cannot be fetched is among them, with the reason.

    Raises:
        NodeError: the service cannot be reached, does not know who asks, or has no such films. What was fetched stays.
        OSError: the disk takes no more.
    """
    web = client(source.url)
    try:
        found = list(_found(web, source))
    except HTTP_ERRORS as error:
        raise NodeError(explained(error, source.url)) from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise NodeError(f"{source.url} does not answer as a DICOMweb service does ({error}). Check its path") from None
    if not found:
        raise NodeError(f"{source.url} has no films for this query. Ask for other dates, or for fewer keys")
    folder = out / "pulled"
    folder.mkdir(mode=folder_mode(mode), parents=True, exist_ok=True)
    sweep(folder)
    inputs: list[Input] = []
    with ThreadPoolExecutor(_AT_ONCE, "cxr-pull") as threads:
        coming = threads.map(partial(_fetched, web, folder, mode, source.url), found)
        try:
            for number, one in enumerate(coming, 1):
                inputs += [one] if one is not None else []
                if progress is not None:
                    progress(number, len(found))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    if not inputs:
        raise NodeError(f"{source.url} has objects for this query, but no films of the chest. Ask for others")
    return inputs


def _found(web: DICOMwebClient, source: Source) -> Iterator[tuple[str, str, str]]:
    """Study, series and instance of each film that the query finds."""
    seen = set()
    for study in _all(web.search_for_studies, "0020000D", source.study, source.options):
        study_uid = _value(study, "0020000D")
        for series in _all(partial(web.search_for_series, study_uid), "0020000E", source.series):
            if "Modality" not in source.series and _value(series, "00080060").upper() not in RADIOGRAPHS:
                continue
            series_uid = _value(series, "0020000E")
            search = partial(web.search_for_instances, study_uid, series_uid)
            for instance in _all(search, "00080018", source.instance):
                uid = _value(instance, "00080018")
                if uid not in seen and _value(instance, "00080016") in (*FILMS, ""):
                    seen.add(uid)
                    yield study_uid, series_uid, uid


def _all(
    search: Callable[..., list[Record]], tag: str, filters: dict[str, str], options: dict[str, Any] | None = None
) -> Iterator[Record]:
    """All that a search finds. Services give long lists in parts: it goes on until a part holds nothing new."""
    seen: set[str] = set()
    options = dict(options or {})
    first = options.pop("offset", 0)
    while True:
        at = {"offset": first + len(seen)} if first or seen else {}
        fresh = [one for one in search(search_filters=filters, **options, **at) if _value(one, tag) not in seen]
        yield from fresh
        seen |= {_value(one, tag) for one in fresh}
        if not fresh or "limit" in options:
            return


def _value(record: Record, tag: str) -> str:
    values = record.get(tag, {}).get("Value") or [""]
    return str(values[0] or "")


def _fetched(web: DICOMwebClient, folder: Path, mode: int, url: str, place: tuple[str, str, str]) -> Input | None:
    """A film as an input, fetched where it is not here yet; None for what turns out to be none."""
    name = name_of(place[2])
    path = folder / f"{name}{SUFFIX}"
    one = Input(str(path), key_of(path), (name,) * 3)
    if not path.is_file():
        try:
            dataset = _asked(web, place)
        except HTTP_ERRORS as error:
            if wrong_status(error) in (None, 401, 403):  # as will happen to all others
                raise NodeError(f"{explained(error, url)}. What was fetched stays, and is not fetched again") from None
            return Input(one.path, one.key, one.names, f"{url} did not give it (HTTP {wrong_status(error)})")
        except ValueError as error:
            return Input(one.path, one.key, one.names, f"{url} gave no DICOM object ({str(error)[:200]})")
        if str(dataset.get("SOPInstanceUID", "")) != place[2]:
            return Input(one.path, one.key, one.names, f"{url} gave another object than the one that was asked for")
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        write_bytes(path, file.getvalue(), durable=True, mode=mode)
    return None if look(path.read_bytes(), _class_of(path)).left_alone else one


def _class_of(path: Path) -> str:
    from pydicom.filereader import read_file_meta_info

    try:
        return str(read_file_meta_info(path).MediaStorageSOPClassUID)
    except Exception:  # the reader says what is wrong with it
        return next(iter(FILMS))


def _asked(web: DICOMwebClient, place: tuple[str, str, str]) -> Any:
    """An object from the service, in the encoding that it is kept in; tried again where that may help."""
    for attempt in range(_TRIES):
        try:
            return web.retrieve_instance(*place, media_types=(("application/dicom", "*"),))
        except HTTP_ERRORS as error:
            if attempt == _TRIES - 1 or wrong_status(error) in {401, 403, *_NO_USE}:
                raise
            time.sleep(_WAIT * 2**attempt)
    raise AssertionError  # the loop returns or raises
