"""Films decoded whole and held as means of their pixels: where these lie, and what is as of all pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_pipeline.data.formats.small import Small, Wanted, means
from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.data.radiograph import Radiograph, read

sides = st.integers(33, 97)
WANTED = Wanted(100, (32,))


def film(size, seed=0):
    pixels = np.random.default_rng(seed).random(size, np.float32)
    return Radiograph(cv2.GaussianBlur(pixels, (0, 0), 1.5), "a", "a", size)


def saved(path, pixels):
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


@given(sides, sides, st.sampled_from([2, 4, 8]))
def test_each_mean_is_of_its_square_or_of_what_is_left_of_it(height, width, step):
    pixels = np.random.default_rng(height).random((height, width), np.float32)
    found = means(pixels, step)
    squares = [[pixels[y : y + step, x : x + step] for x in range(0, width, step)] for y in range(0, height, step)]
    wanted = [[square.mean() for square in row] for row in squares]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@given(sides, sides, st.sampled_from([2, 4]))
def test_means_of_means_lie_where_means_lie(height, width, step):
    whole = Small((height, width), 1, 0.5)
    assert whole.coarser(step).coarser(2) == whole.coarser(2 * step)
    ramp = np.broadcast_to(np.arange(width, dtype=np.float32) + 0.5, (height, width))
    lies = whole.coarser(step)
    columns = width // step
    np.testing.assert_allclose(means(ramp, step)[0, :columns], lies.centre + lies.scale * np.arange(columns), atol=1e-4)


@given(
    sides,
    sides,
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(24, 60), st.integers(24, 60)),
    st.integers(150, 400),
)
@settings(max_examples=60)
def test_a_frame_shows_the_same_whatever_is_kept(height, width, box, least):
    """Of all pixels, of means, and of means of means; a box on the grid leads to the same native pixels."""
    native = (4 * height + 1, 4 * width + 3)
    whole = film(native)
    frame = Frame.crop(native, Box(*(4 * v + 1 for v in box)), 12)
    wanted = whole.on(frame, least)
    for step in (2, 4):
        lies = Small(native, 1, 0.5).coarser(step)
        lean = Radiograph(means(whole.pixels, step), "a", "a", native, small=lies)
        if max(native) >= step * least:
            np.testing.assert_allclose(lean.on(frame, least), wanted, atol=1e-5)
    np.testing.assert_allclose(wanted, frame.to_grid(whole.pixels), atol=0.02)
    ones = Radiograph(np.ones(native, np.float32), "a", "a", native)
    np.testing.assert_allclose(ones.on(frame, least), frame.to_grid(ones.pixels), atol=1e-4)


@pytest.mark.parametrize("size", [(401, 322), (250, 400), (200, 201)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_of_a_large_film_only_what_is_wanted_stays(tmp_path, size, kind):
    levels = np.round(film(size).pixels * np.iinfo(kind).max).astype(kind)
    path = saved(tmp_path / "a.png", levels)
    whole, lean = read(path), read(path, wanted=WANTED)
    step = 4 if max(size) >= 400 else 2
    assert lean.small == Small(size, step, step / 2)
    assert lean.size == whole.size == size
    assert (lean.bits, lean.meta, lean.grey_levels) == (whole.bits, whole.meta, whole.grey_levels)
    frame = Frame.letterbox(size, 32)
    np.testing.assert_array_equal(lean.on(frame), whole.on(frame))  # made of all pixels, before they were given up
    crop = Frame.crop(size, Box(31, 17, 143, 151), 20)
    np.testing.assert_array_equal(lean.on(crop, WANTED.least), whole.on(crop, WANTED.least))


def test_small_films_stay_as_they_are(tmp_path):
    path = saved(tmp_path / "a.png", np.round(film((199, 150)).pixels * 255).astype(np.uint8))
    lean, whole = read(path, wanted=WANTED), read(path)
    assert lean.small is None
    np.testing.assert_array_equal(lean.pixels, whole.pixels)
    frame = Frame.crop((199, 150), Box(11, 7, 93, 71), 20)
    np.testing.assert_array_equal(lean.on(frame, WANTED.least), frame.to_grid(whole.pixels))


def test_films_of_oblong_pixels_stay_as_they_are():
    oblong = film((400, 200))
    oblong.aspect = 2.0
    frame = Frame.crop((400, 200), Box(11, 7, 93, 71), 20)
    np.testing.assert_array_equal(oblong.on(frame, 100), frame.to_grid(oblong.pixels))


def test_checks_look_at_all_of_the_film(tmp_path):
    """Means of few grey levels are many; and two films on one picture are told by all of its pixels."""
    rng = np.random.default_rng(1)
    few = (rng.integers(0, 6, (400, 360)) * 50).astype(np.uint8)
    lean = read(saved(tmp_path / "few.png", few), wanted=WANTED)
    assert lean.small is not None
    assert len(np.unique(lean.pixels)) > 16
    assert lean.grey_levels == 6
    one = cv2.resize(rng.random((8, 6), np.float32), (190, 400), interpolation=cv2.INTER_CUBIC)
    pair = np.hstack([one, np.zeros((400, 20), np.float32), one])
    path = saved(tmp_path / "pair.png", np.round(np.clip(pair, 0, 1) * 255).astype(np.uint8))
    assert read(path, wanted=WANTED).meta["against"] == read(path).meta["against"] != []
