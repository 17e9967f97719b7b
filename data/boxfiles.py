"""Boxes of lesions from labelling tools: COCO, Pascal VOC, YOLO, or a table. All become native pixels, by film name.

::

    COCO         one JSON: images, categories, annotations with bbox [x, y, w, h]
    Pascal VOC   one XML per film: filename, object with name and bndbox (xmin, ymin, xmax, ymax)
    YOLO         one TXT per film: class, x and y of the centre, w, h as shares of the film; names in classes.txt,
                 *.names or data.yaml
    table        columns image and x, y, w, h (or width, height), or xmin, ymin, xmax, ymax
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.configs.yaml_text import YamlError, read_yaml
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.names import brief
from cxr_pipeline.data.tables import SUFFIXES, TableError, column_named, read_table
from cxr_pipeline.data.walk import files_below

Boxes = dict[str, list[tuple[str, Box]]]  # finding and box by the film's name in lower case, without its ending
_JSON_BYTES = 512 * 1024 * 1024
_SMALL_BYTES = 4 * 1024 * 1024  # of one film's file


class BoxFileError(CxrError, ValueError):
    """Boxes that cannot be read; names the file and what is wrong."""


def read_boxes(
    path: Path, size_of: Callable[[str], tuple[int, int] | None], films: Container[str] = frozenset()
) -> Boxes:
    """All boxes of a file, or of the files in a folder.

    Args:
        path: a JSON (COCO), a table, or a folder of XML (Pascal VOC) or TXT (YOLO).
        size_of: (height, width) in pixels of a film by its name, which YOLO needs.
        films: names of the known films, as `name_of` gives them. The boxes of an XML are those of the film with the
            XML's name where there is one, whatever film it names: tools keep the first name of a renamed film.

    Raises:
        BoxFileError: the form is none of these, or a file is damaged.
    """
    if path.is_dir():
        files = list(files_below(path, (".xml", ".txt", ".json")))
        for suffix, read in (
            (".xml", lambda some: _voc(some, films)),
            (".txt", lambda some: _yolo(path, some, size_of)),
            (".json", _coco_files),
        ):
            some = [file for file in files if file.suffix.lower() == suffix]
            if some:
                return read(some)
        raise BoxFileError(f"{path} holds no boxes: no .xml (Pascal VOC), no .txt (YOLO) and no .json (COCO)")
    if path.suffix.lower() == ".json":
        return _coco_files([path])
    if path.suffix.lower() == ".xml":
        return _voc([path], films)
    if path.suffix.lower() in SUFFIXES:
        return _table(path)
    raise BoxFileError(f"{path} is no file of boxes. Give a COCO .json, a table, or a folder of .xml or YOLO .txt")


def name_of(film: str) -> str:
    """A film's name in lower case without folders and ending, by which boxes find it."""
    return Path(film.replace("\\", "/")).stem.casefold()


def _add(boxes: Boxes, film: str, finding: str, values: list[float], source: Path) -> None:
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise BoxFileError(f"{source}: a box of {brief(film)} has no four numbers: {brief(values)}")
    box = Box(*values)
    known = boxes.setdefault(name_of(film), [])
    if box.w > 0 and box.h > 0 and (finding, box) not in known:
        known.append((finding, box))


def _coco_files(paths: list[Path]) -> Boxes:
    boxes: Boxes = {}
    for path in paths:
        try:
            if path.stat().st_size > _JSON_BYTES:
                raise BoxFileError(f"{path} has over {_JSON_BYTES >> 20} MB. Split it")
            content = json.loads(path.read_bytes())
            kinds = {kind["id"]: str(kind["name"]) for kind in content.get("categories", [])}
            names = {image["id"]: str(image["file_name"]) for image in content["images"]}
            for entry in content["annotations"]:
                if entry.get("bbox"):
                    values = [float(value) for value in entry["bbox"]]
                    _add(boxes, names[entry["image_id"]], kinds.get(entry.get("category_id"), ""), values, path)
        except BoxFileError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BoxFileError(f"{path} is no COCO file ({type(error).__name__}: {brief(error)})") from None
    return boxes


def _small(path: Path) -> bytes:
    try:
        if path.stat().st_size > _SMALL_BYTES:
            raise BoxFileError(f"{path} has over {_SMALL_BYTES >> 20} MB, more than boxes of one film take")
        return path.read_bytes()
    except OSError as error:
        raise BoxFileError(f"{path} cannot be read ({error.strerror})") from None


