"""A site's calibration: right on films like its own, modest with few, refused where it does not belong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from cxr_pipeline.cli.main import _call
from cxr_pipeline.models.figures import metrics
from cxr_pipeline.stages import load_chain
from cxr_pipeline.train.calibration import CalibrationError, _auroc_within, _cross_validated, _folds, apply_site, fit


def draw(n, shares, scale, seed=0):
    """Logits of a classifier whose scale and class mix are another site's, and the true labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=shares)
    logits = rng.normal(0, 1, (n, 3)) + 1.5 * np.eye(3)[labels]
    return scale * logits, labels


def test_probabilities_become_right():
    logits, labels = draw(4000, [0.05, 0.15, 0.8], 3.0)
    fitted = fit(logits, labels)
    fresh, truth = draw(4000, [0.05, 0.15, 0.8], 3.0, seed=1)
    before, after = metrics.softmax(fresh)[:, 0], fitted.probabilities(fresh)[:, 0]
    assert metrics.ece(before, truth == 0) > 0.05
    assert metrics.ece(after, truth == 0) < 0.02


def test_without_films_the_weights_answer_stays():
    fitted = fit(np.zeros((0, 3)), np.zeros(0, int))
    assert fitted.temperature == pytest.approx(1)
    np.testing.assert_allclose(fitted.offsets, 0)


def test_a_class_that_the_films_lack_stays_possible():
    logits, labels = draw(200, [0.5, 0.0, 0.5], 1.0)
    assert fit(logits, labels).probabilities(np.array([[0.0, 8.0, 0.0]]))[0, 1] > 0.5


def cross_validated(logits, labels, patients=None):
    return _cross_validated(logits, labels, np.arange(len(labels)) if patients is None else patients, 0, 0.9)[0]


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_cross_validated_auroc_is_that_of_the_films(scale):
    """Each fold's fit moves the scores; of a nearly constant model by more than they differ among themselves."""
    logits, labels = draw(100, [0.5, 0.0, 0.5], scale, seed=3)
    area = metrics.auroc(labels == 0, metrics.softmax(logits)[:, 0])
    held = cross_validated(logits, labels)
    assert held["auroc"].value == pytest.approx(area, abs=0.05)
    assert held["auroc"].low < held["auroc"].value < held["auroc"].high
    assert held["ece"].low <= held["ece"].value <= held["ece"].high


def test_the_auroc_within_folds_weighs_them_by_their_pairs():
    y = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    score = np.array([0.1, 0.9, 0.9, 0.3, 0.5, 0.1, 0.9])
    fold = np.array([0, 0, 1, 1, 1, 1, 2])  # areas 0 of one pair and 3/4 of four; the last has none
    assert _auroc_within(y, score, fold) == pytest.approx(3 / 5)
    assert np.isnan(_auroc_within(y[-1:], score[-1:], fold[-1:]))


def test_films_that_no_other_fit_can_judge_are_in_no_figure():
    logits, labels = draw(60, [0.5, 0.0, 0.5], 1.0)
    assert {figure.n for figure in cross_validated(logits, labels).values()} == {60}

    of_one = np.where(labels == 0, -1, np.arange(60))  # all that is positive lies in one patient
    held = cross_validated(logits, labels, of_one)
    fold = _folds(labels == 0, of_one)
    apart = fold == fold[labels == 0][0]
    assert {figure.n for figure in held.values()} == {int((~apart).sum())}
    assert np.isnan(held["auroc"].value)
    assert np.isnan(held["sensitivity"].value)
    assert 0 <= held["specificity"].value <= 1

    for figure in cross_validated(logits, labels, np.zeros(60)).values():  # one patient, and nobody else to fit on
        assert figure.to_json() == {"value": None, "ci95": [None, None], "n": 0}


