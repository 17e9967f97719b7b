"""How localization is judged: hits, overlap and AP50, beside a guess that looks at no image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.data.manifest import means
from cxr_pipeline.models.figures.boxes import average_precision, best_iou, hit, share_inside
from cxr_pipeline.models.figures.metrics import bootstrap, bootstrap_mean
from cxr_pipeline.stages.base import Record, Region, Stage, needed
from cxr_pipeline.stages.films import stream
from cxr_pipeline.stages.localize import Focus, Localize, focus, hottest

if TYPE_CHECKING:
    from cxr_pipeline.data.manifest import Manifest
    from cxr_pipeline.models.figures.metrics import Figure

_SHOWN = 20  # cases on a contact sheet
_TILE = 256  # long side of a case on it, in pixels
_TRUE, _FOUND = (80, 220, 80), (60, 60, 255)  # BGR


@dataclass(frozen=True)
class Judged:
    """One film's outcome. A film that an earlier stage refused counts as looked at nowhere."""

    row: dict[str, Any]  # what films.csv shows of it
    hit: float  # 0 or 1: the map's maximum lies in a lesion
    iou: float  # the best of a region with a lesion
    hit_predicted: float  # as `hit`, on the predicted class's map; NaN where the film was predicted normal
    cam_in_lungs: float  # NaN where there is no map
    cam_in_lungs_ungated: float
    found: list[tuple[Box, float]]  # regions and their scores
    truths: list[Box]
    size: tuple[int, int]  # of the film, height and width


def films_with_lesions(data: Manifest, stage: Localize) -> Manifest:
    """The films of `data` that have boxes and are not labelled normal.

    A film without a label may be of the positive class; but where the config says what the classes are made of, it is
    of none of them. Where films have several labels it is the boxes' findings that count: one of the classes at least.
    """
    if stage.multi_label:
        named = data.boxes[data.boxes["finding"].isin(stage.classes)]
        return replace(data, table=data.table[data.table["image"].isin(set(named["image"]))])
    boxed = data.table["image"].isin(set(data.boxes["image"]))
    unlabelled = [] if stage.class_of else [""]
    abnormal = data.table["label"].isin([*(name for name in stage.classes if name != stage.normal), *unlabelled])
    return replace(data, table=data.table[boxed & abnormal])


def lesions_of(data: Manifest, row: dict[str, Any], stage: Localize) -> tuple[str, list[Box]]:
    """The class whose map a film is judged on, its label (the positive class where it has none), and its boxes.

    Where the config says what the classes are made of, and some of the boxes have a finding of the film's class, those
    count alone. Where films have several labels: the finding of its first box that is one of the classes, and the boxes
    of that finding.
    """
    boxes = data.boxes_of(row["image"])
    if stage.multi_label:
        label = next(finding for finding, _ in boxes if finding in stage.classes)
        return label, [box for finding, box in boxes if finding == label]
    label = str(row["label"] or stage.positive)
    named = [box for finding, box in boxes if means(finding, (stage.class_of or {}).get(label, ()))]
    return label, named or [box for _, box in boxes]