def _voc(paths: list[Path], films: Container[str]) -> Boxes:
    boxes: Boxes = {}
    for path in paths:
        raw = _small(path)
        if b"<!DOCTYPE" in raw or b"<!ENTITY" in raw:  # entities may grow without bounds
            raise BoxFileError(f"{path} defines entities, which files of boxes don't need. Remove its DOCTYPE")
        try:
            tree = ElementTree.fromstring(raw)
        except (ElementTree.ParseError, ValueError) as error:
            raise BoxFileError(f"{path} is no XML ({brief(error)})") from None
        named = tree.findtext("filename")
        film = path.name if not named or name_of(path.name) in films else named
        for item in tree.iter("object"):
            corners = []
            for name in ("xmin", "ymin", "xmax", "ymax"):
                corners.append(_number(item.findtext(f"bndbox/{name}"), path))
            left, top, right, bottom = corners
            _add(boxes, film, (item.findtext("name") or "").strip(), [left, top, right - left, bottom - top], path)
    return boxes


def _number(text: str | None, path: Path) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        raise BoxFileError(f"{path}: {brief(text)!r} is no number") from None


def _yolo(root: Path, paths: list[Path], size_of: Callable[[str], tuple[int, int] | None]) -> Boxes:
    names = _yolo_names(root)
    boxes: Boxes = {}
    for path in paths:
        if path.name.lower() in ("classes.txt", "readme.txt", "train.txt", "val.txt", "test.txt"):
            continue
        size: tuple[int, int] | None = None
        for line in _small(path).decode("utf-8", "replace").splitlines():
            cells = line.split()
            if not cells:
                continue
            size = size or size_of(path.stem)
            if size is None:
                break  # no such film
            if len(cells) not in (5, 6):
                raise BoxFileError(f"{path}: a line of YOLO has 5 cells, not {len(cells)}: {brief(line)!r}")
            x, y, w, h = (_number(cell, path) for cell in cells[1:5])
            if not all(0 <= value <= 1.0001 for value in (x, y, w, h)):
                raise BoxFileError(
                    f"{path}: {brief(line)!r} is not in shares of the film (0 to 1), as YOLO's boxes are"
                )
            high, wide = size
            finding = names.get(cells[0], cells[0])
            _add(boxes, path.stem, finding, [(x - w / 2) * wide, (y - h / 2) * high, w * wide, h * high], path)
    return boxes


def _yolo_names(root: Path) -> dict[str, str]:
    """Names of the classes by number, from the file beside the boxes or one folder above."""
    for folder in (root, root.parent):
        for path in [folder / "classes.txt", *sorted(folder.glob("*.names"))]:
            if path.is_file():
                lines = _small(path).decode("utf-8-sig", "replace").split("\n")
                return {str(number): line.strip() for number, line in enumerate(lines) if line.strip()}
        for path in sorted(folder.glob("*.y*ml")):
            names = _yaml_names(path)
            if names:
                return names
    return {}


def _yaml_names(path: Path) -> dict[str, str]:
    try:
        content: Any = read_yaml(path)
    except (OSError, YamlError, ValueError, RecursionError):
        return {}
    names = content.get("names") if isinstance(content, dict) else None
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else ()
    return {str(number): str(name) for number, name in pairs}


def _table(path: Path) -> Boxes:
    try:
        read = read_table(path, ["image"])
    except TableError as error:
        raise BoxFileError(f"{path}: {error}") from None
    finding = next(_found(read.columns, ("finding", "label", "class", "class_name", "category")), None)
    ways = (
        ("x", "y", "w", "h"),
        ("x", "y", "width", "height"),
        ("xmin", "ymin", "xmax", "ymax"),
        ("x1", "y1", "x2", "y2"),
    )
    chosen = next((way for way in ways if all(column_named(name, read.columns) for name in way)), None)
    if chosen is None:
        raise BoxFileError(
            f"{path} has no columns x, y, w, h and no xmin, ymin, xmax, ymax. Columns: {brief(read.columns)}"
        )
    columns = [str(column_named(name, read.columns)) for name in chosen]
    boxes: Boxes = {}
    for row in read.rows:
        if not any(row[column] for column in columns):
            continue  # a film without boxes
        values = [_number(row[column], path) for column in columns]
        if chosen[2] in ("xmax", "x2"):
            values = [values[0], values[1], values[2] - values[0], values[3] - values[1]]
        _add(boxes, row["image"], row[finding] if finding else "", values, path)
    return boxes


def _found(columns: list[str], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        column = column_named(name, columns)
        if column is not None:
            yield column