def test_folds_share_out_patients_with_and_without_the_positive_class():
    patients = np.repeat(np.arange(30), 2)
    is_positive = np.isin(patients, [3, 7, 8, 20, 29]) & (np.arange(60) % 2 == 0)
    fold = _folds(is_positive, patients)
    assert sorted(fold[is_positive]) == [0, 1, 2, 3, 4]
    assert np.bincount(fold).tolist() == [12] * 5
    assert (fold[::2] == fold[1::2]).all()  # a patient's films stay together


@pytest.fixture
def site(tiny_chain, samples, tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_pipeline.train.calibration.LEAST", 3)  # the samples are few
    path = tmp_path / "ours.yaml"
    call = ["calibrate", "--data", str(samples), "--weights", str(tiny_chain), "--site", "ours", "--out", str(path)]
    assert _call(call) == 0
    return path


def test_a_run_obeys_the_site_file(site, tiny_chain, samples, tmp_path):
    facts = yaml.safe_load(site.read_text())
    assert facts["site"] == "ours"
    assert facts["films"]["n"] == 18
    chain = load_chain(tiny_chain)
    chain = apply_site(site, chain)
    assert chain[1].threshold == facts["threshold"]
    command = ["run", str(samples.parent), "--weights", str(tiny_chain)]
    for name, more in (("plain", []), ("ours", ["--site", str(site)])):
        assert _call([*command, "--out", str(tmp_path / name), *more]) in (0, 1)
    plain, ours = ((tmp_path / name / "results.csv").read_text() for name in ("plain", "ours"))
    assert plain != ours
    assert _call([*command, "--out", str(tmp_path / "plain"), "--site", str(site)]) == 2  # never mixed


@pytest.mark.parametrize("target", ["0.5", "0.7", "0.9", "0.95"])
def test_the_target_holds_on_the_films_that_it_was_fitted_on(target, tiny_chain, samples, tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_pipeline.train.calibration.LEAST", 3)
    path = tmp_path / "ours.yaml"
    at = ["--data", str(samples), "--weights", str(tiny_chain), "--out"]
    assert _call(["calibrate", *at, str(path), "--target-sensitivity", target]) == 0
    judged = ["evaluate", "--stage", "classify", *at, str(tmp_path), "--split", "all", "--site", str(path)]
    assert _call(judged) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["sensitivity"]["value"] >= float(target)


def test_the_site_file_answers_as_the_fit_does(site, tiny_chain, samples):
    """Temperature and offsets of the file apply to raw logits; the fit was made on the weights' own answers."""
    from cxr_pipeline.data.manifest import read_manifest
    from cxr_pipeline.train.calibration import _judge

    chain = load_chain(tiny_chain, "classify")
    raw, labels, _ = _judge(read_manifest(samples), chain)
    fitted = fit(raw / chain[1].temperature + chain[1].offsets, labels)
    expected = fitted.probabilities(raw / chain[1].temperature + chain[1].offsets)
    chain = apply_site(site, chain)
    np.testing.assert_allclose(metrics.softmax(raw / chain[1].temperature + chain[1].offsets), expected, atol=1e-3)


def test_too_few_films_are_refused(tiny_chain, samples, tmp_path, capsys):
    call = ["calibrate", "--data", str(samples), "--weights", str(tiny_chain), "--out", str(tmp_path / "s.yaml")]
    assert _call(call) == 2
    assert "at least 10 of each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda facts: facts["weights"].update(classify="0" * 16), "other 'classify' weights"),
        (lambda facts: facts["offsets"].pop("NTB"), "about the classes"),
        (lambda facts: facts.pop("threshold"), "cannot be read as a site file"),
    ],
)
def test_what_does_not_fit_is_refused(site, tiny_chain, change, why):
    facts = yaml.safe_load(site.read_text())
    change(facts)
    site.write_text(yaml.safe_dump(facts))
    with pytest.raises(CalibrationError, match=why):
        apply_site(site, load_chain(tiny_chain))


def test_no_site_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"nowhere\.yaml"):
        apply_site(tmp_path / "nowhere.yaml", [])
