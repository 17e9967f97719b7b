"""Reading a sample of a run's films: who is drawn with which chance, what is kept, and that its weights are right."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")


from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.reading.clicks import Clicks
from cxr_pipeline.reading.labels import agreement, kappa, label_of
from cxr_pipeline.reading.sampling import chances, draw
from cxr_pipeline.train import weighted
from cxr_pipeline.train.calibration import fit
from cxr_pipeline.train.training import prepare_manifest
from tests.pipeline.fake_chain import write_film


# ---- the sample ----
def test_chances_sum_to_what_is_asked_and_are_highest_near_the_threshold():
    scores = np.random.default_rng(0).beta(1, 4, 3000) * 100
    chance = chances(scores, 50.0, 200)
    assert chance.sum() == pytest.approx(200)
    assert (chance > 0).all()
    assert (chance <= 1).all()
    near, far = np.abs(scores - 50) < 3, scores < 10
    assert chance[near].mean() > 5 * chance[far].mean()
    assert chances(scores[:10], 50.0, 200).tolist() == [1.0] * 10


def test_films_are_drawn_as_often_as_their_chance_says():
    """And not only all of them: those that the first ten readings hold are drawn in proportion too."""
    scores = np.random.default_rng(1).random(60) * 100
    chance = chances(scores, 40.0, 20)
    all_, early = np.zeros(60), np.zeros(60)
    for seed in range(4000):
        drawn = draw(chance, scores, seed)
        assert len(set(drawn)) == len(drawn) == 20
        all_[drawn] += 1
        early[drawn[:10]] += 1
    assert np.abs(all_ / 4000 - chance).max() < 0.04  # five standard errors
    assert np.abs(early / 4000 - chance / 2).max() < 0.04


def test_every_beginning_is_spread_over_the_scores():
    scores = np.linspace(0, 100, 500)
    drawn = scores[draw(np.full(500, 0.2), scores, 3)]
    first = np.sort(drawn[:16])
    assert np.diff(first).max() < 20


def test_the_order_does_not_tell_a_blind_reader_the_score():
    """No rhythm: over many draws, two films in a row lie in the same half of the scores about as often as not."""
    scores = np.linspace(0, 100, 500)
    same = []
    for seed in range(100):
        high = scores[draw(np.full(500, 0.2), scores, seed)] >= 50
        same.append((high[1:] == high[:-1]).mean())
    assert 0.35 < np.mean(same) < 0.55  # 0.43 within eight of a kind; taking turns gives 0


# ---- weights: what the whole is for ----
def population(seed, n=20_000):
    """Logits of two classes at a site where 6 % are positive, two fifths of them looking mild."""
    random = np.random.default_rng(seed)
    y = random.random(n) < 0.06
    mild = random.random(n) < 0.4
    z = random.normal(np.where(y, np.where(mild, -1.0, 2.5), -2.0), np.where(y, 0.8, 1.1))
    return np.stack([z / 2, -z / 2], axis=1), np.where(y, 0, 1), y


def test_calibration_from_such_a_sample_is_right_with_weights_and_wrong_without():
    """The mean over 20 samples of 400 of 20,000 films, of what is fitted on the sample and true of all films."""
    gaps = {"weights": [], "none": []}
    for seed in range(20):
        logits, labels, y = population(seed)
        score = 100 / (1 + np.exp(-(logits[:, 0] - logits[:, 1])))
        chance = chances(score, 50.0, 400)
        drawn = draw(chance, score, seed)
        mass = weighted.weights_of([f"{1 / chance[one]:.6f}" for one in drawn])
        for name, own in (("weights", mass), ("none", None)):
            p = fit(logits[drawn], labels[drawn], own).probabilities(logits)[:, 0]
            threshold = weighted.threshold_for_sensitivity(y[drawn], p[drawn], 0.9, own)
            share = p.mean() - y.mean()
            sensitivity = (p[y] >= threshold).mean() - 0.9
            claimed = weighted.specificity(y[drawn], p[drawn] >= threshold, own)
            gaps[name].append((share, sensitivity, claimed - (p[~y] < threshold).mean()))
    share, sensitivity, specificity = np.mean(gaps["weights"], axis=0)  # measured: 0.000, -0.027, 0.001
    assert abs(share) < 0.005
    assert sensitivity > -0.08
    assert abs(specificity) < 0.01
    share, sensitivity, specificity = np.mean(gaps["none"], axis=0)  # measured: -0.010, -0.161, -0.389
    assert share < -0.007
    assert sensitivity < -0.12
    assert specificity < -0.3


def test_weighted_figures_are_those_of_films_given_so_often():
    random = np.random.default_rng(5)
    y, score, times = random.random(80) < 0.4, random.random(80).round(1), random.integers(1, 5, 80)
    often = np.repeat(np.arange(80), times)
    mass = times.astype(float)
    assert weighted.auroc(y, score, mass) == pytest.approx(weighted.auroc(y[often], score[often], None))
    assert weighted.ece(score, y, mass) == pytest.approx(weighted.ece(score[often], y[often], None))
    called = score >= 0.5
    assert weighted.sensitivity(y, called, mass) == pytest.approx(weighted.sensitivity(y[often], called[often], None))
    for target in (0.5, 0.8, 0.95):
        one = weighted.threshold_for_sensitivity(y, score, target, mass)
        assert one == weighted.threshold_for_sensitivity(y[often], score[often], target, None)


def test_weights_are_checked():
    assert weighted.weights_of(["", ""]) is None
    assert weighted.weights_of(["2", "2.0"]) is None
    assert weighted.weights_of(["1", "3"]).sum() == pytest.approx(16 / 10)
    for cells in (["1", ""], ["1", "0"], ["1", "many"], ["1", "-2"], ["nan", "1"]):
        with pytest.raises(weighted.WeightError, match="above 0"):
            weighted.weights_of(cells)


# ---- readers ----
def test_kappa_by_hand():
    """Cohen 1960: 25 of 50 both yes, 15 both no, 5 and 5 apart: agreed 0.8, by chance 0.52."""
    first = ["y"] * 25 + ["y"] * 5 + ["n"] * 5 + ["n"] * 15
    second = ["y"] * 25 + ["n"] * 5 + ["y"] * 5 + ["n"] * 15
    assert kappa(first, second) == pytest.approx((0.8 - 0.52) / 0.48)
    assert np.isnan(kappa(["y"], ["y"]))
    (pair,) = agreement({"b": dict(enumerate(second)), "a": dict(enumerate(first)) | {99: "y"}})
    assert pair["readers"] == ["a", "b"]
    assert pair["films"] == 50
    assert pair["low"] < pair["kappa"] < pair["high"]


def test_a_label_is_what_most_readers_said():
    assert label_of(["TB"], ["TB", "NORM"]) == "TB"
    assert label_of(["TB", "unsure"], ["TB", "NORM"]) == "TB"
    assert label_of(["TB", "NORM"], ["TB", "NORM"]) == ""
    assert label_of(["TB", "NORM", "TB"], ["TB", "NORM"]) == "TB"
    assert label_of(["bad"], ["TB", "NORM"]) == ""


def test_clicks_survive_a_torn_line(tmp_path):
    path = tmp_path / "a.jsonl"
    clicks = Clicks(path)
    clicks.add("one", "TB", seconds=1.5)
    clicks.add("two", "NORM")
    clicks.add("one", "NORM")
    with path.open("ab") as file:
        file.write(b'{"id": "three", "answ')
    again = Clicks(path)
    assert again.answers == {"two": "NORM", "one": "NORM"}
    again.add("three", "bad")
    assert Clicks(path).answers == {"two": "NORM", "one": "NORM", "three": "bad"}
    assert path.stat().st_mode & 0o077 == 0


def test_training_says_that_it_does_not_count_by_weight(tmp_path, caplog):
    (tmp_path / "labels.csv").write_text("image,label,weight\na.png,TB,3\nb.png,NORM,1\n")
    for name in "ab":
        write_film(tmp_path / f"{name}.png", 1)
    with caplog.at_level("INFO", "cxr.train"):
        prepare_manifest(tmp_path / "labels.csv", load_config("tb"))
    assert "'weight' is not used" in caplog.text


def test_a_disk_that_takes_half_a_line_keeps_no_answer_and_says_so(tmp_path, monkeypatch):
    clicks = Clicks(tmp_path / "a.jsonl")
    clicks.add("one", "TB")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr("cxr_pipeline.reading.clicks.os.write", lambda file, data: real(file, data[: len(data) // 2]))
        with pytest.raises(OSError, match="space"):
            clicks.add("two", "NORM")
    assert clicks.answers == {"one": "TB"}
    clicks.add("three", "NORM")  # and does not grow onto the half line
    assert Clicks(clicks.path).answers == {"one": "TB", "three": "NORM"}
