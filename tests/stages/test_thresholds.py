"""Operating thresholds: films at the threshold stay on their side, and labels that were not learned are not given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_pipeline.models.figures.metrics import softmax
from cxr_pipeline.models.training.fit import TrainingError
from cxr_pipeline.stages.classify_calibration import NEVER, one_class, rounded_down, several_labels


@given(st.floats(0, 1))
def test_rounding_never_raises_a_threshold(threshold):
    low = rounded_down(threshold)
    assert threshold * (1 - 1.2e-5) - 1e-300 <= low <= threshold


@pytest.mark.parametrize("scale", [0.001, 1.0, 40.0])
def test_the_target_sensitivity_holds_on_the_films_it_was_set_on(scale):
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 3
    logits = scale * (2.0 * np.eye(3)[labels] + draw.normal(0, 1, (60, 3)))
    patients = [str(number) for number in range(60)]
    decided = one_class(logits, labels, np.zeros(3), ["TB", "NTB", "NORM"], 0, 0.9, patients)
    scores = softmax(logits / decided["temperature"])[:, 0]
    assert (scores[labels == 0] >= decided["threshold"]).mean() >= 0.9


@pytest.mark.parametrize("labels", [[1, 2, 1, 2], [0, 0, 0, 0]])
def test_a_threshold_needs_films_with_the_class_and_without(labels):
    with pytest.raises(TrainingError, match="threshold needs films with it, and films without"):
        one_class(np.eye(3)[labels], np.array(labels), np.zeros(3), ["TB", "NTB", "NORM"], 0, 0.9, list("abcd"))


def test_labels_that_were_not_learned_are_never_given(caplog):
    draw = np.random.default_rng(0)
    targets = (draw.random((50, 3)) < 0.4).astype(float)
    logits = 3 * targets - 1 + draw.normal(0, 1, targets.shape)
    decided = several_labels(logits, targets, np.array([0.0, -13.8, 13.8]), "ABC", np.array([True, False, False]))
    assert 0 < decided["thresholds"]["A"] < 1
    assert decided["thresholds"]["B"] == decided["thresholds"]["C"] == NEVER > 1
    assert "B, C" in caplog.text
