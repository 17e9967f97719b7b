"""Which components of a mask stay, and that the answer may take the mask's own place."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cxr_pipeline.stages.lungs import clean, largest

masks = arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.integers(0, 1), fill=st.just(0))


def drawn(mask: np.ndarray, most: int) -> np.ndarray:
    """The largest outlines of a mask, filled on a sheet of their own."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = sorted(outlines, key=cv2.contourArea, reverse=True)[:most]
    if len(outlines) == 2 and cv2.contourArea(outlines[1]) < 0.05 * cv2.contourArea(outlines[0]):
        outlines = outlines[:1]
    out = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(out, outlines, -1, 1, cv2.FILLED)
    return out


@given(masks)
def test_the_largest_stay_with_their_holes_filled(mask):
    before = mask.copy()
    for keep, most in ((clean, 2), (largest, 1)):
        np.testing.assert_array_equal(keep(mask), drawn(mask, most))
        np.testing.assert_array_equal(mask, before)
        np.testing.assert_array_equal(keep(mask.copy(), reuse=True), drawn(mask, most))
        np.testing.assert_array_equal(keep(mask.astype(bool)), drawn(mask, most))


@pytest.mark.parametrize("keep", [clean, largest])
def test_a_mask_that_is_not_needed_any_more_gives_its_memory(keep):
    mask = np.zeros((20, 20), np.uint8)
    mask[4:12, 4:12] = 1
    assert keep(mask, reuse=True) is mask
    assert keep(mask) is not mask
