"""Films as another machine might have made them: repeatable, and lungs and lesions move along."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.data.variation import varied

SEEDS = range(40)


@pytest.fixture(scope="module")
def film():
    draw = np.random.default_rng(0)
    lungs = np.zeros((128, 128), np.uint8)
    lungs[20:108, 14:56] = lungs[20:108, 72:114] = 1
    lesions = np.zeros_like(lungs)
    lesions[30:50, 20:44] = 1
    crop = np.where(lungs > 0, draw.integers(40, 90, lungs.shape), draw.integers(120, 170, lungs.shape))
    crop[lesions > 0] = 215
    return crop.astype(np.uint8), lungs, lesions


def test_a_seed_makes_the_same_film_again(film):
    for seed in SEEDS:
        first, again = (varied(*film, 96, np.random.default_rng(seed)) for _ in range(2))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len({varied(*film, 96, np.random.default_rng(seed)).crop.tobytes() for seed in SEEDS}) == len(SEEDS)


def test_it_comes_on_the_grid_asked_for(film):
    for seed in SEEDS:
        for part in varied(*film, 80, np.random.default_rng(seed)):
            assert part.shape == (80, 80)
            assert part.dtype == np.uint8


def test_lungs_and_lesions_move_along(film):
    for seed in SEEDS:
        crop, lungs, lesions = varied(*film, 128, np.random.default_rng(seed))
        assert set(np.unique(lungs)) == set(np.unique(lesions)) == {0, 1}
        assert (lungs[lesions > 0]).all()
        sound = (lungs > 0) & (lesions == 0)
        assert np.median(crop[lesions > 0]) >= np.median(crop[sound]) + 10  # whatever the tone, lesions are brighter


def test_the_film_handed_in_stays_as_it_is(film):
    before = [part.copy() for part in film]
    for seed in SEEDS:
        varied(*film, 128, np.random.default_rng(seed))
    for was, now in zip(before, film, strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_film_without_lungs_is_varied_too(film):
    crop, lungs, lesions = varied(film[0], 0 * film[1], 0 * film[2], 64, np.random.default_rng(0))
    assert crop.std() > 0
    assert not lungs.any()
    assert not lesions.any()
