"""The report of a run whose films may have several labels, or none."""

from __future__ import annotations

import re

import pytest

from cxr_pipeline.report.report import write_report
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner, identity_of
from tests.pipeline.chromium import BROWSER, tab
from tests.pipeline.fake_chain import FakeFindings, findings_chain, write_film
from tests.pipeline.report_reader import Page, opened


def run_findings(folder, label=None):
    """A run over three films: one with Mass and Pleural_Thickening, one with Mass and Effusion, one with none."""
    for number, lungs in enumerate((0.05, 0.5, 0.3)):
        write_film(folder / "films" / f"f{number}.png", number, lungs=lungs)
    stages = findings_chain(label)
    about = {"config": {stage.name: stage.card["decisions"] for stage in stages}}
    out = folder / "out"
    Runner(stages, out, identity=identity_of(stages, about=about)).run(find_inputs([folder / "films"]))
    return write_report(out)


def test_of_several_labels_a_film_each_is_counted(tmp_path):
    path = run_findings(tmp_path)
    page = opened(path)
    rows = {row["id"]: row for row in page.json("rows")}
    labels = {name: row.get("label", "") for name, row in rows.items()}
    assert labels == {"f0": "Mass|Pleural_Thickening", "f1": "Mass|Effusion", "f2": ""}
    text = path.read_text()
    counts = {"Mass": 2, "Effusion": 1, "Pleural_Thickening": 1, "none of them": 1}
    for name, count in counts.items():
        assert f"<dt>answered {name}</dt><dd>{count}</dd>" in text
    assert len(re.findall("<dt>answered", text)) == 4
    assert "No film has a score" not in text
    highest = max(row["p"]["Effusion"] for row in rows.values())
    assert re.search(rf'row">Effusion</th><td>1</td><td>0.500</td><td>0.\d+</td><td>{highest:.3f}</td><td><svg', text)
    answers = text[text.index('<select id="answer">') :].split("</select>")[0]
    options = re.findall(r"<option[^>]*>([^<]+)</option>", answers)
    assert options == ["all", "Mass", "Effusion", "Pleural_Thickening", "none of them"]


def test_a_label_that_was_not_learned_has_no_threshold_to_show(tmp_path, monkeypatch):
    limits = FakeFindings.defaults["thresholds"] | {"Effusion": 2.0}
    monkeypatch.setitem(FakeFindings.defaults, "thresholds", limits)
    path = run_findings(tmp_path)
    assert re.search('row">Effusion</th><td>0</td><td>not learned</td>', path.read_text())
    assert set(opened(path).json("facts")["thresholds"]) == {"Mass", "Pleural_Thickening"}


@pytest.mark.parametrize(("label", "expected"), [(None, ["Mass", "Effusion"]), ("Mass", ["Mass", "Mass"])])
def test_it_knows_which_label_a_heat_map_is_of(tmp_path, label, expected):
    rows = opened(run_findings(tmp_path, label)).json("rows")
    assert [row["heatmap_label"] for row in rows][:2] == expected
    for row in rows[:2]:
        assert {region["category"] for region in row["regions"]} <= {row["heatmap_label"]}


def test_of_several_labels_the_highest_probabilities_are_embedded(tmp_path):
    run_findings(tmp_path)
    write_report(tmp_path / "out", embed=1)
    rows = Page((tmp_path / "out" / "report.html").read_text()).json("rows")
    assert max(rows, key=lambda row: max(row["p"].values()))["embedded"]
    assert sum(bool(row.get("embedded")) for row in rows) == 1


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the page in")
def test_a_browser_shows_films_with_several_labels(tmp_path):
    path = run_findings(tmp_path)
    with tab(tmp_path / "profile", width=1300) as page:
        page.open(path.as_uri())
        cells = "[...document.querySelectorAll('#body tr')].map(tr => [...tr.cells].map(cell => cell.textContent))"
        shown = {name: rest for _, name, *rest in page.run(cells)}
        assert {name: row[1] for name, row in shown.items()} == {
            "f0.png": "Mass +1",
            "f1.png": "Effusion +1",
            "f2.png": "none",
        }
        assert re.fullmatch(r"\d\d\.\d Effusion", shown["f1.png"][2])
        assert len(shown["f1.png"]) == 4  # no column of lungs: the chain looks for none
        choose = "(() => {{ const s = document.getElementById('answer'); s.value = '{}'; "
        choose += "s.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        for asked, names in (("Mass", {"f0.png", "f1.png"}), ("Effusion", {"f1.png"}), ("|", {"f2.png"})):
            page.run(choose.format(asked))
            assert {row[1] for row in page.run(cells)} == names
        page.run(choose.format("Mass"))
        assert all(row[4].endswith(" Mass") for row in page.run(cells))
        page.run("document.querySelector('#body .name button').click()")
        text = page.wait("document.getElementById('film').innerText")
        assert "Grad-CAM (Mass, the likeliest label of the answer)" in text
        assert "Answer: Mass, Pleural_Thickening." in text
        assert "NaN" not in text
        assert "lung outline" not in text
        assert not page.errors
