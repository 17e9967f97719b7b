"""Measure: how large lungs and heart are. Plain geometry on the masks that the segmentation found; no network."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Box, Frame, bounding_box
from cxr_pipeline.data.radiograph import RadiographError
from cxr_pipeline.models.store import CARD_FILE, LICENCE, NO_LICENCE, fingerprint, read_card, write_card
from cxr_pipeline.stages.base import Column, Record, Stage, Truth
from cxr_pipeline.stages.films import read_mask, stream
from cxr_pipeline.stages.lungs import split_lungs

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest

log = logging.getLogger("cxr.measure")

DECISIONS = {"version": 1}  # of the rules below: results of another version are never mixed with these
_SIDES = ("right", "left")  # the patient's own
NO_HEART = "no heart: the segmentation of these weights finds lungs alone"
NOT_FOUND = "no heart was found"
ONE_LUNG = "only one lung was found"
MAGNIFIED = "the film is {view}, which shows the heart too large: the ratio is for PA films"


class Measure(Stage):
    """The measuring stage: no weights, so that it runs on any that find lungs."""

    name: ClassVar[str] = "measure"
    summary: ClassVar[str] = "how large lungs and heart are: areas, heights, symmetry, cardiothoracic ratio"
    shared: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("mask",)
    uses: ClassVar[tuple[str, ...]] = ("heart_mask",)
    fills: ClassVar[tuple[str, ...]] = ("measures",)
    has_weights: ClassVar[bool] = False
    truth: ClassVar[Truth] = Truth("a lung mask", "column `mask`, and the heart's in `heart_mask`")
    headline_figures: ClassVar[tuple[str, ...]] = ("ctr_mae", "ctr_bias", "lung_area_error", "lung_ratio_mae")
    worst: ClassVar[tuple[str, str] | None] = ("agreement", "agreement of the lung areas")
    columns: ClassVar[tuple[Column, ...]] = (
        Column("ctr", "cardiothoracic ratio: greatest width of the heart by that of the lungs; empty without a heart"),
        Column("ctr_note", "why `ctr` is empty, or what to bear in mind with it"),
        *(Column(f"{side}_lung_px", f"area of the patient's {side} lung in pixels of the film") for side in _SIDES),
        *(Column(f"{side}_lung_mm2", "the same in square millimetres, where the file says so") for side in _SIDES),
        *(Column(f"{side}_lung_height_px", f"height of the patient's {side} lung in pixels") for side in _SIDES),
        *(Column(f"{side}_lung_height_mm", "the same in millimetres, where the file says so") for side in _SIDES),
        Column("lung_area_ratio", "area of the left lung by that of the right one; empty where one is missing"),
    )

    def __init__(self, card: Mapping[str, Any], fingerprint: str = "") -> None:
        self.card, self.fingerprint = card, fingerprint

    @classmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx", threads: int | None = None) -> Measure:
        """The stage; `bundle` may hold figures of it, or not exist. There is no network to run."""
        if (bundle / CARD_FILE).is_file():
            return cls(read_card(bundle), fingerprint(bundle))
        digest = hashlib.sha256(json.dumps(DECISIONS, sort_keys=True).encode()).hexdigest()[:16]
        return cls({"stage": cls.name, "decisions": DECISIONS, "licence": LICENCE}, digest)

    @classmethod
    def belongs(cls, decisions: Mapping[str, Mapping[str, Any]]) -> bool:
        """Where the segmentation finds the heart."""
        return bool(decisions.get("segment", {}).get("heart", False))

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Write the card: there is nothing to fit."""
        training = {"fitted": "nothing to fit", "n": 0, "split_hash": data.split_hash()}
        write_card(out, {"stage": cls.name, "decisions": DECISIONS, "licence": NO_LICENCE, "training": training})
        return out

    @property
    def detail(self) -> int | None:
        """It looks at the masks, at no pixel of the film."""
        return 1

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Fill in `measures`, what `columns` declares, from `mask`, and from `heart_mask` where there is one."""
        for record in records:
            if record.ok and record.mask is not None:
                film = record.film
                found = measured(record.mask, record.heart_mask, film.spacing)
                view = magnified(film.meta)
                if view and found["ctr"] is not None:
                    found["ctr_note"] = MAGNIFIED.format(view=view)
                record.measures = {**(record.measures or {}), **found}
        return list(records)

    def films_with_truth(self, data: Manifest) -> Manifest:
        """Those with a lung mask."""
        return data.select(has_mask=True)

    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """What is measured on the masks found, against the same on the true masks; means over films.

        - `ctr_mae`, `ctr_bias`: absolute and signed error of the cardiothoracic ratio, on films with a true heart mask
          whose heart was found;
        - `lung_area_error`: absolute error of both lungs' area, as a share of the true one;
        - `lung_ratio_mae`: absolute error of the left lung's area by the right one's.

        Films that cannot be judged are in no figure; `n_judged` tells how many are. A warning names how many films are
        not PA: their ratio is another thing than that of PA films.
        """
        from cxr_pipeline.models.figures.metrics import bootstrap_mean

        rows: list[dict[str, Any]] = []
        other_views = 0
        for row, record in stream(self.films_with_truth(data), [*chain, self], description="measure"):
            entry = {k: row[k] for k in ("image", "patient", "source")} | {"status": record.status}
            rows.append(entry)
            if not record.ok or record.measures is None:
                continue
            try:
                true = _truth(data, row, record)
            except RadiographError as error:
                log.warning("left out: %s", error)
                continue
            meta = record.film.meta
            other_views += bool(magnified(meta) or magnified({"view": row.get("view")}))
            entry |= _errors(record.measures, true)
        if other_views:
            log.warning(
                "warning: %d of %d films are AP or portable: they show the heart too large", other_views, len(rows)
            )
        patients = np.array([entry["patient"] for entry in rows])

        def mean(name: str) -> Any:
            known = np.array([entry.get(name) is not None for entry in rows], bool)
            values = np.array([entry[name] for entry, is_known in zip(rows, known, strict=True) if is_known], float)
            return bootstrap_mean(values, patients[known])

        figures = {
            "ctr_mae": mean("ctr_error"),
            "ctr_bias": mean("ctr_difference"),
            "lung_area_error": mean("lung_area_error"),
            "lung_ratio_mae": mean("lung_ratio_error"),
        }
        return {**figures, "n_not_pa": other_views, "films": rows}


# The patient's right and left lung, (h, w) bool of the film or of a part of it that holds both; one may be empty.
Lungs = tuple[np.ndarray, np.ndarray]


def measured(
    mask: np.ndarray, heart: np.ndarray | None, spacing: tuple[float, float] | None
) -> dict[str, float | str | None]:
    """All columns of a lung mask (H, W) uint8 0/1 and one of the heart; see `cardiothoracic` and `sizes`."""
    # Once, and of no more than the lungs take up: on a large film that takes longer than all that is measured.
    lungs = sides(mask, bounding_box(mask))
    return cardiothoracic(lungs, heart) | sizes(lungs, spacing)


def sizes(lungs: Lungs, spacing: tuple[float, float] | None) -> dict[str, float | str | None]:
    """Areas, heights and symmetry of the lungs, by column.

    Args:
        lungs: see `sides`.
        spacing: millimetres a pixel (row, column); None where unknown, and then what is in millimetres is None.
    """
    out: dict[str, float | str | None] = {}
    areas = []
    for side, lung in zip(_SIDES, lungs, strict=True):
        area, box = int(np.count_nonzero(lung)), bounding_box(lung)
        height = int(box.h) if box is not None else 0
        areas.append(area)
        out[f"{side}_lung_px"], out[f"{side}_lung_height_px"] = area, height
        out[f"{side}_lung_mm2"] = round(area * spacing[0] * spacing[1]) if spacing else None
        out[f"{side}_lung_height_mm"] = round(height * spacing[0], 1) if spacing else None
    out["lung_area_ratio"] = round(areas[1] / areas[0], 3) if min(areas) > 0 else None
    return out


def sides(mask: np.ndarray, part: Box | None = None) -> Lungs:
    """The patient's right and left lung of a mask (H, W) uint8 0/1; two (h, w) bool of a part, or of all; one may be
    empty."""
    x, y, w, h = (int(v) for v in part or (0, 0, mask.shape[1], mask.shape[0]))
    lungs = np.ascontiguousarray(mask[y : y + h, x : x + w])
    return split_lungs(lungs.view(bool), Frame(mask.shape, Box(x, y, w, h), lungs.shape))


def cardiothoracic(lungs: Lungs, heart: np.ndarray | None) -> dict[str, float | str | None]:
    """The cardiothoracic ratio, `ctr`, and in `ctr_note` why there is none.

    It is the greatest width of the heart by the greatest distance, in one row of the film, from the outer border of one
    lung to that of the other: the inner width of the chest, but for the pleura.

    Args:
        lungs: see `sides`.
        heart: its mask (H, W) uint8, 0 or 1; None where the segmentation does not look for it.
    """
    if heart is None:
        return {"ctr": None, "ctr_note": NO_HEART}
    box = bounding_box(heart)
    if box is None:
        return {"ctr": None, "ctr_note": NOT_FOUND}
    right, left = lungs
    both = right.any(axis=1) & left.any(axis=1)
    if not both.any():
        return {"ctr": None, "ctr_note": ONE_LUNG}
    either = right | left
    turned = cv2.flip(either.view(np.uint8), 1).view(bool)  # numpy finds the first of a row fast, the last slowly
    outer = either.shape[1] - np.argmax(turned, axis=1) - np.argmax(either, axis=1)
    return {"ctr": round(float(box.w / outer[both].max()), 3), "ctr_note": None}


def magnified(meta: Mapping[str, Any]) -> str:
    """What header or manifest say of a film that shows the heart too large, "AP" or "portable"; else empty."""
    view = str(meta.get("view") or "").strip().upper()
    if meta.get("portable") or "PORTABLE" in view:
        return "portable"
    return "AP" if view.startswith("AP") else ""


def _truth(data: Manifest, row: Mapping[str, Any], record: Record) -> dict[str, float | str | None]:
    """The measures of a film's true masks.

    Raises:
        RadiographError: a mask cannot be read.
    """
    from cxr_pipeline.data.filmmasks import film_mask

    lungs = film_mask(data, row, record.size)
    heart = read_mask(data.path(row["heart_mask"]), record.size) if row.get("heart_mask") else None
    return measured(lungs, heart, record.film.spacing)


def _errors(found: Mapping[str, Any], true: Mapping[str, Any]) -> dict[str, Any]:
    """What `films.csv` shows of a film: both ratios, and the errors; None where one of the two is unknown."""

    def difference(name: str) -> float | None:
        return None if found[name] is None or true[name] is None else found[name] - true[name]

    areas = [sum(values[f"{side}_lung_px"] for side in _SIDES) for values in (found, true)]
    ctr, ratio = difference("ctr"), difference("lung_area_ratio")
    area = abs(areas[0] - areas[1]) / areas[1] if areas[1] else None
    return {
        "ctr": found["ctr"],
        "true_ctr": true["ctr"],
        "ctr_difference": ctr,
        "ctr_error": abs(ctr) if ctr is not None else None,
        "lung_area_error": area,
        "lung_ratio_error": abs(ratio) if ratio is not None else None,
        "agreement": max(0.0, 1.0 - area) if area is not None else None,
    }
