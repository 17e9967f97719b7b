"""Figures of merit, against hand-counted cases and against the libraries that offer the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.models.figures import boxes
from cxr_pipeline.models.figures import metrics as m

EMPTY = np.zeros((8, 8), np.uint8)
SQUARE = EMPTY.copy()
SQUARE[2:6, 2:6] = 1
SHIFTED = np.roll(SQUARE, 2, axis=1)


@pytest.mark.parametrize(
    ("a", "b", "dice", "iou", "hd95"),
    [  # (8, 8) masks
        (SQUARE, SQUARE, 1.0, 1.0, 0.0),
        (SQUARE, SHIFTED, 0.5, 1 / 3, 2.0),
        (SQUARE, EMPTY, 0.0, 0.0, np.inf),
        (EMPTY, SQUARE, 0.0, 0.0, np.inf),
        (EMPTY, EMPTY, 1.0, 1.0, 0.0),
        (SQUARE * 255, SQUARE, 1.0, 1.0, 0.0),  # 0/255 and 0/1
    ],
)
def test_masks(a, b, dice, iou, hd95):
    assert m.dice(a, b) == pytest.approx(dice)
    assert m.iou(a, b) == pytest.approx(iou)
    assert m.hd95(a, b) == pytest.approx(hd95)


masks = arrays(np.uint8, (9, 11), elements=st.integers(0, 1))


@given(a=masks, b=masks)
def test_mask_figures_are_symmetric_and_ordered(a, b):
    assert m.dice(a, b) == m.dice(b, a)
    assert m.iou(a, b) <= m.dice(a, b) + 1e-12
    assert m.hd95(a, b) == pytest.approx(m.hd95(b, a), rel=1e-5)


@given(a=masks, b=masks, shift=st.integers(0, 5))
def test_hd95_does_not_care_where_the_masks_lie(a, b, shift):
    moved = [np.pad(x, ((shift, 6), (6, shift))) for x in (a, b)]
    assert m.hd95(*moved) == pytest.approx(m.hd95(np.pad(a, 1), np.pad(b, 1)))


def test_shares_have_the_interval_of_wilson():
    """Newcombe 1998, table I, method 3."""
    low, high = m.wilson([81, 15, 0, 1], [263, 148, 20, 29])
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)
    assert m.wilson(5, 5)[1] == pytest.approx(1)


def test_two_classes_against_sklearn():
    draw = np.random.default_rng(0)
    y, score = draw.random(200) < 0.3, np.round(draw.random(200), 1)  # rounded: many ties
    assert m.auroc(y, score) == pytest.approx(sk.roc_auc_score(y, score))
    assert m.average_precision(y, score) == pytest.approx(sk.average_precision_score(y, score))
    assert m.sensitivity(y, score, 0.5) == pytest.approx(sk.recall_score(y, score >= 0.5))
    assert m.specificity(y, score, 0.5) == pytest.approx(sk.recall_score(~y, score < 0.5))


@given(score=arrays(float, 30, elements=st.floats(-5, 5).map(lambda v: round(v, 3))), seed=st.integers(0, 9))
def test_auroc_ignores_monotone_change(score, seed):
    y = np.random.default_rng(seed).random(30) < 0.5
    if y.all() or not y.any():
        assert np.isnan(m.auroc(y, score))
    else:
        assert m.auroc(y, score) == pytest.approx(m.auroc(y, 3 * score**3 + score))


def test_a_score_that_is_no_number_gives_no_figure():
    y, score = [True, False, True], [np.nan, 0.2, 0.5]
    assert np.isnan(m.auroc(y, score))
    assert np.isnan(m.average_precision(y, score))
    assert m.average_precision(y, [np.inf, 0.2, np.inf]) == 1.0


@pytest.mark.parametrize("y", [np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)])
def test_one_class_alone_is_undefined_and_no_error(y):
    score = np.linspace(0, 1, len(y))
    assert np.isnan(m.auroc(y, score))
    assert np.isnan(m.average_precision(y, score)) == (not y.any())
    assert np.isnan(m.sensitivity(y, score, 0.5)) == (not y.any())
    assert np.isnan(m.threshold_for_sensitivity(y, score, 0.9)) == (not y.any())


@given(seed=st.integers(0, 50), target=st.floats(0.05, 1.0))
def test_the_threshold_reaches_its_target_and_no_higher_one_does(seed, target):
    draw = np.random.default_rng(seed)
    y, score = np.append(draw.random(40) < 0.5, [True, False]), draw.random(42)
    threshold = m.threshold_for_sensitivity(y, score, target)
    assert m.sensitivity(y, score, threshold) >= target - 1e-9
    assert m.sensitivity(y, score, np.nextafter(threshold, 2)) < target


def test_specificity_at_sensitivity():
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    score = np.array([0.9, 0.8, 0.7, 0.1, 0.75, 0.6, 0.05, 0.0])
    assert m.specificity_at_sensitivity(y, score, 0.75) == 0.75  # threshold 0.7
    assert m.specificity_at_sensitivity(y, score, 1.0) == 0.5  # threshold 0.1


def test_several_classes_against_sklearn():
    draw = np.random.default_rng(1)
    truth, guess = draw.integers(0, 3, 90), draw.integers(0, 3, 90)
    np.testing.assert_array_equal(m.confusion_matrix(truth, guess, 3), sk.confusion_matrix(truth, guess))
    assert m.balanced_accuracy(truth, guess) == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, guess)
    for number, (name, row) in enumerate(m.per_class(truth, guess, "abc").items()):
        right = sk.accuracy_score(truth == number, guess == number)
        expected = (right, precision[number], recall[number], f1[number], support[number])
        assert tuple(row.values()) == pytest.approx(expected), name
        assert list(row) == ["accuracy", "precision", "recall", "f1", "support"]


def test_a_class_never_answered_has_no_precision():
    row = m.per_class([0, 1], [0, 0], ["a", "b", "c"])
    assert np.isnan(row["b"]["precision"])
    assert row["b"]["recall"] == 0
    assert np.isnan(row["c"]["recall"])
    assert [row[name]["accuracy"] for name in "abc"] == [0.5, 0.5, 1.0]


def test_macro_figures_are_means_over_the_classes_with_films():
    truth, guess = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 3, 0, 1, 0])  # 2 never answered, 3 without films
    for name, own in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        expected = own(truth, guess, labels=[0, 1, 2], average="macro", zero_division=0)
        assert m.macro(truth, guess, 4, name) == pytest.approx(expected), name
    assert m.macro(truth, guess, 4, "recall") == pytest.approx(m.balanced_accuracy(truth, guess))
    assert np.isnan(m.macro(truth[:0], guess[:0], 4, "f1"))


@pytest.mark.parametrize(
    ("confidence", "correct", "expected"),
    [
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0, 1.0], [True, False], 0.5),
        ([0.7] * 10, [True] * 7 + [False] * 3, 0.0),
        ([0.9, 0.1], [False, False], 0.5),
        ([], [], np.nan),
    ],
)
def test_ece(confidence, correct, expected):
    assert m.ece(confidence, correct) == pytest.approx(expected, nan_ok=True, abs=1e-9)


def test_ece_lies_in_its_own_interval():
    """Plain percentiles lie above it: a sample with replacement has a higher ECE than the films themselves."""
    levels = (np.arange(15) + 0.5) / 15
    p = np.repeat(levels, 10)
    y = np.concatenate([np.arange(10) < round(10 * level) for level in levels])  # as right as ten films can be
    films = np.arange(150)
    plain = m.bootstrap(lambda i: m.ece(p[i], y[i]), films)
    centred = m.bootstrap_ece(p, y, films)
    assert plain.low > plain.value  # else this tells nothing
    assert centred.low < centred.value == plain.value < centred.high
    assert plain.high - centred.high == pytest.approx(0.08, abs=0.03)  # what 10 films a bin stray by chance


def test_an_interval_of_ece_ends_at_zero():
    figure = m.bootstrap_ece([0.5] * 40, [True, False] * 20, np.arange(40))
    assert figure.value == figure.low == 0 < figure.high
    assert np.isnan(m.bootstrap_ece([], [], []).value)


def test_centring_leaves_an_unbiased_figure_alone():
    values = np.random.default_rng(6).normal(0, 1, 60)
    plain, centred = (m.bootstrap(lambda i: values[i].mean(), np.arange(60), centred=c) for c in (False, True))
    assert (centred.low, centred.high) == pytest.approx((plain.low, plain.high), abs=0.02)


def test_temperature_undoes_overconfidence():
    draw = np.random.default_rng(2)
    honest = draw.normal(0, 1.5, (4000, 3))
    labels = np.array([draw.choice(3, p=p) for p in m.softmax(honest)])
    assert m.fit_temperature(3.0 * honest, labels) == pytest.approx(3.0, rel=0.1)
    assert m.fit_temperature(honest / 2, labels) == pytest.approx(0.5, rel=0.1)


@given(logits=arrays(float, (6, 4), elements=st.floats(-30, 30)), temperature=st.floats(0.1, 10))
def test_temperature_keeps_the_answer(logits, temperature):
    hot = m.softmax(logits / temperature)
    np.testing.assert_allclose(hot.sum(axis=1), 1)
    assert (hot[np.arange(6), m.softmax(logits).argmax(axis=1)] >= hot.max(axis=1) - 1e-12).all()


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(3)
    inside = 0
    for repeat in range(60):
        values = draw.normal(0, 1, 80)
        figure = m.bootstrap_mean(values, np.arange(80), repeats=300, seed=repeat)
        inside += figure.low <= 0 <= figure.high
    assert 50 <= inside <= 60


def test_bootstrap_resamples_patients_and_not_films():
    """Ten copies of each film say nothing new: the interval must not shrink."""
    values = np.random.default_rng(4).normal(0, 1, 40)
    single = m.bootstrap_mean(values, np.arange(40))
    copied = m.bootstrap_mean(np.repeat(values, 10), np.repeat(np.arange(40), 10))
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.1)
    assert copied.n == 400


def test_bootstrap_of_nothing_and_of_nan():
    assert m.bootstrap_mean([], []).n == 0
    figure = m.bootstrap_mean([1.0, np.nan, 3.0], ["a", "b", "c"])
    assert (figure.value, figure.n) == (2.0, 2)
    assert m.Figure(np.nan, np.nan, np.inf, 0).to_json() == {"value": None, "ci95": [None, None], "n": 0}


A, B, FAR = Box(0, 0, 10, 10), Box(20, 20, 10, 10), Box(80, 80, 5, 5)


@pytest.mark.parametrize(
    ("films", "expected"),
    [
        ([([(A, 0.9)], [A])], 1.0),
        ([([], [A])], 0.0),
        ([([(FAR, 0.9)], [A])], 0.0),
        ([([(FAR, 0.9), (A, 0.8)], [A])], 0.5),  # a false alarm first
        ([([(A, 0.9), (FAR, 0.8)], [A])], 1.0),  # a false alarm last
        ([([(A, 0.9), (A, 0.8)], [A, B])], 0.5),  # the same lesion claimed twice
        ([([(A, 0.9)], [A]), ([(FAR, 0.95)], [B])], 0.25),
        ([([(A, 0.9)], [])], np.nan),
    ],
)
def test_average_precision_of_boxes(films, expected):
    assert boxes.average_precision(films) == pytest.approx(expected, nan_ok=True)


@given(seed=st.integers(0, 200))
@settings(max_examples=50)
def test_average_precision_of_boxes_stays_in_range(seed):
    draw = np.random.default_rng(seed)

    def some(n):
        return [Box(*draw.uniform(0, 50, 2), *draw.uniform(1, 30, 2)) for _ in range(n)]

    films = [([(box, draw.random()) for box in some(draw.integers(0, 5))], some(draw.integers(1, 4))) for _ in range(5)]
    assert 0 <= boxes.average_precision(films) <= 1


def test_peak_hit_and_share():
    heat = np.zeros((10, 20), np.float32)
    assert boxes.peak(heat) is None
    assert boxes.hit(None, [A]) == 0
    heat[3, 15] = 2
    heat[8, 2] = 1
    assert boxes.peak(heat) == (15.5, 3.5)
    assert boxes.hit(boxes.peak(heat), [FAR, Box(15, 3, 1, 1)]) == 1
    assert boxes.hit(boxes.peak(heat), [Box(16, 3, 1, 1)]) == 0
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 1
    assert boxes.share_inside(heat, mask) == pytest.approx(2 / 3)
    assert np.isnan(boxes.share_inside(0 * heat, mask))
    assert boxes.best_iou([], [A]) == 0
    assert boxes.best_iou([FAR, A], [B, A]) == 1


def test_specificity_at_sensitivity_of_no_positives_is_undefined():
    assert np.isnan(m.specificity_at_sensitivity(np.zeros(4, bool), np.arange(4.0)))
