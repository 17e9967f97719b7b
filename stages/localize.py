"""Localize: where the classifier looked. Its Grad-CAM, kept to the lungs, becomes boxes with a side and a zone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import cv2
import numpy as np

from cxr_pipeline.data.files import csv_text, write_text
from cxr_pipeline.data.geometry import Box, Frame, bounding_box, resize
from cxr_pipeline.models.store import NO_LICENCE, fingerprint, read_card, write_card
from cxr_pipeline.stages.base import Record, Region, Stage, StageError, Truth, needed
from cxr_pipeline.stages.films import stream
from cxr_pipeline.stages.lungs import split_lungs
from cxr_pipeline.stages.sets import POSITIVE, UNSURE

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest

log = logging.getLogger("cxr.localize")

_REACH = 0.02  # the lungs are grown by this share of the crop, some 6 mm on an adult, so that pleural lesions stay
_FAINT = 0.025  # share of the films with lesions whose map may stay under the floor of a box
_WORTH = 0.005  # mean best IoU that a larger minimum area may cost: best IoU itself cannot see false boxes


class Focus(NamedTuple):
    """Where the evidence for one class lies, on the classifier's grid (h, w) over the lung crop."""

    heat: np.ndarray  # float32 in [0, 1], nothing away from the lungs; its maximum is 1, or all is 0
    lungs: tuple[np.ndarray, np.ndarray]  # the patient's right and left lung, bool; one may be empty
    raw: np.ndarray  # float32, not negative: the map before lungs and scaling
    frame: Frame

    @property
    def strongest(self) -> float:
        """The largest value of the map in the lungs before scaling; 0 where there is none."""
        return float(np.max(self.raw, where=self.heat > 0, initial=0.0))


class Spot(NamedTuple):
    """A connected component of a thresholded map, in pixels of the grid."""

    box: Box
    area: int
    peak: float  # the map's maximum in it
    pixels: np.ndarray  # bool, of the box's size


def focus(record: Record, channel: int) -> Focus:
    """One class's Grad-CAM as the stage uses it, in running, fitting and evaluation alike.

    The map is enlarged to the frame's grid (linear, half-pixel centres) first, so that a box is not bound to its coarse
    cells; then cut to the lungs grown by 2 % of the crop, and divided by its maximum there. A map without anything
    positive in the lungs gives all zeros.

    Args:
        record: a film with `maps` and `frame`; all of it counts as lung where it has no `mask`.
        channel: index of the class in `maps`.
    """
    frame, maps = needed(record.frame, "frame"), needed(record.maps, "maps")
    raw = resize(np.ascontiguousarray(maps[..., channel], np.float32), *frame.grid)
    raw = np.maximum(np.nan_to_num(raw), 0)
    lungs = split_lungs(record.lungs_on(frame), frame)
    reach = [max(1, round(_REACH * side)) for side in frame.grid]
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach[1] + 1, 2 * reach[0] + 1))
    heat = np.where(cv2.dilate((lungs[0] | lungs[1]).astype(np.uint8), kernel) > 0, raw, np.float32(0))
    peak = float(heat.max())
    heat = heat / peak if peak > 0 else np.zeros_like(heat)
    return Focus(heat.astype(np.float32), lungs, raw, frame)


def spots(heat: np.ndarray, threshold: float) -> list[Spot]:
    """The 8-connected components of ``heat >= threshold`` where there is any heat, strongest first, then largest."""
    above = (heat >= threshold) & (heat > 0)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    found = []
    for label, (x, y, w, h, area) in enumerate(stats[1:].tolist(), start=1):
        pixels = labels[y : y + h, x : x + w] == label
        found.append(Spot(Box(x, y, w, h), area, float(heat[y : y + h, x : x + w][pixels].max()), pixels))
    return sorted(found, key=lambda spot: (-spot.peak, -spot.area))


