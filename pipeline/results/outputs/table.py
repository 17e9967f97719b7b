"""`results.csv`: one row per film, failures included. Every run writes it, row by row while it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, ClassVar

from cxr_pipeline.data.files import csv_line
from cxr_pipeline.results.outputs.base import Output
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.scores import shown

CLASSES = ("TB", "NTB", "NORM")  # their columns exist in this place, unless the weights have other classes, without TB

_FIRST = ("image", "id", "status", "error", "width", "height", "lung_fraction")
_LAST = ("label", "tb_score", "regions", "screen")
_APPENDED = ("warnings", "sha256")


class Table(Output):
    """The table. It stands in the registry for its name; no run goes without it."""

    name: ClassVar[str] = "table"
    detail: int | None = 1  # it looks at no pixel of the film
    about: ClassVar[str] = "results.csv: one row per film; always written"
    default: ClassVar[bool] = True
    summary: ClassVar[str] = "results.csv"

    def write_summary(
        self, file: IO[bytes], entries: Callable[[], Iterable[dict[str, Any]]], run: Mapping[str, Any]
    ) -> None:
        """Write the header and the rows."""
        names = columns(run["classes"], run.get("columns", ()))
        file.write(csv_line(names, dict(zip(names, names, strict=True))))
        for entry in entries():
            file.write(csv_line(names, cells(entry["row"])))


def columns(classes: Sequence[str] = (), of_stages: Sequence[str] = ()) -> list[str]:
    """Columns of `results.csv`: the promised ones in their order, `screen`, further ones, warnings, the file's hash.

    Args:
        classes: of the weights; those without a promised column get one. Weights that do not know TB have columns of
            their own classes alone, and `score` in place of `tb_score`.
        of_stages: columns that the stages of the chain declare.
    """
    if classes and CLASSES[0] not in classes:
        last = ("score" if name == "tb_score" else name for name in _LAST)
        return [*_FIRST, *(f"p_{name}" for name in classes), *last, *of_stages, *_APPENDED]
    further = [f"p_{name}" for name in classes if name not in CLASSES]
    return [*_FIRST, *(f"p_{name}" for name in CLASSES), *_LAST, *further, *of_stages, *_APPENDED]


def cells(row: Mapping[str, str]) -> Mapping[str, str]:
    """A row for the file: its score under both names, of which `columns` has one."""
    return {**row, "score": row["tb_score"]} if "tb_score" in row else row


def row_of(record: Record) -> dict[str, str]:
    """A record as a row of `results.csv`, empty where the chain did not reach; without `image`, `id` and `sha256`.

    Raises:
        ValueError: a figure is not a finite number.
    """
    height, width = record.size
    row = {"status": record.status, "error": " ".join(record.error.split())}
    if width and height:
        row |= {"width": str(width), "height": str(height)}
    if record.lung_fraction is not None:
        row["lung_fraction"] = number(record.lung_fraction, 4)
    for name, value in (record.probabilities or {}).items():
        row[f"p_{name}"] = number(value, 4)
    if record.label is not None:
        row["label"] = record.label
    if record.tb_score is not None:
        number(record.tb_score, 4)  # what is no number is none in any form
        row["tb_score"] = number(shown(record.tb_score), 1)
    if record.screen is not None:
        row["screen"] = record.screen
    if record.regions is not None:
        row["regions"] = str(len(record.regions))
    for name, measure in (record.measures or {}).items():
        row[name] = _measure(measure)
    if record.warnings:
        row["warnings"] = "; ".join(" ".join(str(text).split()) for text in record.warnings)
    return row


def _measure(value: float | str | None) -> str:
    """A stage's measure as text: numbers with the decimals that the stage rounded them to."""
    if value is None or isinstance(value, str):
        return value or ""
    if not math.isfinite(value):
        raise ValueError(f"a stage gave {value}, which is not a finite number")
    return f"{value:.10g}"


def number(value: float, digits: int) -> str:
    """A figure with so many digits after the point.

    Raises:
        ValueError: it is not a finite number.
    """
    if not math.isfinite(value):
        raise ValueError(f"a stage gave {value}, which is not a finite number")
    return f"{value:.{digits}f}"
