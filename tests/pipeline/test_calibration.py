"""A site's calibration: right on films like its own, modest with few, refused where it does not belong."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from models import metrics
from pipeline.calibration import CalibrationError, apply_site, fit
from pipeline.cli import _call
from stages import load_chain


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


@pytest.fixture
def site(tiny_chain, samples, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.calibration.LEAST", 3)  # the samples are few
    path = tmp_path / "ours.yaml"
    call = ["calibrate", "--data", str(samples), "--weights", str(tiny_chain), "--site", "ours", "--out", str(path)]
    assert _call(call) == 0
    return path


def test_a_run_obeys_the_site_file(site, tiny_chain, samples, tmp_path):
    said = yaml.safe_load(site.read_text())
    assert said["site"] == "ours"
    assert said["films"]["n"] == 18
    chain = load_chain(tiny_chain)
    apply_site(site, chain)
    assert chain[1].threshold == said["threshold"]
    command = ["run", str(samples.parent), "--weights", str(tiny_chain)]
    for name, more in (("plain", []), ("ours", ["--site", str(site)])):
        assert _call([*command, "--out", str(tmp_path / name), *more]) in (0, 1)
    plain, ours = ((tmp_path / name / "results.csv").read_text() for name in ("plain", "ours"))
    assert plain != ours
    assert _call([*command, "--out", str(tmp_path / "plain"), "--site", str(site)]) == 2  # never mixed


def test_the_site_file_answers_as_the_fit_does(site, tiny_chain, samples):
    """Temperature and offsets of the file apply to raw logits; the fit was made on the weights' own answers."""
    from data.manifest import read_manifest
    from pipeline.calibration import _judge

    chain = load_chain(tiny_chain, "classify")
    raw, labels, _ = _judge(read_manifest(samples), chain)
    fitted = fit(raw / chain[1].temperature + chain[1].offsets, labels)
    expected = fitted.probabilities(raw / chain[1].temperature + chain[1].offsets)
    apply_site(site, chain)
    np.testing.assert_allclose(metrics.softmax(raw / chain[1].temperature + chain[1].offsets), expected, atol=1e-3)


def test_too_few_films_are_refused(tiny_chain, samples, tmp_path, capsys):
    call = ["calibrate", "--data", str(samples), "--weights", str(tiny_chain), "--out", str(tmp_path / "s.yaml")]
    assert _call(call) == 2
    assert "at least 10 of each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda said: said["weights"].update(classify="0" * 16), "other 'classify' weights"),
        (lambda said: said["offsets"].pop("NTB"), "about the classes"),
        (lambda said: said.pop("threshold"), "cannot be read as a site file"),
    ],
)
def test_what_does_not_fit_is_refused(site, tiny_chain, change, why):
    said = yaml.safe_load(site.read_text())
    change(said)
    site.write_text(yaml.safe_dump(said))
    with pytest.raises(CalibrationError, match=why):
        apply_site(site, load_chain(tiny_chain))


def test_no_site_file_is_named(tmp_path):
    with pytest.raises(CalibrationError, match=r"nowhere\.yaml"):
        apply_site(tmp_path / "nowhere.yaml", [])
