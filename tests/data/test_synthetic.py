"""Synthetic films: repeatable, true to their masks and boxes, at any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.radiograph import read
from cxr_pipeline.data.synthetic import LABELS, make_film, write_samples


@given(
    seed=st.integers(0, 10_000),
    label=st.sampled_from(LABELS),
    size=st.tuples(st.integers(96, 400), st.integers(96, 400)),
)
@settings(max_examples=15, deadline=None)
def test_any_film_is_sound(seed, label, size):
    film = make_film(seed, label=label, size=size)
    assert film.pixels.shape == film.mask.shape == size
    assert film.pixels.dtype == np.float32
    assert 0 <= film.pixels.min() < film.pixels.max() <= 1
    assert 0.1 < film.mask.mean() < 0.45
    assert bool(film.boxes) == (label != "NORM")
    for box in film.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.w <= size[1]
        assert box.y + box.h <= size[0]


def test_lungs_are_darker_than_what_surrounds_them():
    film = make_film(4)
    height, width = film.mask.shape
    middle = film.pixels[height // 4 : height // 2, int(0.47 * width) : int(0.53 * width)]
    assert film.pixels[film.mask > 0].mean() < middle.mean() - 0.15


def test_opacities_are_brighter_than_the_same_film_without():
    sick = make_film(16, label="NTB")
    (box,) = sick.boxes
    x, y, w, h = (int(v) for v in box)
    inside = np.zeros_like(sick.mask, bool)
    inside[y : y + h, x : x + w] = sick.mask[y : y + h, x : x + w] > 0
    elsewhere = (sick.mask > 0) & ~inside
    assert sick.pixels[inside].mean() > sick.pixels[elsewhere].mean()


def test_a_seed_makes_the_same_film_and_another_seed_another():
    one, same, other = make_film(1), make_film(1), make_film(2)
    assert np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'COVID'"):
        make_film(0, label="COVID")
    with pytest.raises(ValueError, match="64 pixels"):
        make_film(0, size=(32, 512))


def test_samples_are_a_manifest_that_the_readers_take(tmp_path):
    manifest = read_manifest(write_samples(tmp_path, 12, size=(128, 160)), classes=LABELS)
    assert len(manifest) == 12
    assert set(manifest.table["split"]) == {"train", "val", "test"}
    for row in manifest.table.itertuples():
        film = read(manifest.path(row.image))
        assert film.size == (128, 160)
        assert bool(manifest.boxes_of(row.image)) == (row.label != "NORM")
