"""What a threshold finds and costs, against figures computed by hand."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import yaml

from cxr_pipeline.about import PROGRAM
from cxr_pipeline.cli.main import _call
from cxr_pipeline.data.files import csv_line
from cxr_pipeline.report.plan import Costs, PlanError, plan, sample_size, sample_sizes, table_of, yields
from cxr_pipeline.report.plan_files import write_plan
from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.results.outputs import columns
from cxr_pipeline.stages.decisions import Rules
from cxr_pipeline.stages.scores import score_of, shown


def test_a_programme_by_hand():
    """Prevalence 2 %, sensitivity 0.9, specificity 0.7, a film 2, a test 10, per 1,000 people."""
    out = yields(0.9, 0.7, Costs(0.02, 2, 10))
    assert out["true_positives"] == pytest.approx(18)  # 20 sick, 18 found
    assert out["false_positives"] == pytest.approx(294)  # 980 well, 30 % of them
    assert out["tests_per_case"] == pytest.approx(312 / 18)
    assert out["cost_per_case"] == pytest.approx((2000 + 3120) / 18)
    assert out["ppv"] == pytest.approx(18 / 312)
    assert out["npv"] == pytest.approx(686 / 688)


def test_where_no_case_is_found_figures_per_case_are_infinite():
    out = yields(0.0, 1.0, Costs(0.02, 2, 10))
    assert math.isinf(out["tests_per_case"])
    assert math.isinf(out["cost_per_case"])
    assert math.isnan(out["ppv"])
    assert out["npv"] == pytest.approx(0.98)


def test_sample_sizes_by_hand():
    assert sample_size(0.9, 0.1) == 139  # 1.96^2 * 0.09 / 0.05^2 = 138.3
    assert sample_size(0.7, 0.1) == 323  # 1.96^2 * 0.21 / 0.05^2 = 322.7
    assert sample_sizes(0.9, 0.7, 0.1, 0.02) == {"with": 139, "without": 323, "people": 6950}
    with pytest.raises(PlanError, match="between 0 and 1"):
        sample_size(0.9, 0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_looks_perfect_still_needs_films(share):
    """Wilson 1927: of n films all found, the interval is z^2 / (n + z^2) wide: 3.84 / (35 + 3.84) is under 0.1."""
    assert sample_size(share, 0.1) == 35
    assert sample_sizes(1.0, 0.7, 0.1, 0.02) == {"with": 35, "without": 323, "people": 1750}


def test_every_threshold_has_its_sensitivity_and_interval():
    y = np.array([True] * 4 + [False] * 6)
    score = np.array([20, 50, 70, 90, 10, 20, 30, 49.9, 60, 80])
    figures = table_of(y, score, [str(n) for n in range(10)], Costs())
    assert figures["sensitivity"][50].tolist()[0] == pytest.approx(3 / 4)  # 50 itself is positive
    assert figures["specificity"][50, 0] == pytest.approx(4 / 6)  # 49.9 is not
    assert figures["sensitivity"][0].tolist() == pytest.approx([1, 1, 1])
    assert (np.diff(figures["sensitivity"][:, 0]) <= 0).all()
    for values in figures.values():
        known = ~np.isnan(values).any(axis=1)
        assert (values[known, 1] <= values[known, 0]).all()
        assert (values[known, 0] <= values[known, 2]).all()


@pytest.fixture
def results(tmp_path):
    """80 films in results, 30 of them with TB, two more refused, and a manifest with age and sex."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "results"
    folder.mkdir()
    decisions = {"classes": ["TB", "NTB", "NORM"], "positive": "TB", "normal": "NORM", "threshold": 0.3}
    decisions |= {"temperature": 0.8, "offsets": {"TB": 0.1, "NTB": 0.0, "NORM": -0.1}}
    run = {"program": PROGRAM, "finished": True, "config": {"classify": decisions}, "bundles": {"classify": "abc"}}
    (folder / "run.json").write_text(json.dumps(run))
    lines, labels = [csv_line(columns(), {name: name for name in columns()})], ["image,label,age,sex,patient"]
    for number in range(82):
        sick = number < 30
        p = float(np.clip(draw.normal(0.55 if sick else 0.2, 0.15), 0.01, 0.99))
        row = {"image": str(tmp_path / f"f{number}.png"), "id": f"f{number}", "status": "ok", "p_TB": f"{p:.4f}"}
        row["tb_score"] = f"{shown(score_of(p, 0.3)):.1f}"
        if number >= 80:
            row = {"image": row["image"], "id": row["id"], "status": "refused", "error": "cut_off: x"}
        lines.append(csv_line(columns(), row))
        labels.append(f"f{number}.png,{'TB' if sick else 'NORM'},{20 + number % 60},{'MF'[number % 2]},p{number}")
    (folder / "results.csv").write_bytes(b"".join(lines))
    (tmp_path / "labels.csv").write_text("\n".join([*labels, "elsewhere.png,TB,30,F,q"]) + "\n")
    return folder


def test_a_plan_of_results_and_labels(results, tmp_path):
    made = plan(results, tmp_path / "labels.csv", costs=Costs(0.01, 1, 8))
    sick, well, figures = made.groups["all"]
    assert (sick, well, made.missing, made.not_judged) == (30, 50, 1, (0, 2))
    assert {"sex F", "sex M"} <= set(made.groups)
    assert any(name.startswith("age ") for name in made.groups)
    place = round(made.chosen)
    assert figures["sensitivity"][place, 0] >= 0.9 > figures["sensitivity"][place + 1, 0]
    paths = write_plan(made, tmp_path / "out")
    assert all(path.stat().st_size for path in paths)
    with open(paths[0], newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 101 * len(made.groups)
    at = next(row for row in table if row["group"] == "all" and row["threshold"] == f"{made.chosen:g}")
    found, false = float(at["true_positives"]), float(at["false_positives"])
    assert float(at["cost_per_case"]) == pytest.approx((1000 * 1 + 8 * (found + false)) / found, rel=1e-4)
    text = paths[2].read_text()
    assert 'id="at" type="range"' in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_site_file_decides_as_the_score_chosen(results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _call(["plan", str(results), "--data", "labels.csv", "--threshold", "63", "--site", "ours"]) == 0
    assert "Per 1,000 screened" in capsys.readouterr().out
    site = yaml.safe_load((tmp_path / "ours.yaml").read_text())
    ours = Rules("TB", site["threshold"])
    for p in np.linspace(0.001, 0.999, 499):
        reaches = shown(score_of(p, 0.3)) >= 63
        assert (ours.screen({"TB": p, "NORM": 1 - p}) == "positive") == reaches


def test_what_no_plan_can_be_made_of_is_refused(results, tmp_path):
    (tmp_path / "few.csv").write_text("image,label\nf0.png,TB\nf40.png,NORM\n")
    with pytest.raises(PlanError, match="1 labelled films with TB and 1 without"):
        plan(results, tmp_path / "few.csv")
    with pytest.raises(ResultsError, match="no results folder"):
        plan(tmp_path, tmp_path / "labels.csv")


def test_weights_count_a_film_as_often_as_it_stands_for():
    random = np.random.default_rng(2)
    y, score, times = random.random(60) < 0.5, random.random(60) * 100, random.integers(1, 4, 60)
    names = [str(one) for one in range(60)]
    often = np.repeat(np.arange(60), times)
    with_weights = table_of(y, score, names, Costs(), times.astype(float))
    given_often = table_of(y[often], score[often], [names[one] for one in often], Costs())
    for name in ("sensitivity", "specificity"):
        np.testing.assert_allclose(with_weights[name][:, 0], given_often[name][:, 0])