def keep(found: Sequence[Spot], seen: Focus, min_area: float, max_regions: int) -> list[Spot]:
    """The spots of at least `min_area` times the grid (which shows the lung box), at most `max_regions`."""
    smallest = min_area * seen.frame.grid[0] * seen.frame.grid[1]
    return [spot for spot in found if spot.area >= smallest][:max_regions]


def native_box(spot: Spot, frame: Frame) -> Box:
    """A spot's box in whole native pixels, within the film."""
    height, width = frame.native
    return frame.box_to_native(spot.box).rounded().intersect(Box(0, 0, width, height))


def side_and_zone(spot: Spot, lungs: tuple[np.ndarray, np.ndarray]) -> tuple[str, str]:
    """The patient's side and the zone of a spot.

    The side is that of the lung which it covers more of; where it lies beside both, that of the nearer one. The zone
    is the third of that lung's height that the spot's centroid lies in.
    """
    x, y, w, h = (int(v) for v in spot.box)
    rows, columns = np.nonzero(spot.pixels)
    cx, cy = x + columns.mean() + 0.5, y + rows.mean() + 0.5
    boxes = [bounding_box(lung) for lung in lungs]
    shared = [np.count_nonzero(lung[y : y + h, x : x + w] & spot.pixels) for lung in lungs]
    away = [max(b.x - cx, cx - b.x - b.w, 0.0) if b else np.inf for b in boxes]
    which = min((0, 1), key=lambda side: (-shared[side], away[side]))
    lung = boxes[which]
    third = int(np.clip(3 * (cy - lung.y) / lung.h, 0, 2)) if lung is not None else 1  # no lung at all
    return ("right", "left")[which], ("upper", "middle", "lower")[third]


def hottest(seen: Focus) -> tuple[float, float] | None:
    """The point x, y of the map's maximum in native pixels; None where the map is empty.

    An enlarged coarse map is flat at its top near the crop's border; of such a plateau it is the pixel nearest the
    middle.
    """
    if not seen.heat.any():
        return None
    rows, columns = np.nonzero(seen.heat >= seen.heat.max() * (1 - 1e-6))
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    point = seen.frame.box_to_native(Box(columns[nearest] + 0.5, rows[nearest] + 0.5, 0, 0))
    return float(point.x), float(point.y)


