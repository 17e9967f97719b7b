"""Augmentation: repeatable, in range, and never a mirror image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.augment import LungOpacities, Marks, Opacities, classify_augmentation, segment_augmentation
from cxr_pipeline.data.synthetic import make_film

import albumentations as A  # isort: skip  (after the module that switches its update check off)

BUILDERS = pytest.mark.parametrize("build", [segment_augmentation, classify_augmentation])


@pytest.fixture(scope="module")
def film():
    film = make_film(7, label="NORM", size=(192, 192))
    return np.round(film.pixels * 255).astype(np.uint8), film.mask


@BUILDERS
def test_a_seed_repeats_and_another_differs(build, film):
    image, mask = film
    one, same, other = (build(seed)(image=image, mask=mask) for seed in (3, 3, 4))
    assert np.array_equal(one["image"], same["image"])
    assert np.array_equal(one["mask"], same["mask"])
    assert not np.array_equal(one["image"], other["image"])


@BUILDERS
def test_shape_type_and_mask_values_stay(build, film):
    image, mask = film
    for seed in range(20):
        out = build(seed)(image=image, mask=mask)
        assert (out["image"].shape, out["image"].dtype) == (image.shape, np.uint8)
        assert (out["mask"].shape, out["mask"].dtype) == (mask.shape, np.uint8)
        assert set(np.unique(out["mask"])) <= {0, 1}


@BUILDERS
def test_left_stays_left(build, film):
    """A mask of the picture's left half alone stays mostly left: no flip, no half turn."""
    image, _ = film
    left = np.zeros((192, 192), np.uint8)
    left[60:130, 20:70] = 1
    for seed in range(40):
        columns = np.nonzero(build(seed)(image=image, mask=left)["mask"])[1]
        assert columns.mean() < 96


@BUILDERS
def test_the_input_is_not_changed(build, film):
    image, mask = film
    before = image.copy()
    for seed in range(10):
        build(seed)(image=image, mask=mask)
    assert np.array_equal(image, before)


def test_opacities_only_brighten(film):
    image, _ = film
    for seed in range(10):
        transform = Opacities(p=1.0)
        transform.set_random_seed(seed)
        out = transform(image=image)["image"]
        assert (out >= image.astype(int) - 1).all()
        assert out.mean() > image.mean()


def test_white_lungs_are_white_within_the_lungs(film):
    """Some lung becomes clearly brighter, nothing far from the lungs changes, and the mask is left as it is."""
    image, mask = film
    near = cv2.dilate(mask, np.ones((25, 25), np.uint8)) > 0
    for seed in range(12):
        transform = A.Compose([LungOpacities(p=1.0)], seed=seed)
        out = transform(image=image, mask=mask)
        change = out["image"].astype(int) - image
        assert change[mask > 0].max() > 20
        assert abs(change[~near]).max() <= 1
        assert np.array_equal(out["mask"], mask)


def test_a_film_without_lungs_stays_as_it_is(film):
    image, mask = film
    out = A.Compose([LungOpacities(p=1.0)], seed=1)(image=image, mask=np.zeros_like(mask))
    assert np.array_equal(out["image"], image)


def test_marks_leave_the_middle_of_the_film():
    image = np.full((200, 200), 128, np.uint8)
    changed = np.zeros((200, 200), int)
    for seed in range(30):
        transform = Marks(p=1.0)
        transform.set_random_seed(seed)
        changed += transform(image=image)["image"] != 128
    assert changed[80:120, 80:120].mean() < changed[:10].mean()
    assert changed.any()
