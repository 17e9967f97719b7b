"""The paired tests say what their definitions say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from cxr_pipeline.models.figures.metrics import auroc
from cxr_pipeline.models.figures.significance import delong, delong_covariance, mcnemar

Y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])
A = np.array([0.9, 0.8, 0.35, 0.5, 0.1, 0.4, 0.5, 0.3, 0.2])
B = np.array([0.7, 0.2, 0.6, 0.4, 0.1, 0.65, 0.4, 0.3, 0.2])


def by_definition(y, scores):
    """Equations 4 to 6 of DeLong et al. 1988, pair by pair."""
    tens, ones = [], []
    for score in scores:
        x, z = score[y == 1], score[y == 0]
        wins = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in z] for a in x]
        tens.append(np.mean(wins, axis=1))
        ones.append(np.mean(wins, axis=0))
    areas = [ten.mean() for ten in tens]

    def product(values, one, two):
        return sum((a - areas[one]) * (b - areas[two]) for a, b in zip(values[one], values[two], strict=True)) / (
            len(values[one]) - 1
        )

    count = range(len(scores))
    m, n = (y == 1).sum(), (y == 0).sum()
    return np.array(areas), np.array(
        [[product(tens, i, j) / m + product(ones, i, j) / n for j in count] for i in count]
    )


def test_the_covariance_of_a_small_example():
    # Placements of the positives 1, 1, 3/5, 9/10 and of the negatives 1, 3/4, 3/4 - 1/8, 1, 1, worked out by hand.
    areas, covariance = delong_covariance(Y, A)
    assert areas == pytest.approx([0.875])
    of_positives, of_negatives = np.var([1, 1, 0.6, 0.9], ddof=1), np.var([1, 0.75, 0.625, 1, 1], ddof=1)
    assert covariance == pytest.approx(np.array([[of_positives / 4 + of_negatives / 5]]))


@pytest.mark.parametrize("seed", range(5))
def test_the_fast_algorithm_equals_the_definition(seed):
    draw = np.random.default_rng(seed)
    y = np.r_[0, 0, 1, 1, draw.integers(2, size=30)]
    scores = np.round(draw.normal(0, 1, (3, len(y))) + y, 1)  # rounded: with ties
    areas, covariance = delong_covariance(y, scores)
    expected, expected_covariance = by_definition(y, scores)
    np.testing.assert_allclose(areas, expected, rtol=1e-12)
    np.testing.assert_allclose(covariance, expected_covariance, rtol=1e-9, atol=1e-15)
    assert areas == pytest.approx([auroc(y, score) for score in scores])


def test_delong_is_the_normal_test_of_the_difference():
    areas, covariance = by_definition(Y, [A, B])
    z = (areas[0] - areas[1]) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    draws = np.random.default_rng(0).standard_normal(400_000)
    test = delong(Y, A, B)
    assert test.p == pytest.approx((np.abs(draws) >= abs(z)).mean(), abs=0.005)
    assert (test.first, test.second, test.n) == (pytest.approx(areas[0]), pytest.approx(areas[1]), 9)
    assert delong(Y, B, A).p == test.p


def test_delong_holds_its_level():
    """Of two scores that are as good as each other, it calls about 5 % of the draws different."""
    draw = np.random.default_rng(1)
    y = np.arange(80) % 2
    found = 0
    for _ in range(400):
        shared = draw.normal(0, 1, 80) + y
        found += delong(y, shared + draw.normal(0, 1, 80), shared + draw.normal(0, 1, 80)).p < 0.05
    assert 0.02 < found / 400 < 0.09


@pytest.mark.parametrize(
    ("y", "first", "second", "p"),
    [
        (Y, A, A, 1.0),
        (Y, A, 3 * A + 1, 1.0),  # the order is all that counts
        ([1, 0, 0], [1, 0, 0], [0, 1, 1], np.nan),  # one positive film has no variance
        ([1, 1, 1], [1, 2, 3], [3, 2, 1], np.nan),
        ([1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], np.nan),  # 1 against 0.5, and not a film that says otherwise
        ([], [], [], np.nan),
    ],
)
def test_delong_of_odd_cases(y, first, second, p):
    assert delong(np.array(y), np.array(first), np.array(second)).p == pytest.approx(p, nan_ok=True)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (1, 6), (6, 1), (5, 5), (12, 30)])
def test_mcnemar_is_the_binomial_test_of_discordant_films(gained, lost):
    first = np.r_[np.ones(gained), np.zeros(lost), np.ones(7), np.zeros(3)]
    second = np.r_[np.zeros(gained), np.ones(lost), np.ones(7), np.zeros(3)]
    test = mcnemar(first, second)
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert test.p == pytest.approx(expected)
    assert test.n == gained + lost + 10
    assert test.first - test.second == pytest.approx((gained - lost) / test.n)


def test_mcnemar_by_hand_and_of_nothing():
    assert mcnemar([1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]).p == pytest.approx(2 * (1 + 7) / 2**7)
    assert np.isnan(mcnemar([], []).p)
