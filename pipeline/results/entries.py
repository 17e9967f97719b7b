"""What is read from a results folder, as pydantic checks it: a folder may come from anywhere, like any other input.

Whatever does not fit is no entry. Ids are file names and nothing else, files lie in the folder of their output, and
every number is one.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from cxr_pipeline.about import PROGRAM
from cxr_pipeline.data.files import csv_rows, read_regular
from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.stages.base import FAILED, OK, REFUSED

_LINE = 16_000_000  # bytes that an entry may have: a label with its traceback has a few thousand
_PLACES = 4_000_000_000  # bytes of shard.csv: a line has some 25
_ID = re.compile(r"\w[\w.-]*")
_LONGEST_ID = 200  # bytes in UTF-8
_FILE = re.compile(r"([a-z][a-z0-9_-]*)/([\w.-]+)")
_WHOLE = ("width", "height", "regions")
_DECIMAL = ("lung_fraction", "tb_score")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _row(row: dict[str, str]) -> dict[str, str]:
    for name in ("image", "id", "status", "sha256"):
        if name not in row:
            raise ValueError(f"no {name}")
    if not _ID.fullmatch(row["id"]) or len(row["id"].encode()) > _LONGEST_ID:
        raise ValueError("the id is no file name")
    if row["status"] not in (OK, REFUSED, FAILED):
        raise ValueError("the status is none")
    for name, text in row.items():
        if name in _WHOLE and text and not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(f"{name} is no whole number")
        if (name in _DECIMAL or name.startswith("p_")) and text and not math.isfinite(float(text)):
            raise ValueError(f"{name} is no number")
    if row["status"] == OK and not (row.get("width") and row.get("height")):
        raise ValueError("a judged film without a size")
    return row


@with_config(ConfigDict(extra="forbid"))
class FileFacts(TypedDict):
    """Of a file of a film, so that a cut or changed one is seen."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class RegionEntry(TypedDict):
    """A box: `bbox` x, y, w, h in native pixels."""

    bbox: Annotated[list[Annotated[float | int, Field(allow_inf_nan=False)]], Field(min_length=4, max_length=4)]
    area: Annotated[float | int, Field(allow_inf_nan=False)]
    score: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    category: str
    side: str
    zone: str


class FrameEntry(TypedDict):
    """Where a heat map's grid lies on the film."""

    bbox: Annotated[list[int], Field(min_length=4, max_length=4)]
    grid: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    film = entry["row"]["id"]
    for name in entry["files"]:
        found = _FILE.fullmatch(name)
        if not found or not found[2].startswith(film) or ".." in found[2].removeprefix(film):
            raise ValueError("a file that is not of this film")
    return entry


@with_config(ConfigDict(extra="allow", strict=True))
class EntryFields(TypedDict):
    """One line of the journal: a finished film.

    `stage` is the last one of the chain that judged it, `retry` whether the next run tries it again, `row` its row of
    results.csv, `files` what was written of it by name below the folder, `outputs` the keys of the outputs that were
    asked, `heat` a small heat map (PNG in base64), `logits` what the classifier gave, class by class.
    """

    key: Annotated[str, Field(min_length=1, max_length=200)]
    stage: str
    retry: bool
    row: Annotated[dict[str, str], AfterValidator(_row)]
    regions: list[RegionEntry] | None
    heatmap_label: NotRequired[str]
    heat: NotRequired[Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*=*$", max_length=100_000)]]
    frame: NotRequired[FrameEntry]
    logits: NotRequired[Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=1000)]]
    files: dict[str, FileFacts]
    outputs: list[str]
    trace: str


_ENTRY: TypeAdapter[EntryFields] = TypeAdapter(Annotated[EntryFields, AfterValidator(_entry)])


def parse_entry(line: bytes) -> dict[str, Any]:
    """An entry from its line of the journal.

    Raises:
        ValueError: it is none.
    """
    if not line.endswith(b"\n") or len(line) > _LINE:
        raise ValueError("the line is cut or too long")
    return cast("dict[str, Any]", _ENTRY.validate_json(line))


class ShardFacts(BaseModel):
    """Which part of the inputs a folder holds."""

    number: int = Field(ge=1)
    of: int = Field(ge=1)
    inputs: int = Field(ge=0)


class PromiseFacts(BaseModel):
    """What a finished part holds: its films, and the checksum of its shard.csv."""

    films: int = Field(ge=0)
    sha256: Sha256


class RunFacts(BaseModel):
    """`run.json`, as far as the program itself reads it. Whatever else is in it is for people, and kept."""

    model_config = ConfigDict(extra="allow")

    program: str
    finished: bool = False
    clearing: bool = False
    layout: int = 1
    version: str = ""
    runtime: str = ""
    classes: list[str] = []
    columns: list[str] = []
    outputs: list[str] = []
    fingerprints: dict[str, str] = {}
    counts: dict[str, int] = {}
    seconds: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    started: str = ""
    ended: str = ""
    shard: ShardFacts | None = None
    promised: PromiseFacts | None = None
    config: dict[str, Any] = {}
    hashes: dict[str, dict[str, str]] = {}


def parse_run(data: bytes) -> dict[str, Any]:
    """What `run.json` says, as plain values.

    Raises:
        ValueError: it is damaged, or another program's; says in a sentence what is wrong.
    """
    try:
        info = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(info, dict) or info.get("program") != PROGRAM:
        raise ValueError("it does not name this program")
    try:
        RunFacts.model_validate(info)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return info


class PlaceRow(BaseModel):
    """A line of shard.csv: an input of the part, and its place among all inputs."""

    key: str = Field(min_length=1, max_length=200)
    place: int = Field(ge=0)


def read_places(folder: Path) -> dict[str, int]:
    """`shard.csv` of a part: the place of each of its inputs among all, by key.

    Raises:
        ResultsError: it is missing, or a line is damaged.
    """
    path = folder / "shard.csv"
    out: dict[str, int] = {}
    try:
        text = read_regular(path, _PLACES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read ({error}). Run that shard again, then merge") from None
    for number, row in enumerate(csv_rows(text.splitlines()), 2):
        try:
            place = PlaceRow.model_validate(row)
        except ValidationError:
            raise ResultsError(f"{path}: line {number} is damaged. Run that shard again, then merge") from None
        if place.key in out:
            raise ResultsError(f"{path}: line {number} names an input twice. Run that shard again, then merge")
        out[place.key] = place.place
    return out
