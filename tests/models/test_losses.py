"""Losses and scores of masks, against figures computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.models.training.losses import DiceCrossEntropy, DiceScore


@pytest.mark.parametrize(
    ("truth", "guess", "expected"),
    [  # (1, 2, 2, 1) each
        ([1, 1, 0, 0], [0.9, 0.8, 0.1, 0.2], 1.0),
        ([1, 1, 0, 0], [0.1, 0.1, 0.9, 0.9], 0.0),
        ([1, 1, 0, 0], [0.9, 0.1, 0.1, 0.1], 2 / 3),
        ([0, 0, 0, 0], [0.1, 0.1, 0.1, 0.1], 1.0),  # empty in both
        ([0, 0, 0, 0], [0.9, 0.1, 0.1, 0.1], 0.0),
    ],
)
def test_dice_score(truth, guess, expected):
    shape = (1, 2, 2, 1)
    metric = DiceScore()
    metric.update_state(np.reshape(truth, shape).astype("float32"), np.reshape(guess, shape).astype("float32"))
    assert float(metric.result()) == pytest.approx(expected)


def test_dice_cross_entropy_prefers_the_truth():
    truth = np.zeros((2, 8, 8, 1), np.float32)
    truth[:, 2:5, 2:5] = 1
    loss = DiceCrossEntropy()
    perfect, half, wrong = (float(loss(truth, g)) for g in (truth, np.full_like(truth, 0.5), 1 - truth))
    assert perfect < 0.01
    assert perfect < half < wrong
