"""The tables of `pipeline plan`, and its page, against figures counted by hand on 40 films."""

from __future__ import annotations

import csv
import json
import math
from fractions import Fraction

import pytest

from cxr_pipeline.about import PROGRAM
from cxr_pipeline.data.files import csv_line
from cxr_pipeline.report import plan_files
from cxr_pipeline.report.plan import Costs, _age, plan
from cxr_pipeline.report.plan_files import summary_lines, write_plan
from cxr_pipeline.results.outputs import columns
from tests.pipeline.chromium import BROWSER, tab

# (score, age, sex), first the 16 films with TB.
WITH = [
    *((3, 22, "F"), (18.5, 61, "M"), (37, 30, "F"), (49.9, 70, "M"), (50, 19, "F"), (52.4, 55, "M"), (58, 34, "M")),
    *((63, 66, "F"), (63.1, 28, "M"), (71, 58, "M"), (77.7, 33, "F"), (80, 90, "F"), (84, 25, "M"), (91, 63, "F")),
    *((95, 31, "M"), (100, 77, "F")),
]
WITHOUT = [
    *((0, 20, "M"), (2, 60, "F"), (4, 21, "F"), (5, 72, "M"), (9.9, 24, "M"), (10, 59, "F"), (14, 26, "F")),
    *((17, 81, "M"), (20, 29, "M"), (22, 56, "F"), (25, 32, "F"), (28, 64, "M"), (31, 18, "M"), (36, 68, "F")),
    *((40, 27, "F"), (44, 57, "M"), (49, 23, "M"), (50, 62, "F"), (53, 34, "F"), (57, 74, "M"), (63, 16, "M")),
    *((68, 69, "F"), (75, 33, "F"), (88, 65, "M")),
]
GROUPS = {
    "all": lambda age, sex: True,
    "sex F": lambda age, sex: sex == "F",
    "sex M": lambda age, sex: sex == "M",
    "age 15 to 34": lambda age, sex: age < 35,
    "age 55 and over": lambda age, sex: age >= 55,
}
THRESHOLDS = (0, 10, 50, 63, 80, 96, 100)
PROGRAMMES = (
    Costs(prevalence=0.02, film=2, test=10),
    Costs(prevalence=0.0005, film=1.5, test=12),
    Costs(0.3, 0, 25),
)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_files, "_draw", lambda made, path: None)  # the curves cost a second and are not looked at
    folder = tmp_path / "results"
    folder.mkdir()
    decisions = {"classes": ["TB", "NORM"], "positive": "TB", "normal": "NORM", "threshold": 0.3}
    (folder / "run.json").write_text(
        json.dumps({"program": PROGRAM, "finished": True, "config": {"classify": decisions}})
    )
    lines, labels = [csv_line(columns(), {name: name for name in columns()})], ["image,label,age,sex"]
    for number, (score, age, sex) in enumerate([*WITH, *WITHOUT]):
        row = {"image": f"{tmp_path}/f{number}.png", "id": f"f{number}", "status": "ok", "tb_score": f"{score:.1f}"}
        lines.append(csv_line(columns(), row))
        labels.append(f"f{number}.png,{'TB' if number < len(WITH) else 'NORM'},{age},{sex}")
    (folder / "results.csv").write_bytes(b"".join(lines))
    (tmp_path / "labels.csv").write_text("\n".join(labels) + "\n")
    return folder


def by_hand(group, threshold, costs):
    """Counted film by film, in fractions: nothing of the program's own arithmetic."""

    def reached(films):
        own = [score for score, age, sex in films if GROUPS[group](age, sex)]
        return Fraction(sum(score >= threshold for score in own), len(own))

    prevalence, film, test = (Fraction(str(one)) for one in (costs.prevalence, costs.film, costs.test))
    found, false = 1000 * prevalence * reached(WITH), 1000 * (1 - prevalence) * reached(WITHOUT)
    missed, cleared = 1000 * prevalence - found, 1000 * (1 - prevalence) - false
    return {
        "sensitivity": reached(WITH),
        "specificity": 1 - reached(WITHOUT),
        "true_positives": found,
        "false_positives": false,
        "tests_per_case": (found + false) / found if found else math.inf,
        "cost_per_case": (1000 * film + test * (found + false)) / found if found else math.inf,
        "ppv": found / (found + false) if found + false else math.nan,
        "npv": cleared / (cleared + missed) if cleared + missed else math.nan,
    }


@pytest.mark.parametrize("costs", PROGRAMMES, ids=lambda costs: f"{costs.prevalence:g}")
def test_the_table_is_what_counting_gives(results, tmp_path, costs):
    made = plan(results, tmp_path / "labels.csv", costs=costs)
    with open(write_plan(made, tmp_path / "plan")[0], newline="") as file:
        table = {(row["group"], int(row["threshold"])): row for row in csv.DictReader(file)}
    assert {group for group, _ in table} == set(GROUPS)
    for group in GROUPS:
        for threshold in THRESHOLDS:
            row = table[group, threshold]
            for name, value in by_hand(group, threshold, costs).items():
                where = (group, threshold, name)
                assert float(row[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-9, nan_ok=True), where
                value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
                assert math.isnan(value + low + high) or low <= value <= high, where


def test_an_age_may_have_the_form_of_dicom():
    ages = {"58": 58, " 058Y": 58, "006M": 0.5, "026W": 0.5, "073D": 0.2, "33.5": 33.5}
    assert {text: _age(text) for text in ages} == pytest.approx(ages)
    assert [_age(text) for text in ("", "old", "Y", "nan", "-3", "900")] == [None] * 6


def test_figures_are_shown_in_full_and_no_share_short_of_1_is_1(results, tmp_path):
    """A cost of 3467 was 3.47e+03, and a predictive value of 0.99972 was 1."""
    said = " ".join(summary_lines(plan(results, tmp_path / "labels.csv", costs=PROGRAMMES[1], threshold=50)))
    hand = by_hand("all", 50, PROGRAMMES[1])
    assert f"a cost of {float(hand['cost_per_case']):.0f} (" in said
    assert f"NPV {float(hand['npv']):.5f}" in said
    assert "e+" not in said


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
def test_the_slider_shows_what_counting_gives(results, tmp_path):
    costs = PROGRAMMES[1]
    path = write_plan(plan(results, tmp_path / "labels.csv", costs=costs), tmp_path / "plan")[2]
    show = (
        "(() => {{ const set = (id, value, kind) => {{ const one = document.getElementById(id); one.value = value; "
        "one.dispatchEvent(new Event(kind)); }}; set('group', '{}', 'change'); set('at', {}, 'input'); return "
        "[...document.querySelectorAll('#figures tr')].map((row) => row.children[1].textContent); }})()"
    )
    with tab(tmp_path / "profile") as page:
        page.open(path.as_uri())
        for group in GROUPS:
            for threshold in THRESHOLDS:
                shown = page.run(show.format(group, threshold))
                for text, (name, value) in zip(shown, by_hand(group, threshold, costs).items(), strict=True):
                    if not math.isfinite(value):
                        assert text == ("none found" if math.isinf(value) else "none"), (group, threshold, name)
                        continue
                    of = 1 - value if value < 1 and name == "npv" else value  # what a share lacks of 1 counts
                    got = 1 - float(text) if of != value else float(text)
                    assert got == pytest.approx(float(of), rel=0.05 if of != value else 0.0051), (
                        group,
                        threshold,
                        name,
                    )
        table = "document.querySelector('.programme')"
        assert page.run(f"{table}.offsetWidth <= {table}.parentNode.offsetWidth")  # all columns without scrolling
        assert page.errors == []
