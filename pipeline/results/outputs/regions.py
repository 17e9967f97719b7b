"""`regions.json`: the boxes of all films, as COCO."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar

from cxr_pipeline import stages
from cxr_pipeline.about import NOTICE, PROGRAM
from cxr_pipeline.results.outputs.base import Output
from cxr_pipeline.results.outputs.table import number
from cxr_pipeline.stages.base import OK, Record


class Regions(Output):
    """The boxes of all judged films in one file. What is in it, the journal holds of each film."""

    name: ClassVar[str] = "regions"
    detail: int | None = 1  # it looks at no pixel of the film
    about: ClassVar[str] = "regions.json: the boxes as COCO, in pixels of the films"
    default: ClassVar[bool] = True
    summary: ClassVar[str] = "regions.json"

    def wants_summary(self, run: Mapping[str, Any]) -> bool:
        """Whether the chain, or an earlier and longer one, looks for regions."""
        return "regions" in stages.filled(run["fingerprints"])

    def write_summary(
        self, file: IO[bytes], entries: Callable[[], Iterable[dict[str, Any]]], run: Mapping[str, Any]
    ) -> None:
        """Write regions as COCO; see `write_coco`."""
        info = {"description": f"Regions to look at, by {PROGRAM} {run['version']}. {NOTICE}"}
        write_coco(file, entries, run["classes"], info)


def regions_of(record: Record, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A record's regions as they go into the journal and, from there, into `regions.json`.

    Raises:
        ValueError: a region is of none of the classes, or its score is not a finite number.
    """
    out = []
    for region in record.regions or ():
        if region.label not in classes:
            raise ValueError(f"a region of class {region.label!r}, which is none of {', '.join(classes) or 'none'}")
        bbox = [int(v) if float(v).is_integer() else round(float(v), 2) for v in region.box]
        score = float(number(region.score, 4))
        place = {"category": region.label, "side": region.side, "zone": region.zone}
        out.append({"bbox": bbox, "area": bbox[2] * bbox[3], "score": score, **place})
    return out


def frame_of(record: Record) -> dict[str, list[int]] | None:
    """Where the heat map's grid lies on the film: `bbox` in native pixels, `grid` as height and width."""
    if record.frame is None or (record.heat is None and record.heatmap is None):
        return None
    grid = record.frame.grid if record.heat is None else record.heat.shape[:2]
    return {"bbox": [int(v) for v in record.frame.box], "grid": [int(v) for v in grid]}


def write_coco(
    file: IO[bytes],
    entries: Callable[[], Iterable[dict[str, Any]]],
    classes: Sequence[str],
    info: dict[str, Any],
) -> None:
    """Write regions as COCO, one image or annotation a line; never in memory whole.

    Images are the films that were judged; one without annotations has nothing to look at. Ids count from 1. An image
    with a file in heatmaps/ also has `heatmap`: its file, and where its grid lies on the film.

    Args:
        file: opened for bytes.
        entries: gives the journal's entries, in order; called twice.
        classes: categories, in the order of their ids.
        info: COCO's `info`.
    """

    def judged() -> Iterator[tuple[int, dict[str, Any]]]:
        return enumerate((e for e in entries() if e["row"]["status"] == OK and e["regions"] is not None), 1)

    def images() -> Iterator[dict[str, Any]]:
        for place, entry in judged():
            row = entry["row"]
            size = {"width": int(row["width"]), "height": int(row["height"])}
            yield {"id": place, "file_name": row["image"], **size, "name": row["id"], **_heatmap(entry, size)}

    def annotations() -> Iterator[dict[str, Any]]:
        count = 0
        for place, entry in judged():
            for region in entry["regions"]:
                count += 1
                category = classes.index(region["category"]) + 1
                rest = {key: value for key, value in region.items() if key != "category"}
                yield {"id": count, "image_id": place, "category_id": category, "iscrowd": 0, **rest}

    def listed(items: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        yield b"["
        for place, item in enumerate(items):
            yield (b",\n" if place else b"\n") + json.dumps(item).encode()
        yield b"]"

    categories = [{"id": place, "name": name} for place, name in enumerate(classes, 1)]
    file.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n"images": '.encode())
    file.writelines(listed(images()))
    file.write(b',\n"annotations": ')
    file.writelines(listed(annotations()))
    file.write(b"}\n")


def _heatmap(entry: dict[str, Any], size: dict[str, int]) -> dict[str, Any]:
    """What an image says of its heat map's file, where it has one."""
    name = next((name for name in entry["files"] if name.startswith("heatmaps/")), None)
    if name is None:
        return {}
    whole = {"bbox": [0, 0, size["width"], size["height"]], "grid": [size["height"], size["width"]]}
    frame = None if "heatmaps native" in entry["outputs"] else entry.get("frame")
    return {"heatmap": {"file_name": name, **(frame or whole)}}
