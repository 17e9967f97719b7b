"""What the classifier sees of a film."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.data.geometry import Frame, squared
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.crops import lung_crop
from cxr_pipeline.stages.segment import Segment


def film(pixels: np.ndarray, aspect: float = 1.0) -> Radiograph:
    return Radiograph(pixels, "a", "a", pixels.shape, aspect=aspect)


@pytest.mark.slow
@pytest.mark.parametrize("aspect", [2.0, 0.5])
def test_a_film_of_oblong_pixels_gets_the_crop_of_the_square_one(aspect, tiny_chain):
    segment = Segment.load(tiny_chain / "segment").with_settings(refuse=False, min_fraction=0.0)
    pixels = make_film(3, size=(180, 180)).pixels
    oblong = np.ascontiguousarray(pixels[::2] if aspect > 1 else pixels[:, ::2])
    records = segment.run([Record(film(oblong, aspect)), Record(film(squared(oblong, aspect)))])
    seen, wanted = (lung_crop(record, 96) for record in records)
    np.testing.assert_array_equal(seen[0], wanted[0])
    np.testing.assert_array_equal(seen[1], wanted[1])
    assert seen[2].native == oblong.shape
    assert records[0].mask.shape == oblong.shape


def test_without_lungs_the_whole_film_is_seen_square():
    oblong = np.ascontiguousarray(make_film(3, size=(90, 180)).pixels)
    seen = lung_crop(Record(film(oblong, 2.0)), 64)
    wanted = lung_crop(Record(film(squared(oblong, 2.0))), 64)
    np.testing.assert_array_equal(seen[0], wanted[0])


def test_a_mask_is_shrunk_once_for_a_frame(monkeypatch):
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 10:35] = mask[10:50, 45:70] = 1
    record = Record(film(np.random.default_rng(0).random((60, 80), np.float32)), mask=mask)
    _, lungs, frame = lung_crop(record, 32)
    monkeypatch.setattr(Frame, "to_grid", lambda *_, **__: pytest.fail("shrunk again"))
    np.testing.assert_array_equal(record.lungs_on(frame), lungs > 0)


def test_another_mask_has_other_lungs():
    record = Record(film(np.zeros((60, 80), np.float32)), mask=np.ones((60, 80), np.uint8))
    frame = Frame.letterbox((60, 80), 32)
    assert record.lungs_on(frame).sum() == 32 * 24  # what lies beside the film is no lung
    record.mask = np.zeros((60, 80), np.uint8)
    assert not record.lungs_on(frame).any()
    record.mask = None
    assert record.lungs_on(frame).sum() == 32 * 24
