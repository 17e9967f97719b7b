"""Pictures that are not one film: told from films with plates, tints and marks."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.content import findings
from cxr_pipeline.data.radiograph import read
from cxr_pipeline.data.seams import seam
from cxr_pipeline.data.synthetic import make_film

FILM = make_film(3, size=(240, 240)).pixels
EIGHT = np.round(FILM * 255).astype(np.uint8)
RGB = np.dstack([EIGHT] * 3)


def codes(picture: np.ndarray) -> list[str]:
    return [code for code, _ in findings(FILM, picture)[0]]


@pytest.mark.parametrize("table", [cv2.COLORMAP_JET, cv2.COLORMAP_VIRIDIS, cv2.COLORMAP_HOT, cv2.COLORMAP_INFERNO])
def test_heat_maps_are_found_over_a_film_and_in_place_of_it(table):
    heat = cv2.applyColorMap(EIGHT, table)[..., ::-1]
    assert codes(heat) == ["colour_map"]
    blob = cv2.GaussianBlur(np.pad(np.full((60, 60), 255, np.uint8), 90), (0, 0), 30)
    over = cv2.applyColorMap(blob, table)[..., ::-1]
    assert codes((RGB * 0.6 + over * 0.4).astype(np.uint8)) == ["colour_map"]


def test_tints_plates_and_marks_are_no_heat_maps():
    sepia = (np.dstack([FILM**0.8, FILM, FILM**1.3]) * 255).astype(np.uint8)
    assert codes(sepia) == []
    assert "tinted" in findings(FILM, sepia)[1][0]
    plate = RGB.copy()
    plate[:20, :80] = 20, 60, 200
    assert codes(plate) == []
    assert "plate" in findings(FILM, plate)[1][0]
    marked = cv2.rectangle(RGB.copy(), (60, 60), (110, 120), (255, 0, 0), 1)
    assert codes(marked) == []


@pytest.mark.parametrize("gap", [0.0, 1.0])
@pytest.mark.parametrize("level", [False, True])
def test_two_films_with_a_gap_are_found(tmp_path, gap, level):
    other = make_film(8, size=(240, 240)).pixels
    pair = np.hstack([FILM, np.full((240, 8), gap, np.float32), other])
    pair = np.ascontiguousarray(pair.T) if level else pair
    assert seam(pair) == ("level" if level else "upright")
    cv2.imencode(".png", np.round(pair * 255).astype(np.uint8))[1].tofile(tmp_path / "a.png")
    assert [code for code, _ in read(tmp_path / "a.png").meta["against"]] == ["several_films"]


@pytest.mark.parametrize("seed", range(6))
def test_one_film_has_no_seam(seed):
    assert seam(make_film(seed, size=(220, 260)).pixels) is None