class Localize(Stage):
    """The localization stage: decisions only, no network of its own."""

    name: ClassVar[str] = "localize"
    summary: ClassVar[str] = "where the classifier looked: regions with the patient's side and a zone"
    shared: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("maps", "frame", "probabilities", "label")
    uses: ClassVar[tuple[str, ...]] = ("mask",)
    fills: ClassVar[tuple[str, ...]] = ("heatmap", "heatmap_label", "regions")
    run_settings: ClassVar[tuple[str, ...]] = ("threshold", "min_area", "max_regions", "label")
    truth: ClassVar[Truth] = Truth("a lesion box", "file boxes.csv beside the manifest")
    headline_figures: ClassVar[tuple[str, ...]] = ("hit_rate", "iou", "ap50", "cam_in_lungs")
    worst: ClassVar[tuple[str, str] | None] = ("iou", "IoU")

    def __init__(self, card: Mapping[str, Any], fingerprint: str = "") -> None:
        self.card, self.fingerprint = card, fingerprint
        self.obey(card["decisions"])

    def with_settings(self, **settings: Any) -> Stage:
        """See `Stage.with_settings`; `label` has to be one of the classes, or None for the predicted one.

        Raises:
            StageError: no such setting, or no such class.
        """
        label = settings.get("label")
        if label is not None and label not in self.classes:
            raise StageError(f"--label must be one of {', '.join(self.classes)}. Received: {label!r}")
        return super().with_settings(**settings)

    def obey(self, decisions: Mapping[str, Any]) -> None:
        """Take over the card's decisions, with the settings of a call."""
        self.classes: list[str] = decisions["classes"]
        self.positive: str | None = decisions["positive"]
        self.normal: str | None = decisions["normal"]
        self.label: str | None = decisions.get("label")
        self.class_of: dict[str, list[str]] | None = decisions.get("class_of")
        self.multi_label: bool = decisions.get("multi_label", self.positive is None)
        self.threshold: float = decisions["threshold"]
        self.min_area: float = decisions["min_area"]
        self.floor: float = decisions.get("floor", 0.0)  # of a map before scaling, for a box
        self.max_regions: int = decisions["max_regions"]

    @classmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx", threads: int | None = None) -> Localize:
        """The stage as stored in `bundle`; it has no network, so `runtime` and `threads` change nothing."""
        return cls(read_card(bundle), fingerprint(bundle))

    @property
    def detail(self) -> int | None:
        """It looks at the maps, at no pixel of the film."""
        return 1

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Fill in `heat`, `heatmap_label` and `regions` of the films that have maps.

        They are of the class `label`, where one was asked for, else of the predicted class; of several predicted
        labels, the likeliest. A film predicted normal gets the heat map of the positive class (without one, of the
        likeliest), so that a reader can still see where the little evidence for it lies, and regions only where the
        screening answer is not negative. A heat map is relative: its maximum is 1 however weak the evidence; only a
        region's score takes the class's probability in.
        """
        for record in records:
            if not record.ok or record.maps is None:
                continue
            judged, certain = self.judged(record)
            seen = focus(record, self.classes.index(judged))
            record.heat = seen.heat
            record.heatmap_label = judged
            probability = needed(record.probabilities, "probabilities")[judged]
            record.regions = self.regions(seen, judged, probability) if certain else []
        return list(records)

    def judged(self, record: Record) -> tuple[str, bool]:
        """The class whose map a film is shown with, and whether it gets regions."""
        if self.label is not None:
            return self.label, True
        probabilities = needed(record.probabilities, "probabilities")
        predicted = [name for name in (record.label or "").split("|") if name and name != self.normal]
        if predicted:
            return max(predicted, key=probabilities.__getitem__), True
        if self.positive and record.screen in (POSITIVE, UNSURE):  # likeliest normal, and to be looked at all the same
            return self.positive, True
        return self.positive or max(probabilities, key=probabilities.__getitem__), False

    def regions(self, seen: Focus, label: str, probability: float) -> list[Region]:
        """The regions of one class on one film, best first.

        A region's score is the map's maximum in it (1 for the best) times the probability of the class. There is none
        where the map before scaling stays under `floor`: a map is scaled to its own maximum, and next to no evidence
        would make boxes too.
        """
        out = []
        for spot in keep(spots(seen.heat, self.threshold), seen, self.min_area, self.max_regions):
            box = native_box(spot, seen.frame)
            if box.area > 0 and spot.peak * seen.strongest >= self.floor:
                out.append(Region(box, spot.peak * probability, label, *side_and_zone(spot, seen.lungs)))
        return out

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Fit threshold and minimum area on the films of `val` that have boxes; without any, take the config's values.

        Each film is judged on the map of the class that it is labelled with, whatever the chain predicts: the fit is
        about where the evidence lies, not about whether there is enough. The criterion follows CheXlocalize (Saporta et
        al. 2022), which fits a threshold by mean IoU: the threshold with the highest mean over films of the best IoU of
        a box with a lesion. (The share of films that reach IoU 0.5 is what readers ask for, but on a hundred films it
        moves in steps of a per cent and picks by luck; `fit.csv` lists it.) Best IoU cannot see false boxes, so of the
        minimum areas the largest is taken that costs at most 0.005 of it.

        The guess that needs no image, the same point and box on every film, is fitted on `train` and stored in the
        card.
        """
        from cxr_pipeline.stages.localize_figures import films_with_lesions, fit_constant_guess

        settings = config.localize
        decisions = {
            "classes": config.classes,
            "positive": config.positive,
            "normal": config.normal,
            **settings.model_dump(include={"threshold", "min_area", "max_regions"}),
            **({"multi_label": True} if config.multi_label else {}),
            **({"label": settings.label} if settings.label else {}),
            **({"class_of": config.class_of} if config.class_of else {}),
        }
        stage = cls({"decisions": decisions})
        films = films_with_lesions(data.select(split="val"), stage)
        pairs = [(t, a) for t in sorted(settings.thresholds) for a in sorted(settings.min_areas)]
        judged = list(_best_ious(films, stage, chain, pairs))
        best = np.array([ious for _, ious in judged]).reshape(-1, len(pairs))
        table = [
            {"threshold": t, "min_area": a, "iou": float(column.mean()), "iou50_rate": float((column >= 0.5).mean())}
            for (t, a), column in zip(pairs, best.T, strict=True)
            if len(best)
        ]
        if table:
            decisions["threshold"], decisions["min_area"] = choose(table)
            if not config.multi_label:  # each label's maps have a scale of their own
                decisions["floor"] = float(f"{np.quantile([strongest for strongest, _ in judged], _FAINT):.4g}")
            fitted = f"on {len(best)} val films with boxes"
        else:
            fitted = "not fitted: no val film with boxes could be judged; threshold and min_area are the config's"
        log.info("threshold %.2f, min_area %.3f: %s", decisions["threshold"], decisions["min_area"], fitted)
        write_text(out / "fit.csv", _csv(table, ("threshold", "min_area", "iou", "iou50_rate")))
        training = {
            "fitted": fitted,
            "n": len(best),
            "tried": table,
            "split_hash": data.split_hash(),
            "chain": {s.name: s.fingerprint for s in chain},
            "settings": settings.model_dump(mode="json"),
            "constant_guess": fit_constant_guess(films_with_lesions(data.select(split="train"), stage)),
        }
        write_card(out, {"stage": cls.name, "decisions": decisions, "licence": NO_LICENCE, "training": training})
        return out

    def films_with_truth(self, data: Manifest) -> Manifest:
        """Those with lesion boxes of a class that is not normal; see `stages.localize_figures.films_with_lesions`."""
        from cxr_pipeline.stages.localize_figures import films_with_lesions

        return films_with_lesions(data.relabelled(self.class_of), self)

    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """Hits, overlap and AP50 on the films of `data` with boxes; see `stages.localize_figures.evaluate`."""
        from cxr_pipeline.stages.localize_figures import evaluate

        return evaluate(self, data, out, chain)


