"""What the classifier makes of logits and labels, without a network."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.models.figures.metrics import softmax
from cxr_pipeline.stages.classify_calibration import mix_offsets
from cxr_pipeline.stages.classify_targets import balance_weights, source_priors, zones_with_lesions

CLASSES = ["TB", "NTB", "NORM"]


def rows(**counts):
    return [{"source": k.split("_")[0], "label": k.split("_")[1]} for k, n in counts.items() for _ in range(n)]


def test_offsets_turn_an_even_mix_into_the_assumed_one():
    offsets = mix_offsets(CLASSES, {"TB": 0.2, "NTB": 0.2, "NORM": 0.6})
    np.testing.assert_allclose(softmax(np.array([[offsets[c] for c in CLASSES]]))[0], [0.2, 0.2, 0.6], atol=1e-3)
    assert set(mix_offsets(CLASSES, None).values()) == {0.0}


def test_a_source_with_both_classes_alike_gives_nothing_away():
    prior = source_priors(rows(a_TB=10, a_NORM=10, b_TB=20), CLASSES, None, 1.0)
    assert prior[0, 0] == pytest.approx(prior[0, 2])
    assert prior[-1, 0] > prior[-1, 2] + 2  # b has TB alone: the source tells it already
    assert not source_priors(rows(a_TB=3), CLASSES, None, 0.0).any()


def test_rare_groups_weigh_more_but_not_alike():
    films = rows(a_TB=1, a_NORM=100)
    weights = balance_weights(films, "class")
    assert weights.mean() == pytest.approx(1)
    assert weights[0] / weights[-1] == pytest.approx(10)
    assert balance_weights(films, "none") is None


class TestZonesWithLesions:
    frame = Frame.crop((300, 200), Box(20, 30, 160, 240), 96)  # zones of 80 by 80 native pixels
    lungs = np.ones((96, 96), np.uint8)

    def test_a_box_marks_the_zone_that_it_fills_and_clears_those_far_away(self):
        zones = zones_with_lesions(self.lungs, [Box(20, 30, 80, 80)], self.frame)
        assert zones.tolist() == [1, 0, 0, 0, 0, 0]
        zones = zones_with_lesions(self.lungs, [Box(100, 190, 80, 80)], self.frame)
        assert zones.tolist() == [0, 0, 0, 0, 0, 1]

    def test_a_zone_that_is_partly_covered_says_nothing(self):
        zones = zones_with_lesions(self.lungs, [Box(20, 30, 80, 88)], self.frame)
        assert zones.tolist() == [1, 255, 0, 0, 0, 0]

    def test_without_boxes_or_lung_nothing_is_known(self):
        assert set(zones_with_lesions(self.lungs, [], self.frame)) == {255}
        lungs = self.lungs.copy()
        lungs[:, 48:] = 0
        assert zones_with_lesions(lungs, [Box(20, 30, 80, 80)], self.frame).tolist() == [1, 0, 0, 255, 255, 255]
