"""The quick way to tell two lungs apart gives what labels of all pixels give."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.stages import lungs as module
from cxr_pipeline.stages.lungs import split_lungs

ELLIPSE = st.tuples(st.integers(5, 75), st.integers(5, 55), st.integers(2, 20), st.integers(2, 30))


@given(ellipses=st.lists(ELLIPSE, min_size=0, max_size=4), hole=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_quick_way_agrees_with_the_slow_one(ellipses, hole):
    mask = np.zeros((60, 80), np.uint8)
    for x, y, across, down in ellipses:
        cv2.ellipse(mask, (x, y), (across, down), 0, 0, 360, 1, cv2.FILLED)
    if hole:
        mask[28:31, 20:23] = 0
    frame = Frame((60, 80), Box(0, 0, 80, 60), (60, 80))
    found = split_lungs(mask > 0, frame)
    quick, module._apart = module._apart, lambda lungs: None
    try:
        wanted = split_lungs(mask > 0, frame)
    finally:
        module._apart = quick
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