def evaluate(stage: Localize, data: Manifest, out: Path, chain: Sequence[Stage]) -> dict[str, Any]:
    """Judge the stage on the films of `data` with boxes that are not labelled normal.

    Each film is judged on the map of the class that it is labelled with ("given a TB film, where does the network
    look?"), whatever the chain predicts. The figures at the top are those of the positive class's films (of all, where
    it has none here); `by_source` and `by_label` hold every film. All are means over films with 95 % bootstrap
    intervals over patients:

    - `hit_rate`: the map's maximum lies in a lesion; `hit_rate_predicted`: the same among films predicted abnormal, on
      the predicted class's map, which is what a user is shown;
    - `iou`: the best IoU of a region with a lesion, 0 without regions; `iou50_rate`: films where it reaches 0.5;
    - `ap50`: average precision of the regions by score, at IoU 0.5;
    - `cam_in_lungs`: the share of the heat map, as users get it, in the lungs: only the rim around them can be outside;
      `cam_in_lungs_ungated`: that of the Grad-CAM before it is cut to the lungs, which tells where the network looks;
    - `constant_guess`: `hit_rate`, `iou` and `iou50_rate` of the same point and box on every film, fitted on `train`.
      Only what is above it is skill.

    A film that cannot be read is left out; one that an earlier stage refuses counts as a miss. `worst.png` and
    `random.png` show cases, with a legend: lesions green, regions red, the maximum a cross.
    """
    films = stage.films_with_truth(data)
    random = set(np.random.default_rng(0).permutation(len(films))[:_SHOWN].tolist())
    judged: list[Judged] = []
    worst: list[tuple[float, np.ndarray, str]] = []
    drawn: list[tuple[float, np.ndarray, str]] = []
    for number, (row, record) in enumerate(stream(films, chain, description="localize")):
        if record.radiograph is None:
            continue
        label, truths = lesions_of(films, row, stage)
        seen = focus(record, stage.classes.index(label)) if record.ok and record.maps is not None else None
        regions = stage.regions(seen, label, needed(record.probabilities, "probabilities")[label]) if seen else []
        case = _judge(stage, row, record, label, truths, seen, regions)
        judged.append(case)
        status = "" if record.ok else f", {record.status}"
        caption = f"IoU {case.iou:.2f}{status}: {record.radiograph.id}"
        tile = (case.iou, _tile(record, truths, regions, seen), caption)
        worst = sorted([*worst, tile], key=lambda case: case[0])[:_SHOWN]
        if number in random:
            drawn.append(tile)
    if judged:
        from cxr_pipeline.models.figures.plots import contact_sheet

        legend = [
            ("true boxes of lesions", _TRUE),
            ("regions found", _FOUND),
            ("+: maximum of the heat map (blue to red: little to much of it)", None),
            ("IoU: the best of a region with a lesion", None),
        ]
        for name, tiles in (("worst", worst), ("random", drawn)):
            contact_sheet([t[1] for t in tiles], [t[2] for t in tiles], out / f"{name}.png", legend=legend)
    guess = stage.card.get("training", {}).get("constant_guess")
    labels = sorted({case.row["label"] for case in judged})
    top = [stage.positive] if stage.positive in labels else labels
    return {
        "judged_labels": top,
        **_figures([case for case in judged if case.row["label"] in top], guess),
        "by_source": _grouped(judged, "source", guess),
        "by_label": _grouped(judged, "label", guess),
        "films": [case.row for case in judged],
    }


def _judge(
    stage: Localize,
    row: dict[str, Any],
    record: Record,
    label: str,
    truths: list[Box],
    seen: Focus | None,
    regions: list[Region],
) -> Judged:
    in_lungs = (
        [share_inside(values, seen.lungs[0] | seen.lungs[1]) for values in (seen.heat, seen.raw)]
        if seen and record.mask is not None
        else [np.nan] * 2
    )
    predicted = np.nan
    if seen and record.label not in ("", stage.normal):
        name, _ = stage.judged(record)
        shown = seen if name == label else focus(record, stage.classes.index(name))
        predicted = hit(hottest(shown), truths)
    case = Judged(
        row={},
        hit=hit(hottest(seen), truths) if seen else 0.0,
        iou=best_iou([region.box for region in regions], truths),
        hit_predicted=predicted,
        cam_in_lungs=in_lungs[0],
        cam_in_lungs_ungated=in_lungs[1],
        found=[(region.box, region.score) for region in regions],
        truths=truths,
        size=record.film.size,
    )
    entry = {k: row[k] for k in ("image", "patient", "source")} | {"label": label, "status": record.status}
    entry |= {"predicted": record.label or "", "lesions": len(truths), "regions": len(regions)}
    return replace(
        case, row=entry | {k: getattr(case, k) for k in ("hit", "iou", "cam_in_lungs", "cam_in_lungs_ungated")}
    )