def choose(table: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Threshold and minimum area of a fit's table, by the rule that `Localize.train` states."""
    top = max(table, key=lambda row: row["iou"])
    same = [row for row in table if row["threshold"] == top["threshold"] and row["iou"] >= top["iou"] - _WORTH]
    return top["threshold"], max(row["min_area"] for row in same)


def _best_ious(
    films: Manifest, stage: Localize, chain: Sequence[Stage], pairs: Sequence[tuple[float, float]]
) -> Iterator[tuple[float, list[float]]]:
    """A map's maximum, and the best IoU of a box with a lesion for each pair of threshold and minimum area, by film.

    The chain runs once over the films, and each film is dropped when it has been judged.
    """
    from cxr_pipeline.models.figures.boxes import best_iou
    from cxr_pipeline.stages.localize_figures import lesions_of

    for row, record in stream(films, chain, description="localize"):
        if not record.ok or record.maps is None:
            continue
        label, truths = lesions_of(films, row, stage)
        seen = focus(record, stage.classes.index(label))
        found = {threshold: spots(seen.heat, threshold) for threshold, _ in pairs}
        yield (
            seen.strongest,
            [
                best_iou([native_box(s, seen.frame) for s in keep(found[t], seen, a, stage.max_regions)], truths)
                for t, a in pairs
            ],
        )


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    return csv_text(columns, ({k: f"{v:.6g}" for k, v in row.items()} for row in rows))
