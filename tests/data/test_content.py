"""Pictures that are not one film: told from films with plates, tints and marks."""

from __future__ import annotations

import csv

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


def one_hue(dark, *, turned=False):
    """A colour map from white over a full hue to a dark one, applied to the film."""
    place = FILM[..., None] if not turned else 1 - FILM[..., None]
    stops = np.array([(1.0, 1.0, 1.0), np.minimum(1, 0.25 + np.array(dark) * 1.2), dark])
    low, high = stops[0] + (stops[1] - stops[0]) * place * 2, stops[1] + (stops[2] - stops[1]) * (place * 2 - 1)
    return np.round(np.where(place < 0.5, low, high) * 255).astype(np.uint8)


@pytest.mark.parametrize("dark", [(0.5, 0.0, 0.05), (0.03, 0.19, 0.42), (0.25, 0.0, 0.49)])
@pytest.mark.parametrize("turned", [False, True])
def test_maps_of_one_hue_are_no_tints(dark, turned):
    assert codes(one_hue(dark, turned=turned)) == ["colour_map"]


@pytest.mark.parametrize("base", [(150, 180, 225), (90, 130, 220), (190, 205, 220), (140, 170, 255)])
@pytest.mark.parametrize("kind", ["thin", "fog", "dense", "noise"])
def test_film_base_is_a_tint(base, kind):
    grey, colour = FILM[..., None], np.array(base) / 255
    noise = np.random.default_rng(0).normal(0, 0.02, RGB.shape)
    made = {
        "thin": grey * colour,
        "fog": colour * (0.05 + 0.95 * grey),
        "dense": colour * 10 ** (-2.2 * (1 - grey)),
        "noise": grey * colour + noise,
    }[kind]
    assert codes(np.round(np.clip(made, 0, 1) * 255).astype(np.uint8)) == []


def test_bone_is_a_tint():
    bone = cv2.applyColorMap(EIGHT, cv2.COLORMAP_BONE)[..., ::-1]
    assert codes(bone) == []
    assert "tinted" in findings(FILM, bone)[1][0]


@pytest.mark.parametrize("gap", [0.0, 1.0])
@pytest.mark.parametrize("level", [False, True])
def test_two_films_with_a_gap_are_found(tmp_path, gap, level):
    other = make_film(8, size=(240, 240)).pixels
    pair = np.hstack([FILM, np.full((240, 8), gap, np.float32), other])
    pair = np.ascontiguousarray(pair.T) if level else pair
    assert seam(pair) == ("level" if level else "upright")
    cv2.imencode(".png", np.round(pair * 255).astype(np.uint8))[1].tofile(tmp_path / "a.png")
    assert [code for code, _ in read(tmp_path / "a.png").meta["against"]] == ["several_films"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", [False, True])
def test_two_films_that_touch_are_found(seed, level):
    pair = np.hstack([make_film(2 * seed + k, size=(240, 210)).pixels for k in (0, 1)])
    assert seam(np.ascontiguousarray(pair.T) if level else pair) == ("level" if level else "upright")


def test_a_plate_an_edge_and_a_shutter_are_no_seams():
    plate = FILM.copy()
    plate[:60, 100:160] = 1
    assert seam(plate) is None
    boxed = cv2.rectangle(FILM.copy(), (40, 90), (105, 155), 1.0, 1)
    assert seam(boxed) is None
    shutter = FILM.copy()
    shutter[:, :24] = shutter[:, -24:] = 0
    assert seam(shutter) is None


@pytest.mark.real
def test_touching_films_of_real_hospitals_are_found_and_single_ones_are_not(real_data):
    rows = [row for row in csv.DictReader((real_data / "manifest.csv").open()) if row["split"] == "val"]
    rows = [row for row in rows if row["source"] != "kermany"][::3]
    films = [cv2.imread(str(real_data / row["image"]), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255 for row in rows]
    assert sum(seam(film) is not None for film in films) <= 0.005 * len(films)
    found = 0
    for one, other in zip(films[:100], films[100:200], strict=True):
        high = min(len(one), len(other))
        pair = [cv2.resize(film, (round(film.shape[1] * high / len(film)), high)) for film in (one, other)]
        found += seam(np.hstack(pair)) is not None
    assert found >= 90


@pytest.mark.parametrize("seed", range(6))
def test_one_film_has_no_seam(seed):
    assert seam(make_film(seed, size=(220, 260)).pixels) is None