def _grouped(judged: Sequence[Judged], column: str, guess: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    groups = sorted({case.row[column] for case in judged})
    return {group: _figures([case for case in judged if case.row[column] == group], guess) for group in groups}


def _figures(judged: Sequence[Judged], guess: dict[str, Any] | None) -> dict[str, Any]:
    """The figures of a group of films, and those of the constant guess (None where none was fitted)."""
    patients = np.array([case.row["patient"] for case in judged])

    def mean(values: Sequence[float]) -> Figure:
        return bootstrap_mean(np.array(values, float), patients)

    def ap50(chosen: np.ndarray) -> float:
        return average_precision([(judged[i].found, judged[i].truths) for i in chosen], 0.5)

    constant = None
    if guess is not None:
        hits, ious = zip(*(_guess(guess, case) for case in judged), strict=True) if judged else ((), ())
        constant = {"hit_rate": mean(hits), "iou": mean(ious), "iou50_rate": mean([iou >= 0.5 for iou in ious])}
    return {
        "hit_rate": mean([case.hit for case in judged]),
        "hit_rate_predicted": mean([case.hit_predicted for case in judged]),
        "iou": mean([case.iou for case in judged]),
        "iou50_rate": mean([case.iou >= 0.5 for case in judged]),
        "ap50": bootstrap(ap50, patients),
        "cam_in_lungs": mean([case.cam_in_lungs for case in judged]),
        "cam_in_lungs_ungated": mean([case.cam_in_lungs_ungated for case in judged]),
        "constant_guess": constant,
    }


def _guess(guess: dict[str, Any], case: Judged) -> tuple[float, float]:
    """Whether the constant point hits, and the constant box's best IoU, on one film."""
    height, width = case.size
    (px, py), (x, y, w, h) = guess["point"], guess["box"]
    box = Box(x * width, y * height, w * width, h * height)
    return hit((px * width, py * height), case.truths), best_iou([box], case.truths)


def fit_constant_guess(films: Manifest, cells: int = 100) -> dict[str, Any] | None:
    """The point in most films' lesions, and the box that reaches IoU 0.5 with one on most films.

    Both are in coordinates relative to the film (x and w by its width, y and h by its height). The point is searched
    on a grid of `cells` by `cells`; the box among the lesions themselves, then by small steps of its edges.

    Returns:
        ``{"point": [x, y], "box": [x, y, w, h], "n": films}``, rounded to three decimals; None without any film.
    """
    lesions = []
    for row, record in stream(films, description="constant guess"):
        height, width = record.size
        if record.ok:
            boxes = np.array([box for _, box in films.boxes_of(row["image"])], float)
            lesions.append(boxes / [width, height, width, height])
    if not lesions:
        return None
    where = (np.arange(cells) + 0.5) / cells
    counts = np.zeros((cells, cells), int)
    for boxes in lesions:
        inside_x = (where >= boxes[:, :1]) & (where <= boxes[:, :1] + boxes[:, 2:3])
        inside_y = (where >= boxes[:, 1:2]) & (where <= boxes[:, 1:2] + boxes[:, 3:4])
        counts += (inside_y[:, :, None] & inside_x[:, None, :]).any(axis=0)
    rows, columns = np.nonzero(counts == counts.max())
    middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    point = (where[columns[middle]], where[rows[middle]])
    box = _best_box(lesions)
    return {"point": [round(float(v), 3) for v in point], "box": [round(float(v), 3) for v in box], "n": len(lesions)}


def _best_box(lesions: Sequence[np.ndarray]) -> np.ndarray:
    """The box (x, y, w, h) with IoU of 0.5 or more on most films; of equals, the one with the higher mean best IoU."""
    every = np.concatenate(lesions)
    starts = np.cumsum([0, *(len(boxes) for boxes in lesions)])[:-1]

    def worth(box: np.ndarray) -> tuple[int, float]:
        low = np.maximum(box[:2], every[:, :2])
        high = np.minimum(box[:2] + box[2:], every[:, :2] + every[:, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        iou = common / np.maximum(box[2] * box[3] + np.prod(every[:, 2:], axis=1) - common, 1e-9)
        best = np.maximum.reduceat(iou, starts)
        return int((best >= 0.5).sum()), float(best.mean())

    box = max(every, key=worth)
    moves = np.concatenate([np.eye(4), -np.eye(4)])
    for step in (0.04, 0.02, 0.01, 0.005):
        while True:
            around = [new for new in box + step * moves if (new[2:] > step).all()]
            better = max(around, key=worth, default=box)
            if worth(better) <= worth(box):
                break
            box = better
    return box


def _tile(record: Record, truths: Sequence[Box], regions: Sequence[Region], seen: Focus | None) -> np.ndarray:
    """The film with its heat, lesions in green, regions in red and the maximum as a cross; (h, w, 3) uint8 BGR."""
    height, width = record.film.size
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = cv2.resize(record.film.pixels, size, interpolation=cv2.INTER_AREA)
    tile = cv2.cvtColor((np.clip(grey, 0, 1) * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    if seen is not None:
        small = Frame((size[1], size[0]), Box(*(v * scale for v in seen.frame.box)).rounded(), seen.frame.grid)
        heat = np.clip(small.to_native(seen.heat), 0, 1)[..., None]
        colour = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_JET)
        tile = np.round(tile * (1 - 0.35 * heat) + colour * 0.35 * heat).astype(np.uint8)
        point = hottest(seen)
        if point is not None:
            at = (int(point[0] * scale), int(point[1] * scale))
            cv2.drawMarker(tile, at, (255, 255, 255), cv2.MARKER_CROSS, 9, 1)
    for boxes, line in ((truths, _TRUE), ([region.box for region in regions], _FOUND)):
        for x, y, w, h in boxes:
            left, top, right, bottom = (round(v * scale) for v in (x, y, x + w, y + h))
            cv2.rectangle(tile, (left, top), (right, bottom), line, 1)
    return tile
