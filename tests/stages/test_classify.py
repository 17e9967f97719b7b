"""What the classifier makes of logits and labels, without a network."""

from __future__ import annotations

import numpy as np
import pytest

from models.metrics import softmax
from stages.classify import balance_weights, mix_offsets, source_priors

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
