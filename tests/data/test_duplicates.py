"""Near-duplicates: copies are found whatever was done to their grey levels; different films are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.duplicates import ALIKE, near_duplicates, thumbnail, thumbnails_of
from cxr_pipeline.data.synthetic import make_film

FILM = make_film(1, label="TB", size=(300, 280)).pixels

COPIES = {
    "half the size": lambda x: cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "darker curve": lambda x: x**2.2,
    "8 bit": lambda x: np.round(x * 255).astype(np.float32) / 255,
    "stretched": lambda x: cv2.resize(x, (400, 300), interpolation=cv2.INTER_LINEAR),
    "noisy": lambda x: np.clip(x + np.random.default_rng(0).normal(0, 0.01, x.shape), 0, 1).astype(np.float32),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_found(copy):
    assert thumbnail(FILM) @ thumbnail(copy(FILM)) > ALIKE


def test_pairs_come_strongest_first_whatever_the_block_size():
    films = [FILM, np.zeros((64, 64), np.float32), COPIES["noisy"](FILM), FILM, np.eye(64, dtype=np.float32)]
    thumbnails = np.stack([thumbnail(film) for film in films])
    pairs = near_duplicates(thumbnails)
    assert [(p.first, p.second) for p in pairs] == [(0, 3), (0, 2), (2, 3)]
    small = near_duplicates(thumbnails, block=2)
    assert [(p.first, p.second) for p in small] == [(p.first, p.second) for p in pairs]


def test_films_that_cannot_be_read_are_named(tmp_path):
    cv2.imwrite(str(tmp_path / "good.png"), np.round(FILM * 255).astype(np.uint8))
    (tmp_path / "bad.png").write_text("no image")
    seen, numbers, wrong = thumbnails_of([tmp_path / "bad.png", tmp_path / "good.png"])
    assert seen.shape == (1, thumbnail(FILM).size)
    assert numbers == [1]
    assert "bad.png" in wrong[0]


@pytest.mark.real
def test_the_known_pair_of_montgomery_is_the_only_one_there(real_data):
    """One person's two films, known from the set's description; the other 9,452 pairs are of different people."""
    seen, _, _ = thumbnails_of(sorted((real_data / "images" / "montgomery").glob("*.jpg")))
    assert len(near_duplicates(seen)) == 1
