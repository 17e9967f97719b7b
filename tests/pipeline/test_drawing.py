"""The overlay, as far as a program can look at it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.results import drawing, lettering
from cxr_pipeline.results.drawing import LONGEST, SHORTEST, Made, layout, overlay
from cxr_pipeline.stages.base import Record, Region
from tests.pipeline.fake_chain import chain, film


def judged(size, last_stage="localize", lungs=0.35):
    pixels = film(0, size=size, lungs=lungs).astype(np.float32) / 255
    records = [Record(Radiograph(pixels, "a", "a.png", pixels.shape))]
    for stage in chain(last_stage):
        records = stage.run(records)
    return records[0]


@pytest.mark.parametrize("last_stage", ["segment", "classify", "localize"])
@pytest.mark.parametrize("size", [(40, 60), (300, 200), (1500, 400), (400, 1500), (2000, 2100), (33, 900)])
def test_overlays_of_any_size_and_stage_fit(size, last_stage):
    image = overlay(judged(size, last_stage))
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert SHORTEST <= max(image.shape[:2]) <= LONGEST + 1
    height, width, _ = layout(*size)
    assert image.shape[1] == width
    assert width / height == pytest.approx(size[1] / size[0], rel=0.05)


def test_the_box_lies_where_the_region_is():
    one = judged((600, 800))
    before = overlay(one)
    one.regions = [*one.regions, Region(Box(400, 300, 200, 100), 0.9, "TB", "left", "lower")]
    changed = np.argwhere((overlay(one) != before).any(axis=2))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert abs(left - 400) <= 3
    assert abs(right - 599) <= 3
    assert abs(bottom - 399) <= 3
    assert top < 300  # its caption stands above it


def test_captions_at_the_border_stay_on_the_film():
    one = judged((600, 800))
    one.heatmap = None
    plain = overlay(judged((600, 800), "classify"))
    for box in (Box(0, 0, 30, 30), Box(790, 590, 10, 10), Box(0, 0, 800, 600)):
        one.regions = [Region(box, 0.9, "NTB", "right", "middle")]
        drawn = overlay(one)
        assert drawn.shape == plain.shape
        assert np.count_nonzero((drawn[:600] == (0, 220, 255)).all(axis=2)) > 50  # box and text are there


def test_faint_evidence_is_drawn_faintly():
    sure, unsure = judged((200, 200)), judged((200, 200))
    sure.regions, unsure.regions = [], []
    sure.tb_score, unsure.tb_score = 95.0, 2.0
    bare = judged((200, 200), "classify")
    film_ = overlay(bare)[:480].astype(int)
    difference = [np.abs(overlay(one)[:480].astype(int) - film_).mean() for one in (sure, unsure)]
    assert difference[0] > 10 * difference[1]


def test_a_refused_film_and_odd_text_can_be_drawn():
    one = judged((100, 120)).refuse("no_lungs: Überlänge " + "x" * 500)
    assert overlay(one).shape[2] == 3


FINDINGS = {"Mass": 0.2, "Effusion": 0.6, "Pleural_Thickening": 0.3, "Fibrosis": 0.1, "Infiltration": 0.25}


def captions(monkeypatch, record, made=None):
    """The texts that the overlay of a record draws."""
    drawn = []
    monkeypatch.setattr(drawing.lettering, "write", lambda canvas, text, *_: drawn.append(text))
    overlay(record, made)
    return drawn


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (1000, "Effusion, Pleural_Thickening, Infiltration, Mass, Fibrosis"),
        (500, "Effusion, Pleural_Thickening +3"),
        (400, "Effusion +4"),
    ],
)
def test_several_labels_are_shortened_and_not_cut(monkeypatch, width, expected):
    one = judged((1000, width), "classify")
    one.tb_score, one.probabilities, one.label = None, FINDINGS, "|".join(FINDINGS)
    assert expected in captions(monkeypatch, one)


def test_the_caption_names_the_label_of_the_heat_where_it_is_another(monkeypatch):
    one = judged((1000, 1000), "classify")
    one.tb_score, one.probabilities, one.label, one.heatmap_label = None, FINDINGS, "Effusion|Mass", "Mass"
    assert "Effusion, Mass; heat: Mass" in captions(monkeypatch, one)
    one.label, one.heatmap_label = "", "Effusion"
    assert "none of the findings; heat: Effusion" in captions(monkeypatch, one)


def test_a_long_reason_ends_in_points(monkeypatch):
    one = judged((100, 120)).refuse("no_lungs: " + "x" * 500)
    assert any(text.endswith("xx..") for text in captions(monkeypatch, one))


def test_the_heat_is_as_strong_as_its_own_label_is_probable():
    sure, unsure = judged((200, 200)), judged((200, 200))
    for one, label in ((sure, "Effusion"), (unsure, "Fibrosis")):
        one.regions, one.tb_score, one.probabilities, one.label = [], None, FINDINGS, "Effusion"
        one.heatmap_label = label
    bare = judged((200, 200), "classify")
    film_ = overlay(bare)[:480].astype(int)
    difference = [np.abs(overlay(one)[:480].astype(int) - film_).mean() for one in (sure, unsure)]
    assert difference[0] > 3 * difference[1] > 0


def test_the_strip_says_what_made_it_and_what_the_colours_mean(monkeypatch):
    one = judged((900, 900))
    made = Made.of("ward\\\\a film.png", {"weights": "/models/tb/", "date": "2026-01-31"}, "1.2.3")
    drawn = captions(monkeypatch, one, made)
    assert "a film.png · 2026-01-31 · weights tb · cxr-pipeline 1.2.3" in drawn
    assert {"R", "L", "weak", "strong", "heat TB", "research use only"} <= set(drawn)
    assert any(text.startswith("1: TB right upper 0.") for text in drawn)
    bare = captions(monkeypatch, judged((900, 900), "classify"), made)
    assert "weak" not in bare  # no heat, no scale


def test_a_narrow_strip_keeps_the_file_name_and_the_notice(monkeypatch):
    one = judged((1500, 400))
    drawn = captions(monkeypatch, one, Made.of("a.png", {"weights": "tb", "date": "2026-01-31"}, "1.2.3"))
    assert any(text.startswith("a.png") for text in drawn)
    assert "research use only" in drawn


def test_a_zero_is_no_stroked_letter():
    """A slash through a zero, as OpenCV's letters have it, can be read as another letter."""
    canvas = np.zeros((60, 60, 3), np.uint8)
    lettering.write(canvas, "0", 10, 45, 40, (255, 255, 255))
    rows, columns = np.nonzero(canvas[..., 0] > 127)
    middle = canvas[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2, 0]
    assert middle == 0
    assert lettering.width("00", 40) == pytest.approx(2 * lettering.width("0", 40), abs=2)


