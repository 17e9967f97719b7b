"""Native -> model -> native geometry: nothing may shift, whatever the film's size and aspect."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_pipeline.data.geometry import Box, Frame, bounding_box, coarse, resize, squared

sides = st.integers(40, 900)


@given(height=sides, width=sides, grid=st.sampled_from([64, 224, 256]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_mask_comes_back_where_it_was(height, width, grid, data):
    mask = np.zeros((height, width), np.float32)
    x0, x1 = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y0, y1 = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    mask[y0:y1, x0:x1] = 1
    frame = Frame.letterbox((height, width), grid)
    back = frame.to_native(frame.to_grid(mask)) > 0.5
    pixel = max(height, width) / grid  # one grid pixel, in native ones
    outer = np.zeros_like(mask)
    reach = int(np.ceil(pixel))
    outer[max(0, y0 - reach) : y1 + reach, max(0, x0 - reach) : x1 + reach] = 1
    inner = mask[y0 + reach : y1 - reach, x0 + reach : x1 - reach] if min(y1 - y0, x1 - x0) > 2 * reach else None
    assert not (back & (outer == 0)).any()
    if inner is not None:
        assert back[y0 + reach : y1 - reach, x0 + reach : x1 - reach].all()


@given(height=sides, width=sides, grid=st.sampled_from([96, 224]))
@settings(max_examples=40, deadline=None)
def test_round_trip_has_no_systematic_shift(height, width, grid):
    # the centre of mass of a smooth blob in the middle of a quadrant must not move by half a grid pixel
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    cy, cx, spread = height * 0.4, width * 0.6, min(height, width) * 0.1 + 2
    blob = np.exp(-((yy - cy) ** 2 + (xx - cx) ** 2) / (2 * spread**2)).astype(np.float32)
    frame = Frame.letterbox((height, width), grid)
    back = frame.to_native(frame.to_grid(blob))
    shift = [((g * back).sum() / back.sum()) - ((g * blob).sum() / blob.sum()) for g in (yy, xx)]
    assert np.abs(shift).max() < 0.25 * max(1.0, max(height, width) / grid)


@given(
    height=sides,
    width=sides,
    box=st.tuples(st.integers(-50, 800), st.integers(-50, 800), st.integers(8, 700), st.integers(8, 700)),
    inner=st.tuples(st.floats(0, 200), st.floats(0, 200), st.floats(1, 50), st.floats(1, 50)),
)
@settings(max_examples=80, deadline=None)
def test_boxes_go_to_the_grid_and_back(height, width, box, inner):
    frame = Frame.crop((height, width), Box(*box), 224)
    assert frame.box_to_grid(frame.box_to_native(Box(*inner))) == pytest.approx(inner, abs=1e-6)


def test_crop_reaching_outside_is_padded_with_zero_and_cut_on_the_way_back():
    film = np.ones((50, 80), np.float32)
    frame = Frame.crop(film.shape, Box(-20, -10, 60, 60), 60)
    grid = frame.to_grid(film)
    assert grid[:9].max() == 0
    assert grid[:, :19].max() == 0
    assert grid[12:, 22:].min() == 1
    back = frame.to_native(np.ones((60, 60), np.float32))
    assert back.shape == film.shape
    assert back[:50, :40].min() == 1
    assert back[:, 40:].max() == 0


def test_identity_where_sizes_agree():
    film = np.random.default_rng(0).random((256, 256)).astype(np.float32)
    frame = Frame.letterbox(film.shape, 256)
    assert np.array_equal(frame.to_grid(film), film)
    assert np.array_equal(frame.to_native(film), film)


def test_shrinking_does_not_alias():
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (1024, 512))  # one-pixel stripes
    assert np.abs(Frame.letterbox(stripes.shape, 256).to_grid(stripes) - 0.5).max() < 1e-3


def test_wrong_shapes_are_named():
    frame = Frame.letterbox((100, 120), 64)
    with pytest.raises(ValueError, match=r"\(100, 120\)"):
        frame.to_grid(np.zeros((90, 120), np.float32))
    with pytest.raises(ValueError, match=r"\(64, 64\)"):
        frame.to_native(np.zeros((65, 64), np.float32))


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        (Box(0, 0, 10, 10), Box(0, 0, 10, 10), 1.0),
        (Box(0, 0, 10, 10), Box(10, 0, 10, 10), 0.0),  # touching
        (Box(0, 0, 10, 10), Box(5, 0, 10, 10), 50 / 150),
        (Box(0, 0, 0, 0), Box(0, 0, 0, 0), 0.0),
        (Box(2, 2, 2, 2), Box(0, 0, 10, 10), 0.04),  # inside
    ],
)
def test_box_iou(a, b, iou):
    assert a.iou(b) == pytest.approx(iou)
    assert b.iou(a) == pytest.approx(iou)


def test_bounding_box():
    mask = np.zeros((20, 30), np.uint8)
    assert bounding_box(mask) is None
    cv2.rectangle(mask, (4, 5), (10, 11), 1, -1)  # corners included
    assert bounding_box(mask) == Box(4, 5, 7, 7)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("size", [(9, 2), (2, 9), (1, 1), (7, 8)])  # two columns: OpenCV could take them for points
def test_bounding_box_of_any_type_and_part_of_a_mask(kind, size):
    whole = np.zeros((60, 60), kind)
    part = whole[3::2, 4::3][: size[0], : size[1]]
    assert bounding_box(part) is None
    part[-1, 0] = part[0, -1] = -0.3 if np.dtype(kind).kind == "f" else 1
    assert bounding_box(part) == Box(0, 0, size[1], size[0])


def test_what_a_frame_gives_is_no_view_of_the_film():
    film = np.random.default_rng(0).random((40, 50), np.float32)
    frame = Frame.crop((40, 50), Box(10, 5, 20, 20), 20)
    assert not np.shares_memory(frame.to_grid(film), film)
    assert not np.shares_memory(Frame((40, 50), Box(0, 0, 50, 40), (40, 50)).to_native(film), film)


@given(aspect=st.sampled_from([0.4, 0.5, 0.8, 1.25, 2.0, 3.0]), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_a_squared_film_keeps_what_its_pixels_mean(aspect, seed):
    noise = np.random.default_rng(seed).random((120, 120)).astype(np.float32)
    fine = cv2.GaussianBlur(noise, (0, 0), 4)
    fine = (fine - fine.min()) / np.ptp(fine)
    size = (120, round(120 / aspect)) if aspect > 1 else (round(120 * aspect), 120)
    film = cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
    square = squared(film, aspect)
    assert square.shape == (120, 120)
    assert square.min() >= film.min()
    assert square.max() <= film.max()
    plain = cv2.resize(film, (120, 120), interpolation=cv2.INTER_LINEAR)
    assert np.abs(square - fine).mean() < 0.5 * np.abs(plain - fine).mean()


def test_a_film_of_few_oblong_pixels_is_squared_before_the_grid():
    film = np.random.default_rng(0).random((60, 120)).astype(np.float32)
    frame = Frame.letterbox(film.shape, 100, 2.0)
    np.testing.assert_allclose(frame.to_grid(film), resize(squared(film, 2.0), 100, 100), atol=1e-6)
    assert not coarse((2000, 4000), 2.0, 256)
    assert not coarse((60, 60), 1.0, 256)
