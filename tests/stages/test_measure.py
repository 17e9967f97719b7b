"""Measures of lungs and heart, on masks whose sizes are known."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr_pipeline.data.manifest import Manifest
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.stages import measure
from cxr_pipeline.stages.base import Record, Stage
from cxr_pipeline.stages.measure import MAGNIFIED, NO_HEART, NOT_FOUND, ONE_LUNG, Measure, cardiothoracic, sides, sizes

SIZE = (200, 240)


def box_mask(*boxes, size=SIZE):
    """(H, W) uint8, 1 in the boxes x, y, w, h."""
    mask = np.zeros(size, np.uint8)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = 1
    return mask


RIGHT, LEFT, HEART = (20, 40, 60, 120), (150, 50, 50, 100), (90, 110, 72, 50)
LUNGS = box_mask(RIGHT, LEFT)


def film(meta=None, spacing=None):
    return Radiograph(np.zeros(SIZE, np.float32), "film", "film.png", SIZE, spacing, "dicom", 8, meta or {})


def measured(heart=None, mask=LUNGS, **about):
    record = Record(film(**about), mask=mask, heart_mask=heart)
    (done,) = Measure.load(__import__("pathlib").Path("nowhere")).run([record])
    return done.measures


def test_areas_and_heights_are_of_the_patients_own_sides():
    found = sizes(sides(LUNGS), None)
    assert (found["right_lung_px"], found["left_lung_px"]) == (60 * 120, 50 * 100)
    assert (found["right_lung_height_px"], found["left_lung_height_px"]) == (120, 100)
    assert found["lung_area_ratio"] == pytest.approx(5000 / 7200, abs=1e-3)
    assert found["right_lung_mm2"] is None


def test_millimetres_take_rows_and_columns_apart():
    found = sizes(sides(LUNGS), (0.5, 0.25))
    assert found["right_lung_mm2"] == round(60 * 120 * 0.5 * 0.25)
    assert found["left_lung_height_mm"] == 50.0


def test_the_ratio_is_heart_by_greatest_width_within_one_row():
    found = cardiothoracic(sides(LUNGS), box_mask(HEART))
    assert found == {"ctr": round(72 / 180, 3), "ctr_note": None}  # from 20 to 200
    # A spur of the right lung where the left one has ended does not widen the chest.
    spur = LUNGS | box_mask((0, 155, 30, 5))
    assert cardiothoracic(sides(spur), box_mask(HEART))["ctr"] == found["ctr"]


@pytest.mark.parametrize(
    ("mask", "heart", "why"),
    [
        (LUNGS, None, NO_HEART),
        (LUNGS, np.zeros(SIZE, np.uint8), NOT_FOUND),
        (box_mask(RIGHT), box_mask(HEART), ONE_LUNG),
    ],
)
def test_without_a_ratio_there_is_a_word(mask, heart, why):
    assert cardiothoracic(sides(mask), heart) == {"ctr": None, "ctr_note": why}


@pytest.mark.parametrize(
    ("meta", "view"), [({"view": "AP"}, "AP"), ({"portable": True, "view": ""}, "portable"), ({"view": "PA"}, None)]
)
def test_films_that_magnify_the_heart_are_named(meta, view):
    found = measured(box_mask(HEART), meta=meta)
    assert found["ctr"] == 0.4
    assert found["ctr_note"] == (MAGNIFIED.format(view=view) if view else None)


def test_one_lung_has_no_symmetry():
    found = measured(mask=box_mask(RIGHT))
    assert (found["left_lung_px"], found["lung_area_ratio"]) == (0, None)


class Fixed(Stage):
    """Finds the masks that a test plants."""

    name, fingerprint = "segment", "fixed"

    def __init__(self, mask, heart):
        self.mask, self.heart = mask, heart

    @classmethod
    def load(cls, bundle, *, runtime="onnx", threads=None):
        raise NotImplementedError

    @classmethod
    def train(cls, data, config, out, chain=()):
        raise NotImplementedError

    def evaluate(self, data, out, chain=()):
        raise NotImplementedError

    def run(self, records):
        for record in records:
            record.mask, record.heart_mask = self.mask, self.heart
        return list(records)


def test_the_error_of_the_ratio_is_against_the_true_masks(tmp_path, caplog):
    grey = np.random.default_rng(0).integers(0, 255, SIZE).astype(np.uint8)
    rows = []
    for number in range(4):
        for name, image in (("film", grey), ("lungs", LUNGS * 255), ("heart", box_mask(HEART) * 255)):
            cv2.imwrite(str(tmp_path / f"{name}{number}.png"), image)
        rows.append(
            {"image": f"film{number}.png", "mask": f"lungs{number}.png", "label": "", "patient": f"p{number}"}
            | {"source": "drawn", "split": "test", "findings": "", "view": "AP" if number == 3 else "PA"}
            | {"heart_mask": f"heart{number}.png" if number < 3 else ""}
        )
    data = Manifest(pd.DataFrame(rows), tmp_path, pd.DataFrame(columns=["image", "finding", "x", "y", "w", "h"]))
    wider = box_mask((90, 110, 90, 50))
    measure = Measure.load(tmp_path / "none")
    with caplog.at_level(logging.WARNING):
        figures = measure.evaluate(data, tmp_path, [Fixed(LUNGS, wider)])
    assert figures["ctr_mae"].value == pytest.approx(18 / 180, abs=1e-3)
    assert figures["ctr_bias"].value == pytest.approx(18 / 180, abs=1e-3)
    assert figures["ctr_mae"].n == 3
    assert figures["lung_area_error"].value == 0
    assert figures["n_not_pa"] == 1
    assert "1 of 4 films are AP or portable" in caplog.text


def test_the_lungs_are_told_apart_once(monkeypatch):
    calls = []
    monkeypatch.setattr(measure, "sides", lambda *mask: calls.append(1) or sides(*mask))
    assert measured(heart=box_mask(HEART))["ctr"] is not None
    assert len(calls) == 1
