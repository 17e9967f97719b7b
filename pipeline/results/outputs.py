"""What one film's record becomes: a row, PNG files, regions; and the COCO file of all films."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Any

import cv2
import numpy as np

from cxr_pipeline.results.drawing import overlay
from cxr_pipeline.stages.apply import crashed
from cxr_pipeline.stages.base import OK, Record
from cxr_pipeline.stages.decisions import shown

CLASSES = ("TB", "NTB", "NORM")  # their columns always exist, in this place

_FIRST = ("image", "id", "status", "error", "width", "height", "lung_fraction")
_LAST = ("label", "tb_score", "regions", "screen")
_APPENDED = ("warnings", "sha256")
# How each kind of picture is packed. libpng's own choice tries all filters on every line, which takes twice as long for
# the same size: films of 512 px, ms and KB with it, then with the filter named here: mask 1.6, 2 / 0.4, 2; crop 4.6,
# 94 / 2.1, 111; heat map 2.0, 14 / 0.8, 17; overlay 11.3, 211 / 7.0, 215.
_FILTER, _STRATEGY = cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_STRATEGY
_PNG = {
    "masks": [_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, _FILTER, cv2.IMWRITE_PNG_FILTER_NONE],
    "crops": [_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY, _FILTER, cv2.IMWRITE_PNG_FILTER_UP],
    "heatmaps": [_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, _FILTER, cv2.IMWRITE_PNG_FILTER_SUB],
    "overlays": [_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT, _FILTER, cv2.IMWRITE_PNG_FILTER_UP],
}


def columns(classes: Sequence[str] = (), of_stages: Sequence[str] = ()) -> list[str]:
    """Columns of `results.csv`: the promised ones in their order, `screen`, then further classes, those that stages
    declare, warnings, the file's hash.
    """
    further = [f"p_{name}" for name in classes if name not in CLASSES]
    return [*_FIRST, *(f"p_{name}" for name in CLASSES), *_LAST, *further, *of_stages, *_APPENDED]


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
        row["lung_fraction"] = _number(record.lung_fraction, 4)
    for name, value in (record.probabilities or {}).items():
        row[f"p_{name}"] = _number(value, 4)
    if record.label is not None:
        row["label"] = record.label
    if record.tb_score is not None:
        _number(record.tb_score, 1)
        row["tb_score"] = _number(shown(record.tb_score), 1)
    if record.screen is not None:
        row["screen"] = record.screen
    if record.regions is not None:
        row["regions"] = str(len(record.regions))
    for name, value in (record.measures or {}).items():
        row[name] = _text(value)
    if record.warnings:
        row["warnings"] = "; ".join(" ".join(str(text).split()) for text in record.warnings)
    return row


def _text(value: float | str | None) -> str:
    """A stage's measure as text: numbers with the decimals that the stage rounded them to."""
    if value is None or isinstance(value, str):
        return value or ""
    if not math.isfinite(value):
        raise ValueError(f"a stage gave {value}, which is not a finite number")
    return f"{value:.10g}"


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        raise ValueError(f"a stage gave {value}, which is not a finite number")
    return f"{value:.{digits}f}"


def pictures(record: Record) -> dict[str, bytes]:
    """The PNG files of a record by folder. A film that a stage refused gets its overlay alone, to see why."""
    if not record.ok:
        drawn = record.mask is not None and record.status != "failed"
        return {"overlays": png(overlay(record), "overlays")} if drawn else {}
    if record.mask is None and record.probabilities is None:
        return {}
    out = {} if record.mask is None else {"masks": png(record.mask * np.uint8(255), "masks")}
    if record.lung_box is not None:
        x, y, w, h = (int(v) for v in record.lung_box)
        out["crops"] = png(_levels(record.radiograph.pixels[y : y + h, x : x + w]), "crops")
    if record.heatmap is not None:
        out["heatmaps"] = png(_levels(record.heatmap), "heatmaps")
    out["overlays"] = png(overlay(record), "overlays")
    return out


def _levels(image: np.ndarray) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=255)  # rounds and stops at 255 in one pass; 5 times as fast as in numpy


def png(image: np.ndarray, kind: str) -> bytes:
    """A picture as the PNG file that the folder `kind` of the results holds, such as "overlays"."""
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1, *_PNG[kind]])
    if not done:
        raise ValueError(f"OpenCV cannot encode an image of shape {image.shape} as PNG")
    return data.tobytes()


def regions_of(record: Record, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A record's regions as they go into the journal and, from there, into `regions.json`.

    Raises:
        ValueError: a region is of none of the classes, or its score is not a finite number.
    """
    out = []
    for region in record.regions:
        if region.label not in classes:
            raise ValueError(f"a region of class {region.label!r}, which is none of {', '.join(classes) or 'none'}")
        bbox = [int(v) if float(v).is_integer() else round(float(v), 2) for v in region.box]
        score = float(_number(region.score, 4))
        place = {"category": region.label, "side": region.side, "zone": region.zone}
        out.append({"bbox": bbox, "area": bbox[2] * bbox[3], "score": score, **place})
    return out


def logged(record: Record) -> tuple[Record, str]:
    """The record as a run tells of it, and the traceback for run.log: empty where nothing crashed."""
    if record.crash is None:
        return record, ""
    return replace(record, error=f"{record.error}. The traceback is in run.log"), record.crash.trace


def failed(record: Record, where: str, error: Exception) -> tuple[Record, str]:
    """The record as failed by an exception that nobody foresaw, and the traceback for run.log."""
    return logged(crashed(record, where, error))


def write_coco(
    file: IO[bytes],
    entries: Callable[[], Iterable[dict[str, Any]]],
    classes: Sequence[str],
    info: dict[str, Any],
) -> None:
    """Write regions as COCO, one image or annotation a line; never in memory whole.

    Images are the films that were judged; one without annotations has nothing to look at. Ids count from 1.

    Args:
        file: opened for bytes.
        entries: gives the journal's entries, in order; called twice.
        classes: categories, in the order of their ids.
        info: COCO's `info`.
    """

    def judged() -> Iterator[tuple[int, dict[str, Any]]]:
        return enumerate((e for e in entries() if e["row"]["status"] == OK and e["regions"] is not None), 1)

    def images() -> Iterator[dict[str, Any]]:
        for number, entry in judged():
            row = entry["row"]
            size = {"width": int(row["width"]), "height": int(row["height"])}
            yield {"id": number, "file_name": row["image"], **size, "name": row["id"]}

    def annotations() -> Iterator[dict[str, Any]]:
        count = 0
        for number, entry in judged():
            for region in entry["regions"]:
                count += 1
                category = classes.index(region["category"]) + 1
                rest = {key: value for key, value in region.items() if key != "category"}
                yield {"id": count, "image_id": number, "category_id": category, "iscrowd": 0, **rest}

    def listed(items: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        yield b"["
        for number, item in enumerate(items):
            yield (b",\n" if number else b"\n") + json.dumps(item).encode()
        yield b"]"

    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    file.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n"images": '.encode())
    file.writelines(listed(images()))
    file.write(b',\n"annotations": ')
    file.writelines(listed(annotations()))
    file.write(b"}\n")


def csv_line(names: Sequence[str], row: dict[str, str]) -> bytes:
    """A row as a line of CSV in UTF-8, the columns in the order of `names`, missing ones empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in names])
    return text.getvalue().encode("utf-8", "backslashreplace")


def plain_text(path: str) -> str:
    """A path as valid text: bytes of its name that are none are spelled out."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
