"""Localization on a fake chain: the box finds the planted spot, in native pixels, on the right side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_pipeline.data.geometry import Frame, bounding_box
from cxr_pipeline.models.store import write_card
from cxr_pipeline.stages.base import REFUSED
from cxr_pipeline.stages.localize import Localize, focus, hottest, split_lungs
from tests.stages.fake_chain import (
    DECISIONS,
    HALF,
    LUNGS,
    chained,
    contains,
    film,
    localize,
    lung_mask,
)

# --- running -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "side", "zone"),
    [
        (0.3, 0.25, "right", "upper"),
        (0.3, 0.50, "right", "middle"),
        (0.3, 0.75, "right", "lower"),
        (0.7, 0.25, "left", "upper"),
        (0.7, 0.50, "left", "middle"),
        (0.7, 0.75, "left", "lower"),
    ],
)
def test_box_side_and_zone_of_a_planted_spot(x, y, side, zone):
    record = localize().run([chained([(x, y, 0.04, 3.0)])])[0]
    (region,) = record.regions
    assert contains(region.box, x * 280, y * 300)
    assert region.box.w < 0.25 * 280
    assert (region.side, region.zone, region.label) == (side, zone, "TB")
    assert region.score == pytest.approx(0.8, abs=1e-6)


def test_next_to_no_heat_makes_no_box():
    """The same map, five times stronger, makes one: the floor is of the map before it is scaled to its maximum."""
    for strength, boxes in ((1.0, 0), (5.0, 1)):
        stage = Localize({"decisions": DECISIONS | {"floor": 2.0}})
        record = stage.run([chained([(0.3, 0.3, 0.04, strength)])])[0]
        assert len(record.regions) == boxes
        assert record.heatmap.max() > 0.9


def test_heatmap_is_native_and_peaks_at_the_spot():
    record = localize().run([chained([(0.3, 0.3, 0.05, 7.0)], size=(701, 530))])[0]
    assert record.heatmap.shape == (701, 530)
    assert record.heatmap.dtype == np.float32
    assert record.heatmap.min() >= 0
    assert 0.97 < record.heatmap.max() <= 1
    y, x = np.unravel_index(record.heatmap.argmax(), record.heatmap.shape)
    assert np.hypot(x - 0.3 * 530, y - 0.3 * 701) < 0.02 * 701


def test_normal_film_gets_no_regions_but_the_positive_heatmap():
    spots = {"TB": [(0.3, 0.3, 0.05, 1.0)], "NORM": [(0.7, 0.7, 0.05, 1.0)]}
    record = localize().run([chained(spots, label="NORM")])[0]
    assert record.regions == []
    y, x = np.unravel_index(record.heatmap.argmax(), record.heatmap.shape)
    assert x < 140
    assert y < 150


def test_the_predicted_class_is_the_one_shown():
    record = localize().run([chained({"TB": [(0.3, 0.3, 0.05, 1.0)], "NTB": [(0.7, 0.7, 0.05, 1.0)]}, label="NTB")])[0]
    (region,) = record.regions
    assert (region.label, region.side, region.zone) == ("NTB", "left", "lower")


def test_without_a_normal_class_every_label_has_regions():
    record = localize(normal=None).run([chained({"NORM": [(0.3, 0.3, 0.05, 1.0)]}, label="NORM")])[0]
    assert [region.label for region in record.regions] == ["NORM"]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_empty_map_gives_nothing(value):
    record = chained([])
    record.maps[...] = value
    record = localize().run([record])[0]
    assert record.regions == []
    assert record.heatmap.shape == (300, 280)
    assert not record.heatmap.any()


def test_evidence_away_from_the_lungs_is_cut_but_pleura_stays():
    record = chained([(0.5, 0.86, 0.03, 10.0), (0.3, 0.5, 0.03, 1.0), (0.152, 0.5, 0.02, 1.0)])
    record = localize(threshold=0.6).run([record])[0]
    assert len(record.regions) == 2
    assert all(region.side == "right" for region in record.regions)
    assert any(contains(region.box, 0.152 * 280, 150) for region in record.regions)


def test_regions_are_sorted_capped_and_freed_of_specks():
    planted = [(0.3, 0.3, 0.03, 1.0), (0.7, 0.3, 0.06, 0.8), (0.3, 0.65, 0.03, 0.9), (0.7, 0.7, 0.06, 0.7)]
    every = localize().run([chained(planted)])[0].regions
    assert [region.score for region in every] == pytest.approx([0.8, 0.72, 0.64, 0.56], abs=0.02)
    assert [region.side for region in every] == ["right", "right", "left", "left"]
    assert localize(max_regions=2).run([chained(planted)])[0].regions == every[:2]
    assert [r.side for r in localize(min_area=0.01).run([chained(planted)])[0].regions] == ["left", "left"]


def test_scores_are_within_0_and_1_and_diagonal_neighbours_are_one_region():
    record = chained([], cells=224)
    record.maps[60:70, 40:50, 0] = 5.0
    record.maps[70:80, 50:60, 0] = 4.0
    (region,) = localize().run([record])[0].regions
    assert 0 <= region.score <= 1


def test_films_without_maps_and_failed_ones_pass_untouched():
    waiting, refused = film(), film().refuse("no_lungs: none")
    assert localize().run([waiting, refused]) == [waiting, refused]
    assert waiting.regions is None
    assert refused.status == REFUSED
    assert refused.heatmap is None
    assert localize().run([]) == []


def test_batch_equals_single_runs():
    plans = [([(0.3, 0.3, 0.05, 1.0)], "TB"), ([(0.7, 0.6, 0.1, 2.0), (0.3, 0.3, 0.1, 1.5)], "TB"), ([], "NORM")]
    sizes = [(300, 280), (150, 410), (512, 512)]

    def make():
        return [chained(spots, label, size) for (spots, label), size in zip(plans, sizes, strict=True)]

    together = localize().run(make())
    alone = [localize().run([record])[0] for record in make()]
    for a, b in zip(together, alone, strict=True):
        assert a.regions == b.regions
        assert np.array_equal(a.heatmap, b.heatmap)


@given(
    height=st.integers(64, 1500),
    width=st.integers(64, 1500),
    side=st.sampled_from(sorted(LUNGS)),
    radius=st.floats(0, 0.9),
    angle=st.floats(0, 2 * np.pi),
    spread=st.floats(0.02, 0.2),
    cells=st.sampled_from([7, 14, 28]),
    grid=st.sampled_from([96, 224]),
)
@settings(max_examples=80, deadline=None)
def test_a_box_holds_the_maximum_and_lies_in_the_film(height, width, side, radius, angle, spread, cells, grid):
    cx, cy = LUNGS[side]
    x, y = cx + HALF[0] * radius * np.cos(angle), cy + HALF[1] * radius * np.sin(angle)
    before = chained([(x, y, spread, 1.0)], size=(height, width), cells=cells, grid=grid)
    record = localize().run([before])[0]
    assert record.regions
    best = record.regions[0]
    row, column = np.unravel_index(record.heatmap.argmax(), record.heatmap.shape)
    assert contains(best.box, column + 0.5, row + 0.5)
    assert contains(best.box, *hottest(focus(record, 0)))
    # a planted spot is found up to the coarseness of the map
    reach = 1.0 / cells
    assert contains(best.box.grown(0.01), x * width, y * height) or (
        abs(column / width - x) < reach and abs(row / height - y) < reach
    )
    for region in record.regions:
        assert min(region.box) >= 0
        assert region.box.x + region.box.w <= width
        assert region.box.y + region.box.h <= height
        assert region.box.area > 0
        assert 0 < region.score <= 1
        assert region.side in LUNGS


@given(x=st.floats(0.2, 0.4), y=st.floats(0.2, 0.8), width=st.integers(100, 600))
@settings(max_examples=30, deadline=None)
def test_a_flipped_map_flips_the_side(x, y, width):
    record = chained([(x, y, 0.05, 1.0)], size=(400, 2 * width))
    mirrored = chained([(x, y, 0.05, 1.0)], size=(400, 2 * width))
    mirrored.maps = mirrored.maps[:, ::-1].copy()
    (here,) = localize().run([record])[0].regions
    (flipped,) = localize().run([mirrored])[0].regions
    assert (here.side, flipped.side) == ("right", "left")
    assert here.zone == flipped.zone
    assert flipped.box.x + flipped.box.w == pytest.approx(2 * width - here.box.x, abs=2 + 0.02 * width)


# --- lungs ---------------------------------------------------------------------------------------------------------


def lungs_of(mask):
    frame = Frame.crop(mask.shape, bounding_box(mask), 128)
    return split_lungs(frame.to_grid(mask.astype(np.float32)) >= 0.5, frame), frame


def test_touching_lungs_are_cut_at_the_midline():
    mask = lung_mask((300, 300))
    mask[140:160, 60:240] = 1
    (right, left), _ = lungs_of(mask)
    assert right.any()
    assert left.any()
    assert np.nonzero(right)[1].max() < np.nonzero(left)[1].min()
    assert abs(int(right.sum()) - int(left.sum())) < 0.02 * right.sum()


@pytest.mark.parametrize("side", sorted(LUNGS))
def test_a_lone_lung_keeps_its_side(side):
    (right, left), _ = lungs_of(lung_mask((300, 300), [side]))
    assert (right.any(), left.any()) == (side == "right", side == "left")


def test_a_lung_in_two_pieces_is_not_two_lungs():
    mask = lung_mask((300, 300), ["left"])
    mask[140:160] = 0
    (right, left), _ = lungs_of(mask)
    assert not right.any()
    assert left.any()


def test_a_broken_card_is_told(tmp_path):
    write_card(tmp_path, {"decisions": DECISIONS})
    assert Localize.load(tmp_path).max_regions == 5
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ValueError, match=r"card\.json"):
        Localize.load(tmp_path)


def test_a_film_of_3000_pixels_keeps_its_geometry():
    record = localize().run([chained([(0.7, 0.25, 0.04, 1.0)], size=(3000, 2500), cells=14)])[0]
    (region,) = record.regions
    assert contains(region.box, 0.7 * 2500, 0.25 * 3000)
    assert record.heatmap.shape == (3000, 2500)
