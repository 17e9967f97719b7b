"""Label, score, screening answer and sets, from probabilities alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_pipeline.models.figures.metrics import softmax
from cxr_pipeline.stages.decisions import Rules, decided_error
from cxr_pipeline.stages.scores import Scale, fit_scale, probability_at, probability_of, score_of, shown
from cxr_pipeline.stages.sets import (
    NEGATIVE,
    POSITIVE,
    UNSURE,
    Sets,
    conformal_bound,
    coverage,
    fit_sets,
    undecided,
    useful_sets,
)
from cxr_pipeline.stages.shares import reweighted, shares_by_em, shares_by_moments

CLASSES = ["TB", "NTB", "NORM"]
probability = st.floats(0, 1)
inner = st.floats(1e-6, 1 - 1e-6)
scales = st.builds(Scale, st.floats(0.1, 12), st.floats(0.1, 12))


def films(n, shares, draw, apart=2.0):
    """Labels and calibrated probabilities of a Gaussian model with class means `apart` from each other."""
    labels = draw.choice(3, n, p=shares)
    x = draw.normal(size=(n, 3)) + apart * np.eye(3)[labels]
    return labels, softmax(apart * x + np.log(shares))


# --- score -----------------------------------------------------------------------------------------------------------


@given(probability, probability, inner, scales)
def test_score_is_monotone_and_bounded(a, b, threshold, scale):
    low, high = sorted((a, b))
    first, second = score_of(low, threshold, scale), score_of(high, threshold, scale)
    assert 0 <= first <= second <= 100


@given(probability, inner, scales)
def test_score_reaches_50_exactly_at_the_threshold(p, threshold, scale):
    assert score_of(threshold, threshold, scale) == 50
    assert (score_of(p, threshold, scale) >= 50) == (p >= threshold)
    assert (shown(score_of(p, threshold, scale)) >= 50) == (p >= threshold)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.builds(Scale, st.floats(1.5, 6), st.floats(1.5, 6)))
def test_probability_of_is_the_inverse(p, threshold, scale):
    assert probability_of(score_of(p, threshold, scale), threshold, scale) == pytest.approx(p, abs=1e-8)


def test_default_scale_is_the_ratio_of_odds():
    assert score_of(0.5, 0.2) == pytest.approx(100 * 4 / 5)  # odds 1 against odds 1/4: four to one


def test_anchors_of_a_scale_are_5_and_95():
    scale = Scale(below=3.0, above=1.5)
    at = math.log(0.2 / 0.8)
    assert score_of(1 / (1 + math.exp(-(at - 3.0))), 0.2, scale) == pytest.approx(5)
    assert score_of(1 / (1 + math.exp(-(at + 1.5))), 0.2, scale) == pytest.approx(95)


def test_scores_keep_their_meaning_when_a_network_sharpens_its_probabilities():
    draw = np.random.default_rng(0)
    y = draw.random(4000) < 0.4
    x = draw.normal(size=4000) + 2 * y
    first, second = 1 / (1 + np.exp(-(x - 1))), 1 / (1 + np.exp(-(4 * x - 9)))  # the same ranking, other numbers
    scores = []
    for p in (first, second):
        threshold = np.sort(p[y])[int(0.1 * y.sum())]
        scale = fit_scale(p, y, threshold)
        scores.append(np.array([score_of(one, threshold, scale) for one in p]))
    assert np.abs(scores[0] - scores[1]).max() < 0.5
    assert np.percentile(scores[0][~y], 5) == pytest.approx(5, abs=0.2)
    assert np.percentile(scores[0][y], 95) == pytest.approx(95, abs=0.2)


@pytest.mark.parametrize("threshold", [0.0, 1e-300, 1e-12, 0.999999, 1.0])
def test_extreme_thresholds_have_finite_scores(threshold):
    for p in (0.0, 1e-320, 0.5, 1.0):
        score = score_of(p, threshold)
        assert 0 <= score <= 100
        assert (score >= 50) == (p >= threshold)


@given(inner, st.integers(0, 1000), inner, scales)
def test_a_cut_off_decides_on_the_score_as_shown(p, tenths, threshold, scale):
    cutoff = tenths / 10
    rules = Rules("TB", threshold, scale=scale, cutoff=cutoff)
    films = {"TB": p, "NORM": 1 - p}
    assert (rules.screen(films) == POSITIVE) == (shown(rules.score(films)) >= cutoff)
    lowest = probability_at(cutoff, threshold, scale)
    if abs(p - lowest) > 1e-9:
        assert (rules.screen(films) == POSITIVE) == (p > lowest)


def test_scores_outside_0_to_100_are_refused():
    with pytest.raises(ValueError, match="between 0 and 100"):
        probability_of(100.5, 0.2)


# --- label and screen ------------------------------------------------------------------------------------------------


def test_label_is_the_likeliest_class_and_screen_another_question():
    answer = Rules("TB", 0.14, "NORM").decide({"TB": 0.3, "NTB": 0.1, "NORM": 0.6})
    assert (answer.label, answer.screen) == ("NORM", POSITIVE)
    assert answer.abnormal == pytest.approx(0.4)
    assert answer.doubts == ()


def test_old_cards_decide_by_their_threshold():
    rules = Rules.of({"positive": "TB", "threshold": 0.14, "normal": "NORM", "threshold_ci95": [0.1, 0.2]})
    assert rules.sets is None
    assert rules.scale == Scale()
    assert rules.decide({"TB": 0.13, "NTB": 0.37, "NORM": 0.5}).screen == NEGATIVE


def test_a_card_keeps_scale_and_sets():
    sets = Sets(0.1, 0.1234567, 0.7654321, {"TB": 0.1, "NTB": 0.05, "NORM": 0.2})
    card = {"positive": "TB", "threshold": 0.14, "score": Scale(3.1, 2.2).to_json(), "sets": sets.to_json()}
    rules = Rules.of(card, cutoff=40)
    assert rules.scale == Scale(3.1, 2.2)
    assert rules.sets.positive <= sets.positive  # to six digits, and never narrower
    assert rules.sets.negative >= sets.negative
    assert rules.sets.negative == pytest.approx(sets.negative, abs=2e-6)
    assert rules.cutoff == 40


def test_unsure_where_both_answers_or_neither_are_possible():
    sets = Sets(0.1, positive=0.2, negative=0.6)
    assert [sets.answer(p) for p in (0.1, 0.4, 0.7)] == [NEGATIVE, UNSURE, POSITIVE]
    apart = Sets(0.1, positive=0.6, negative=0.2)
    assert [apart.answer(p) for p in (0.1, 0.4, 0.7)] == [NEGATIVE, UNSURE, POSITIVE]


def test_doubts_say_that_the_kind_is_open():
    sets = Sets(0.1, positive=0.1, negative=0.3, classes={"TB": 0.2, "NTB": 0.2, "NORM": 0.2})
    answer = Rules("TB", 0.2, "NORM", sets=sets).decide({"TB": 0.5, "NTB": 0.4, "NORM": 0.1})
    assert answer.screen == POSITIVE
    assert answer.doubts == ("abnormal, kind unsure: it may be TB or NTB",)
    both = Rules("TB", 0.2, "NORM", sets=sets).decide({"TB": 0.25, "NTB": 0.2, "NORM": 0.55})
    assert both.screen == UNSURE
    assert both.doubts[0].startswith("unsure: with a score of ")


# --- sets ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.floats(0.01, 0.5))
def test_the_bound_is_the_floor_of_risk_times_n_plus_1th_smallest(n, risk):
    own = np.random.default_rng(n).random(n)
    rank = math.floor(risk * (n + 1) + 1e-9)
    assert conformal_bound(own, risk) == (np.sort(own)[rank - 1] if rank else 0.0)


def test_weights_of_one_change_nothing_and_half_weights_are_half_a_film():
    own = np.random.default_rng(0).random(99)
    assert conformal_bound(own, 0.1, np.ones(99)) == conformal_bound(own, 0.1)
    twice = np.repeat(own, 2)
    assert conformal_bound(twice, 0.1, np.full(198, 0.5)) == pytest.approx(conformal_bound(own, 0.1))


def test_too_few_films_leave_every_answer_possible():
    sets = fit_sets(np.array([[0.9, 0.05, 0.05]] * 5), np.zeros(5, int), CLASSES, "TB")
    assert (sets.positive, sets.negative) == (0.0, 1.0)
    assert sets.answer(0.5) == UNSURE
    assert sets.kinds({"TB": 0.0, "NTB": 0.5, "NORM": 0.5}) == CLASSES


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.2])
def test_coverage_by_class_holds_whatever_the_mix_of_classes(risk):
    """Mean over draws: the share of a class's films that lose their own answer is at most the risk, and near it."""
    lost, wrong_side = [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        labels, p = films(400, np.array([0.3, 0.3, 0.4]), draw)
        sets = fit_sets(p, labels, CLASSES, "TB", risk)
        new, moved = films(3000, np.array([0.05, 0.15, 0.8]), draw)
        moved = reweighted(moved, np.array([0.05, 0.15, 0.8]), np.array([0.3, 0.3, 0.4]))  # as the weights would answer
        covered = coverage(moved, new, CLASSES, sets)
        lost.append([1 - covered[name] for name in CLASSES])
        screens = np.array([sets.answer(one) for one in moved[:, 0]])
        wrong_side.append((screens[new == 0] == NEGATIVE).mean())
    lost = np.mean(lost, axis=0)
    assert (lost < risk + 0.012).all(), lost
    assert (lost > risk - 0.03).all(), lost
    assert np.mean(wrong_side) < risk + 0.012


def test_risk_trades_the_undecided_against_errors():
    draw = np.random.default_rng(1)
    labels, p = films(4000, np.array([0.3, 0.3, 0.4]), draw, apart=1.4)
    shares, errors = [], []
    for risk in (0.05, 0.1, 0.15):
        sets = fit_sets(p[:2000], labels[:2000], CLASSES, "TB", risk)
        screens = [sets.answer(one) for one in p[2000:, 0]]
        shares.append(undecided(screens))
        errors.append(decided_error(screens, labels[2000:] == 0))
    assert shares == sorted(shares, reverse=True)
    assert errors == sorted(errors)
    assert shares[1] < 0.5


def test_figures_without_films_are_not_numbers():
    assert math.isnan(undecided([]))
    assert math.isnan(decided_error([UNSURE], np.array([True])))
    nothing = coverage(np.full((1, 3), 1 / 3), np.array([0]), CLASSES, Sets(0.1, 0, 1, {}))
    assert math.isnan(nothing["NTB"])
    assert nothing["TB"] == 1


# --- shares of the classes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [(0.1, 0.2, 0.7), (0.6, 0.2, 0.2), (0.05, 0.01, 0.94)])
def test_em_finds_the_shares_of_the_classes(true):
    prior = np.array([0.4, 0.2, 0.4])
    labels, p = films(6000, np.array(true), np.random.default_rng(2))
    shares = shares_by_em(reweighted(p, np.array(true), prior), prior)
    assert np.abs(shares - np.bincount(labels, minlength=3) / 6000).max() < 0.03


@pytest.mark.parametrize("true", [(0.1, 0.2, 0.7), (0.6, 0.2, 0.2)])
def test_moments_find_the_shares_of_the_classes(true):
    prior = np.array([0.4, 0.2, 0.4])
    draw = np.random.default_rng(3)
    known, p_known = films(6000, prior, draw)
    _, p = films(6000, np.array(true), draw)
    p = reweighted(p, np.array(true), prior)
    means = np.array([p_known[known == c].mean(axis=0) for c in range(3)])
    assert np.abs(shares_by_moments(means, p.mean(axis=0)) - true).max() < 0.04


def test_shares_by_moments_never_leave_the_simplex():
    shares = shares_by_moments(np.eye(3) * 0.8 + 0.0667, np.array([1.4, -0.3, -0.1]))
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(1)


def test_reweighting_there_and_back_changes_nothing():
    p = np.random.default_rng(4).dirichlet(np.ones(3), 20)
    a, b = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.2, 0.2])
    assert reweighted(reweighted(p, a, b), b, a) == pytest.approx(p)


def test_a_weak_network_pays_in_risk_for_what_it_decides():
    found = []
    for apart in (2.5, 1.0, 0.0):
        labels, p = films(3000, np.array([0.3, 0.3, 0.4]), np.random.default_rng(5), apart=apart)
        sets = useful_sets(p, labels, CLASSES, "TB")
        found.append(sets.risk)
    assert found == sorted(found)
    assert found[0] == 0.05
    assert found[-1] == 0.25