def test_letters_that_the_font_lacks_give_english():
    assert lettering.readable("Скрининг, dépistage, não")
    assert not lettering.readable("हिन्दी")
    assert Made(language="hi").say.language == "en"
    assert Made(language="ru").say.language == "ru"


def test_a_file_name_that_is_no_text_can_be_drawn():
    overlay(judged((300, 300)), Made.of('in/\udcff, "é"\n\x1b[31m.png', {}, "1"))


def test_heat_is_drawn_alike_where_its_box_is_and_elsewhere():
    """Only the box around the heat is blended: the same to the bit as all of the film."""
    draw = np.random.default_rng(0)
    film = draw.integers(0, 256, (90, 110, 3), np.uint8)
    heat = np.zeros((90, 110), np.float32)
    heat[20:50, 30:80] = draw.random((30, 50), np.float32)
    opacity = (drawing.HEAT * 0.7 * np.clip((heat - drawing.FAINT) / (1 - drawing.FAINT), 0, 1)).astype(np.float32)
    colours = cv2.applyColorMap(cv2.convertScaleAbs(heat, alpha=255), cv2.COLORMAP_TURBO)
    wanted = cv2.blendLinear(film, colours, 1 - opacity, opacity)
    drawn = film.copy()
    drawing._draw_heat(drawn, heat, 0.7)
    np.testing.assert_array_equal(drawn, wanted)
    drawing._draw_heat(drawn, np.zeros_like(heat), 0.7)
    np.testing.assert_array_equal(drawn, wanted)
