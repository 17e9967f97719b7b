"""Masks that are no pictures: run lengths in a table's cell, and polygons or run lengths in a JSON.

::

    run lengths    "start length start length ..."   from 1, down the columns (Kaggle) or along the rows (CheXmask)
    COCO           images, annotations with `segmentation`: polygons, or {"counts": ..., "size": [height, width]}
                   {"counts": ..., "size": ...} alone too
    LabelMe        shapes with `points`, or with a picture in a box; imageHeight, imageWidth
    VIA            regions with all_points_x and all_points_y, of each file
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.data.radiograph import MAX_PIXELS, RadiographError

_JSON_BYTES = 256 * 1024 * 1024
_UNKNOWN = "the JSON is neither COCO (images, annotations), nor LabelMe (shapes), nor VIA (regions of files)"
_NOT_LUNGS = ("heart", "clavicle", "trachea", "spine", "mediastin", "lesion", "nodule")


def from_runs(text: str, size: tuple[int, int], source: str | Path, *, by_rows: bool = False) -> np.ndarray:
    """A mask (H, W) uint8 0/1 of run lengths: pairs of a start, from 1, and a length.

    Args:
        size: (height, width) of the picture that the runs are of.
        source: named in errors.
        by_rows: whether pixels are counted along the rows; else down the columns.

    Raises:
        RadiographError: they are no pairs of numbers, or reach outside the picture.
    """
    high, wide = size
    if high * wide > MAX_PIXELS or high < 1 or wide < 1:
        raise RadiographError(source, f"the mask of {wide}x{high} pixels has more than any film", "mask")
    words = text.split()
    if not words or words in (["-1"], ["nan"]):  # SIIM writes -1 where there is nothing
        return np.zeros(size, np.uint8)
    try:
        runs = np.array([int(word) for word in words], np.int64)
    except (ValueError, OverflowError):
        runs = np.zeros(1, np.int64)
    if len(runs) % 2 or (runs < 0).any():
        raise RadiographError(source, "the run lengths are no pairs of a start and a length", "mask")
    starts, ends = runs[::2] - 1, runs[::2] - 1 + runs[1::2]
    if starts.min() < 0 or ends.max() > high * wide:
        raise RadiographError(
            source, f"the run lengths reach to pixel {int(ends.max())} of {high * wide} ({wide}x{high})", "mask_size"
        )
    edges = np.zeros(high * wide + 1, np.int32)
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    flat = (np.cumsum(edges[:-1]) > 0).astype(np.uint8)
    return flat.reshape(size) if by_rows else np.ascontiguousarray(flat.reshape(wide, high).T)


def mask_in_json(path: Path, size: tuple[int, int] | None, *, image: str = "") -> np.ndarray:
    """The lungs (H, W) uint8 0/1 that a JSON draws: a LabelMe file, or a COCO file.

    Args:
        size: (height, width) of the film, used where the file does not give it.
        image: the film's file name, by which a COCO file of several films is searched.

    Raises:
        RadiographError: it is neither, does not hold the film, or draws nothing.
    """
    content = _loaded(str(path), path.stat().st_mtime_ns if path.is_file() else 0)
    try:
        if "shapes" in content:
            return _labelme(content, size, path)
        if (files := _via_files(content)) is not None:
            return _via(files, size, path, image)
        if "annotations" in content and "images" in content:
            return _coco(content, size, path, image)
        if "counts" in content and "size" in content:  # what pycocotools gives for one mask
            return _coco_runs(content, _checked(content["size"], path), path)
    except RadiographError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        raise RadiographError(path, f"the JSON draws no mask ({type(error).__name__}: {error})"[:300], "mask") from None
    raise RadiographError(path, _UNKNOWN, "mask")


@lru_cache(maxsize=2)  # a COCO file serves all films of a set
def _loaded(path: str, _changed: int) -> dict[str, Any]:
    try:
        if Path(path).stat().st_size > _JSON_BYTES:
            raise RadiographError(path, f"the JSON has over {_JSON_BYTES >> 20} MB. Split it", "mask")
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RadiographError(path, f"the JSON cannot be read ({str(error)[:120]})", "mask") from None
    if not isinstance(content, dict):
        raise RadiographError(path, _UNKNOWN, "mask")
    return content


def _labelme(content: dict[str, Any], size: tuple[int, int] | None, path: Path) -> np.ndarray:
    own = (content.get("imageHeight"), content.get("imageWidth"))
    shape = _checked(own if all(own) else size, path)
    shapes = [one for one in content["shapes"] if one.get("shape_type") in ("polygon", "rectangle", None)]
    pictures = [one for one in content["shapes"] if one.get("shape_type") == "mask"]
    kept = _lungs_only([*shapes, *pictures], lambda one: str(one.get("label", "")))
    mask = np.zeros(shape, np.uint8)
    outlines = []
    for one in kept:
        if one.get("shape_type") == "mask":
            _put_picture(mask, one)
            continue
        points = np.asarray(one["points"], float)
        if one.get("shape_type") == "rectangle":
            (x1, y1), (x2, y2) = points
            points = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
        outlines.append(points)
    return mask | _filled(outlines, shape, path)


def _put_picture(mask: np.ndarray, shape: dict[str, Any]) -> None:
    """Put a LabelMe shape of the kind `mask` into a mask (H, W): a PNG in base64 whose corner its first point is."""
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(shape["mask"]), np.uint8), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise ValueError("a shape holds no picture")
    left, top = (max(0, round(float(value))) for value in shape["points"][0])
    part = mask[top : top + picture.shape[0], left : left + picture.shape[1]]
    part |= (picture[: part.shape[0], : part.shape[1]] > 0).astype(np.uint8)


def _via_files(content: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The files of a VGG Image Annotator project or export; None where it is neither."""
    files = list(content.get("_via_img_metadata", content).values())
    held = [one for one in files if isinstance(one, dict) and "regions" in one and "filename" in one]
    return held if held and len(held) == len(files) else None


