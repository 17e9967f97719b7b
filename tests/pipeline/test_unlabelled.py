"""A site from films without labels, by simulation: found where the films tell, refused where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.models.figures.metrics import sensitivity, softmax, specificity
from cxr_pipeline.stages.reference import Reference, differences, fit_reference
from cxr_pipeline.train.unlabelled import align, calibrated, densest, fit_unlabelled, with_shares

CLASSES = ["TB", "NTB", "NORM"]
CENTRES = np.array([[1.5, 0.0, -1.5], [-0.5, 1.5, -1.0], [-1.0, -1.0, 1.5]])


def hospital(n, shares, seed, shift=(0.0, 0.0, 0.0), stretch=1.0):
    """Logits (n, 3) and labels of a hospital whose films are moved and stretched."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(3, n, p=shares)
    return stretch * (CENTRES[labels] + draw.normal(0, 0.9, (n, 3))) + np.array(shift), labels


@pytest.fixture(scope="module")
def decisions():
    draw = np.random.default_rng(9)
    parts = [hospital(400, [0.3, 0.3, 0.4], seed, draw.normal(0, 0.5, 3)) for seed in range(6)]
    logits, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    reference = fit_reference(logits, labels, np.repeat(list("abcdef"), 400))
    return {"classes": CLASSES, "positive": "TB", "temperature": 1.0, "reference": reference.to_json()}


def test_a_reference_finds_the_classes_and_how_hospitals_differ(decisions):
    reference = Reference.of(decisions["reference"])
    np.testing.assert_allclose(
        reference.means - reference.means[-1], differences(CENTRES) - differences(CENTRES)[-1], atol=0.3
    )
    assert 0.1 < np.sqrt(reference.shift[0, 0]) < 1.5
    assert Reference.of(None) is None


def test_the_densest_place_is_that_of_the_largest_group():
    draw = np.random.default_rng(0)
    films = np.concatenate([draw.normal(-2, 0.5, (150, 2)), draw.normal(3, 2.0, (100, 2))])
    np.testing.assert_allclose(densest(films), [-2, -2], atol=0.35)


@pytest.mark.parametrize("shares", [(0.1, 0.1, 0.8), (0.3, 0.2, 0.5), (0.6, 0.1, 0.3)])
def test_shift_and_shares_are_found(decisions, shares):
    reference = Reference.of(decisions["reference"])
    errors, gaps = [], []
    for seed in range(6):
        logits, labels = hospital(200, shares, 100 + seed, shift=(0.8, 0.3, -0.2))
        found = align(differences(logits), reference)
        errors.append(found.shares - np.bincount(labels, minlength=3) / 200)
        place = differences(CENTRES)[-1] + np.array([1.0, 0.5])
        gaps.append(reference.means[-1] + found.shift - place)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.08
    assert np.abs(np.mean(gaps, axis=0)).max() < 0.4


def test_a_moved_hospital_is_decided_better_than_without_a_shift(decisions):
    """Half the way is gone, by choice (see _TOWARDS): the level gets better, not right."""
    reference, shift = Reference.of(decisions["reference"]), (1.2, 0.2, -0.4)
    films, _ = hospital(200, [0.2, 0.2, 0.6], 8, shift)
    own = fit_unlabelled(films, decisions)
    still = with_shares(differences(films) / decisions["temperature"], reference, np.zeros(2))
    slope, offsets, threshold, *_ = calibrated(still, reference, 0, 0.9)
    logits, labels = hospital(4000, [0.2, 0.2, 0.6], 9, shift)
    y = labels == 0
    shipped = softmax(slope * logits / decisions["temperature"] + offsets)[:, 0]
    p = softmax(logits / own.temperature + own.offsets)[:, 0]
    assert sensitivity(y, p, own.threshold) > 0.88
    assert specificity(y, p, own.threshold) > specificity(y, shipped, threshold) + 0.05
    low, high = own.threshold_ci95
    assert low <= own.threshold <= high
    assert (own.shares_ci95[:, 0] <= own.shares_ci95[:, 1]).all()


def test_known_labels_help_where_the_classes_are_far_from_where_they_were(decisions):
    logits, labels = hospital(120, [0.3, 0.3, 0.4], 11, shift=(-1.5, 0.5, 0.8))
    reference = Reference.of(decisions["reference"])
    truth = np.bincount(labels, minlength=3) / len(labels)
    blind = align(differences(logits), reference)
    helped = align(differences(logits), reference, np.where(np.arange(120) % 2, labels, -1))
    assert np.abs(helped.shares - truth).max() <= np.abs(blind.shares - truth).max() + 1e-9
    assert np.abs(helped.shares - truth).max() < 0.12


def test_films_that_do_not_tell_are_refused(decisions):
    few, _ = hospital(30, [0.3, 0.3, 0.4], 1)
    assert "30 films are too few" in fit_unlabelled(few, decisions).against
    one, _ = hospital(150, [0.0, 0.0, 1.0], 2)
    assert "one group" in fit_unlabelled(one, decisions).against
    assert fit_unlabelled(hospital(150, [0.3, 0.2, 0.5], 3)[0], decisions).against == ""


def test_the_same_films_give_the_same_file(decisions):
    logits, _ = hospital(120, [0.3, 0.2, 0.5], 4)
    first, second = fit_unlabelled(logits, decisions), fit_unlabelled(logits, decisions)
    assert first.threshold == second.threshold
    assert first.threshold_ci95 == second.threshold_ci95


def test_weights_without_a_reference_say_so(decisions):
    with pytest.raises(ValueError, match="no reference"):
        fit_unlabelled(np.zeros((60, 3)), {**decisions, "reference": None})
