"""Lesions pasted from one film into another: repeatable, marked where they are, and never from nothing."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.data.geometry import bounding_box
from cxr_pipeline.data.pasting import Donor, lesion_map, paste

SIZE = 128
SEEDS = range(24)


@pytest.fixture(scope="module")
def lungs():
    lungs = np.zeros((SIZE, SIZE), np.uint8)
    lungs[16:112, 12:56] = lungs[16:112, 72:116] = 1
    return lungs


@pytest.fixture(scope="module")
def host():
    return np.random.default_rng(0).integers(40, 80, (SIZE, SIZE)).astype(np.uint8)


@pytest.fixture(scope="module")
def donor(lungs):
    crop = np.random.default_rng(1).integers(90, 110, (SIZE, SIZE)).astype(np.uint8)
    boxes = np.array([(18, 20, 48, 52), (80, 30, 104, 60)])
    crop[lesion_map(boxes, SIZE) > 0] = 220
    return Donor(crop, lungs, boxes)


def pasted(host, lungs, donor, seed, **settings):
    return paste(host, lungs, lambda draw: donor, np.random.default_rng(seed), **settings)


def test_a_seed_makes_the_same_film_again(host, lungs, donor):
    for seed in SEEDS:
        first, again = pasted(host, lungs, donor, seed), pasted(host, lungs, donor, seed)
        np.testing.assert_array_equal(first.crop, again.crop)
        np.testing.assert_array_equal(first.lesions, again.lesions)
    assert len({pasted(host, lungs, donor, seed).crop.tobytes() for seed in SEEDS}) == len(SEEDS)


def test_lesions_are_marked_within_the_lungs_and_where_the_film_changed(host, lungs, donor):
    marked = 0
    for seed in SEEDS:
        film, lesions = pasted(host, lungs, donor, seed, sick=1.0)
        assert film.dtype == lesions.dtype == np.uint8
        assert set(np.unique(lesions)) <= {0, 1}
        assert not (lesions & (lungs == 0)).any()
        changed = film[lesions > 0].astype(int) - host[lesions > 0]
        assert (changed > 20).all()  # a bright lesion on a dark film, at no less than 0.4 of its strength
        marked += lesions.any()
    assert marked == len(SEEDS)


def test_nothing_is_marked_outside_the_box_of_the_lungs(host, donor):
    lungs = np.zeros((SIZE, SIZE), np.uint8)
    lungs[40:80, 50:90] = 1
    box = bounding_box(lungs)
    for seed in SEEDS:
        lesions = pasted(host, lungs, donor, seed, sick=1.0).lesions
        lesions[int(box.y) : int(box.y + box.h), int(box.x) : int(box.x + box.w)] = 0
        assert not lesions.any()


def test_controls_change_the_film_and_mark_nothing(host, lungs, donor):
    films = [pasted(host, lungs, donor, seed, sick=0.0) for seed in SEEDS]
    assert not any(film.lesions.any() for film in films)
    assert sum((film.crop != host).any() for film in films) > len(films) / 2  # not every try finds sound lung
    assert max(int(film.crop.max()) for film in films) < 140  # none of it is of a lesion


def test_lesions_and_controls_take_turns(host, lungs, donor):
    films = [pasted(host, lungs, donor, seed) for seed in range(60)]
    assert 0.6 < np.mean([film.lesions.any() for film in films]) < 1


def test_neither_the_donor_nor_the_host_is_changed(host, lungs, donor):
    before = [host.copy(), lungs.copy(), *(part.copy() for part in donor)]
    for seed in SEEDS:
        pasted(host, lungs, donor, seed)
    for was, now in zip(before, [host, lungs, *donor], strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_film_without_lungs_stays_as_it_is(host, donor):
    film, lesions = pasted(host, np.zeros_like(host), donor, 0)
    np.testing.assert_array_equal(film, host)
    assert film is not host
    assert not lesions.any()


def test_a_donor_that_is_all_lesion_has_no_control_to_give(host, lungs, donor):
    ill = donor._replace(boxes=np.array([(0, 0, SIZE, SIZE)]))
    assert not any((pasted(host, lungs, ill, seed, sick=0.0).crop != host).any() for seed in SEEDS)


def test_the_map_of_boxes_is_1_inside_them_alone():
    found = lesion_map(np.array([(2, 3, 5, 4), (7, 7, 9, 9)]), 10)
    assert found.sum() == 3 + 4
    assert found[3, 2:5].all()
    assert not lesion_map(np.zeros((0, 4)), 10).any()