def _via(files: list[dict[str, Any]], size: tuple[int, int] | None, path: Path, image: str) -> np.ndarray:
    wanted = _named([str(one["filename"]) for one in files], files, image) or (files if len(files) == 1 else [])
    if len(wanted) != 1:
        raise RadiographError(path, f"the VIA file names {len(wanted)} films {image!r} among {len(files)}", "mask")
    regions = wanted[0]["regions"]
    regions = list(regions.values()) if isinstance(regions, dict) else regions  # of its first version
    kept = _lungs_only(regions, lambda one: " ".join(map(str, one.get("region_attributes", {}).values())))
    drawn = [one["shape_attributes"] for one in kept]
    outlines = [np.array([one["all_points_x"], one["all_points_y"]], float).T for one in drawn if "all_points_x" in one]
    return _filled(outlines, _checked(size, path), path)


def _coco(content: dict[str, Any], size: tuple[int, int] | None, path: Path, image: str) -> np.ndarray:
    images = content["images"]
    wanted = _named([str(entry["file_name"]) for entry in images], images, image)
    if not wanted and len(images) == 1:
        wanted = images
    if len(wanted) != 1:
        raise RadiographError(path, f"the COCO file names {len(wanted)} films {image!r} among {len(images)}", "mask")
    film = wanted[0]
    shape = _checked((film.get("height"), film.get("width")) if film.get("height") else size, path)
    kinds = {kind["id"]: str(kind["name"]) for kind in content.get("categories", [])}
    found = [entry for entry in content["annotations"] if entry["image_id"] == film["id"] and entry.get("segmentation")]
    mask = np.zeros(shape, np.uint8)
    outlines: list[np.ndarray] = []
    for entry in _lungs_only(found, lambda entry: kinds.get(entry.get("category_id"), "")):
        drawn = entry["segmentation"]
        if isinstance(drawn, dict):
            mask |= _coco_runs(drawn, shape, path)
        else:
            outlines += [np.asarray(polygon, float).reshape(-1, 2) for polygon in drawn]
    return mask | _filled(outlines, shape, path) if outlines or not mask.any() else mask


def _named(names: Sequence[str], entries: Sequence[Any], image: str) -> list[Any]:
    """The entries of a film by their file names: whole ones, else without case, else without endings too."""
    paths, film = [Path(name.replace("\\", "/")) for name in names], Path(image)
    for form in (lambda path: path.name, lambda path: path.name.casefold(), lambda path: path.stem.casefold()):
        found = [entry for path, entry in zip(paths, entries, strict=True) if image and form(path) == form(film)]
        if found:
            return found
    return []


def _checked(size: Sequence[Any] | None, path: Path) -> tuple[int, int]:
    if size is None:
        raise RadiographError(path, "the JSON does not say how large the film is (height and width)", "mask")
    high, wide = int(size[0]), int(size[1])
    if not (high > 0 and wide > 0 and high * wide <= MAX_PIXELS):
        raise RadiographError(path, f"{wide}x{high} pixels are no size of a film", "mask")
    return high, wide


def _lungs_only(shapes: Iterable[dict[str, Any]], label_of: Any) -> list[dict[str, Any]]:
    """Shapes named as lungs, or where none is, those that aren't named as something else."""
    shapes = list(shapes)
    lungs = [shape for shape in shapes if "lung" in label_of(shape).lower()]
    return lungs or [shape for shape in shapes if not any(word in label_of(shape).lower() for word in _NOT_LUNGS)]


def _filled(outlines: list[np.ndarray], shape: tuple[int, int], path: Path) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for points in outlines:
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise RadiographError(path, "an outline has fewer than three points", "mask")
        if points.min() < -1 or points[:, 0].max() > shape[1] + 1 or points[:, 1].max() > shape[0] + 1:
            raise RadiographError(path, f"an outline reaches outside the film of {shape[1]}x{shape[0]}", "mask_size")
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask


def _coco_runs(drawn: dict[str, Any], shape: tuple[int, int], path: Path) -> np.ndarray:
    """COCO's run lengths: counts of 0 and 1 in turn, down the columns; a list, or packed into a text."""
    high, wide = _checked(drawn.get("size", shape), path)
    counts = drawn["counts"]
    numbers = _unpacked(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if min(numbers, default=0) < 0 or sum(numbers) != high * wide:
        raise RadiographError(path, f"the run lengths sum to {sum(numbers)} and not to {high * wide}", "mask_size")
    flat = np.repeat(np.arange(len(numbers)) % 2, numbers).astype(np.uint8)
    mask = np.ascontiguousarray(flat.reshape(wide, high).T)
    return mask if mask.shape == shape else cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _unpacked(text: str) -> list[int]:
    """COCO's packed counts (`rleFrString` of its API): 5 bits a letter, from the third on differences."""
    numbers: list[int] = []
    at = 0
    while at < len(text):
        value, shift, goes_on = 0, 0, True
        while goes_on:
            letter = ord(text[at]) - 48
            value |= (letter & 31) << shift
            goes_on = bool(letter & 32)
            at, shift = at + 1, shift + 5
            if not goes_on and letter & 16:
                value |= -1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
    return numbers
