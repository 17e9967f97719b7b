"""The report of a run: what it says, that it stands alone, and that nothing in it can do harm."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import tracemalloc

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.files import whole_file
from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.report import report as module
from cxr_pipeline.report.page import TEMPLATES, ReportError
from cxr_pipeline.report.pictures import outline
from cxr_pipeline.report.report import write_report
from cxr_pipeline.report.summary import Tally, reason
from cxr_pipeline.results.journal import JournalReader
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.texts import LEFT_OUT, REASONS, Texts
from tests.pipeline.chromium import BROWSER, tab
from tests.pipeline.fake_chain import chain, tree, write_film
from tests.pipeline.report_reader import Page, films_in, opened

pytestmark = pytest.mark.usefixtures("kept_decoders")


@pytest.fixture
def films(tmp_path):
    for number in range(4):
        write_film(tmp_path / "films" / f"f{number}.png", number, lungs=0.05 + 0.1 * number)
    (tmp_path / "films" / "text.png").write_text("no image")
    write_film(tmp_path / "films" / "bright.png", 9, lungs=0.9)
    return tmp_path / "films"


@pytest.fixture
def out(films, tmp_path):
    Runner(chain(), tmp_path / "out", workers=2).run(find_inputs([films]))
    return tmp_path / "out"


def test_a_chain_that_checks_no_films_says_so(out):
    run = json.loads((out / "run.json").read_text())
    assert "Films are not checked" not in write_report(out).read_text()
    (out / "run.json").write_text(json.dumps(run | {"unchecked": "Films are not checked"}))
    assert "Films are not checked." in write_report(out).read_text()


def test_it_shows_every_film_with_what_the_run_said(out):
    page = opened(write_report(out))
    rows = {row["id"]: row for row in page.json("rows")}
    assert {name: row["status"] for name, row in rows.items()} == {
        **{f"f{number}": "ok" for number in range(4)},
        "bright": "refused",
        "text": "failed",
    }
    assert rows["f3"]["label"] == "TB"
    assert rows["f3"]["score"] == pytest.approx(100 * rows["f3"]["p"]["TB"], abs=0.1)
    assert rows["f3"]["regions"][0]["side"] == "right"
    assert rows["f0"]["regions"] == []
    assert "its content is no image" in rows["text"]["error"]
    shown = films_in(page)
    assert len(shown) == 6
    numbers = {row["id"]: f"film-{number}" for number, row in enumerate(page.json("rows"))}
    assert set(shown[numbers["f3"]]) == {"film", "from", "lungs", "heat"}
    assert shown[numbers["text"]] == {}
    text = (out / "report.html").read_text()
    for said in ("<dt>films</dt><dd>6</dd>", "<dt>refused</dt><dd>1</dd>", "4 films by TB score", "has a warning"):
        assert said in text
    assert re.search(r"its content is no image.*</th><td>1</td><td>text\.png</td>", text)


def test_its_pictures_are_those_of_the_film(out, films):
    page = opened(write_report(out))
    number = next(number for number, row in enumerate(page.json("rows")) if row["id"] == "f3")
    one = page.json(f"film-{number}")
    film = cv2.imdecode(np.frombuffer(base64.b64decode(one["film"]), np.uint8), cv2.IMREAD_UNCHANGED)
    source = cv2.imread(str(films / "f3.png"), cv2.IMREAD_GRAYSCALE)
    assert film.shape == source.shape
    assert np.corrcoef(film.ravel(), source.ravel())[0, 1] > 0.98
    heat = cv2.imdecode(np.frombuffer(base64.b64decode(one["heat"]), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert max(heat.shape) == 64
    mask = cv2.imread(str(out / "masks" / "f3.png"), cv2.IMREAD_GRAYSCALE)
    assert overlap(one["lungs"], mask) > 0.95


def overlap(path, mask):
    drawn = np.zeros_like(mask)
    for part in path.strip("MZ").split("ZM"):
        points = np.array([[int(v) for v in point.split(",")] for point in part.split()])
        cv2.fillPoly(drawn, [points], 255)
    return np.logical_and(drawn, mask).sum() / np.logical_or(drawn, mask).sum()


def test_an_outline_is_in_native_pixels_and_short():
    mask = np.zeros((2000, 3000), np.uint8)
    cv2.ellipse(mask, (800, 1000), (400, 800), 0, 0, 360, 255, cv2.FILLED)
    cv2.ellipse(mask, (2100, 1000), (400, 700), 10, 0, 360, 255, cv2.FILLED)
    assert overlap(outline(mask), mask) > 0.98
    assert len(outline(mask)) < 1000
    assert outline(np.zeros((50, 50), np.uint8)) == ""


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_without_its_source_a_film_is_shown_by_its_overlay(out, films, change):
    if change == "gone":
        (films / "f3.png").unlink()
    else:
        write_film(films / "f3.png", 77)
    page = opened(write_report(out))
    told = {row["id"]: page.json(f"film-{number}").get("from") for number, row in enumerate(page.json("rows"))}
    assert told == {**dict.fromkeys(("f0", "f1", "f2", "bright"), "source"), "f3": "overlay", "text": None}


NASTY = "<img src=x onerror=alert(1)>"


def test_a_hostile_file_name_stays_a_name(tmp_path):
    folder = tmp_path / "a<script>alert(1)<" / "script><!-- "  # the path holds </script>
    write_film(folder / f"{NASTY}\"&amp;'$title.png", 3, lungs=0.3)
    (folder / f"{NASTY}.png").write_text(NASTY)
    Runner(chain(), tmp_path / "out").run(find_inputs([folder]))
    text = write_report(tmp_path / "out").read_text()
    page = opened(tmp_path / "out" / "report.html")
    assert [tag for tag, given in page.tags if tag == "script" and "type" not in given] == ["script"]
    assert [given["id"] for tag, given in page.tags if tag == "img"] == ["bare"]
    assert "onerror=alert(1)&gt;" in text
    assert '<!-- "' not in text
    assert any(row["image"].endswith(f"{NASTY}\"&amp;'$title.png") for row in page.json("rows"))


def test_the_same_folder_gives_the_same_bytes(out):
    first = write_report(out, workers=1).read_bytes()
    assert write_report(out, workers=4).read_bytes() == first


def test_it_equals_that_of_another_run_of_the_same_films(out, films, tmp_path):
    Runner(chain(), tmp_path / "again").run(find_inputs([films]))
    write_report(out)
    write_report(tmp_path / "again")
    assert tree(out) == tree(tmp_path / "again")


def test_a_run_takes_the_old_report_away_where_it_judges_something(out, films):
    before = write_report(out).read_bytes()
    Runner(chain(), out).run(find_inputs([films]))
    assert (out / "report.html").read_bytes() == before  # nothing new: it is still right
    write_film(films / "later.png", 5)
    Runner(chain(), out).run(find_inputs([films]))
    assert not (out / "report.html").exists()


def test_a_failed_writing_leaves_the_old_report(out, monkeypatch):
    before = write_report(out).read_bytes()
    monkeypatch.setattr(module, "pieces", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(out)
    assert (out / "report.html").read_bytes() == before
    assert not list(out.glob(".*.part"))


def test_what_is_no_results_folder_is_said(tmp_path, out):
    with pytest.raises(ReportError, match=r"no run\.json.*pipeline run"):
        write_report(tmp_path)
    (out / "run.json").write_text("{}")
    with pytest.raises(ReportError, match="not a run of this program"):
        write_report(out)


def test_a_folder_that_a_run_works_in_is_left_alone(out):
    from cxr_pipeline.results.journal import FolderLock

    lock = FolderLock(out)
    assert lock.acquire()
    with pytest.raises(ReportError, match="a run is working"):
        write_report(out)
    lock.release()


@pytest.mark.parametrize("last_stage", ["segment", "classify"])
def test_of_a_shorter_chain_it_says_what_there_is(films, tmp_path, last_stage):
    Runner(chain(last_stage), tmp_path / "out").run(find_inputs([films]))
    page = opened(write_report(tmp_path / "out"))
    row = next(row for row in page.json("rows") if row["id"] == "f1")
    assert ("score" in row) == (last_stage == "classify")
    assert row["regions"] is None
    assert ("No film has a score" in (tmp_path / "out" / "report.html").read_text()) == (last_stage == "segment")


def test_beyond_the_limit_the_highest_scores_are_embedded(out):
    write_report(out, embed=2)
    text = (out / "report.html").read_text()
    page = Page(text)
    rows = page.json("rows")
    embedded = {row["id"] for row in rows if row.get("embedded")}
    assert embedded == {"f2", "f3"}
    assert set(films_in(page)) == {f"film-{number}" for number, row in enumerate(rows) if row["id"] in embedded}
    assert all(row.get("overlay") for row in rows if row["status"] == "ok")
    assert "of the 2 films with the highest scores" in text


def test_thousands_of_films_take_little_memory(out, monkeypatch):
    """3,000 films of 25 KB: the page holds 75 MB, its making a few."""
    entry = next(e for e in JournalReader(out / "journal.jsonl") if e["row"]["id"] == "f3")
    with whole_file(out / "journal.jsonl") as file:
        for number in range(3000):
            one = {**entry, "row": {**entry["row"], "tb_score": f"{number / 30:.1f}"}, "key": f"{number:016x}"}
            file.write(json.dumps(one).encode() + b"\n")
    monkeypatch.setattr(module, "pieces", lambda *_: {"film": "A" * 25_000, "from": "source"})
    tracemalloc.start()
    path = write_report(out, embed=3000, workers=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 75_000_000
    assert peak < 10_000_000
    write_report(out, embed=100)
    rows = Page(path.read_text()).json("rows")
    assert len(rows) == 3000
    assert path.stat().st_size < 3000 * 700 + 100 * 26_000


def test_an_embedded_film_is_small(tmp_path):
    """At most 30 KB in the page for a film of any size."""
    pixels = np.round(make_film(1, label="TB", size=(1400, 1200)).pixels * 255).astype(np.uint8)
    (tmp_path / "films").mkdir()
    cv2.imwrite(str(tmp_path / "films" / "a.png"), pixels)
    Runner(chain(), tmp_path / "out").run(find_inputs([tmp_path / "films"]))
    page = opened(write_report(tmp_path / "out"))
    assert page.json("film-0")["from"] == "source"
    assert 5_000 < len(page.data["script", "film-0"]) < 30_000


def test_reasons_are_grouped_without_names_and_numbers():
    rows = [
        {"status": "refused", "image": f"x/{name}", "error": error}
        for name, error in (
            ("a.png", "no_lungs: lungs cover 1.3 % of the film, at least 4 % are needed"),
            ("b.png", "no_lungs: lungs cover 0.0 % of the film, at least 4 % are needed"),
            ("c 7.png", "c 7.png: 20x30 pixels are too few"),
        )
    ]
    tally = Tally.of(rows)
    assert tally.counts == {"refused": 3}
    assert sorted(tally.reasons["refused"].values()) == [1, 2]
    assert reason("c 7.png: 20x30 pixels are too few", "x\\c 7.png") == "…x… pixels are too few"


def test_reasons_are_said_in_the_reports_language_and_kept_in_english(out):
    entries = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    for entry in entries:
        if "row" in entry and entry["row"]["status"] == "refused":
            entry["row"]["error"] = "no_lungs: lungs cover 1.3 % of the film, at least 4 % are needed"
        elif "row" in entry and entry["row"]["id"] == "f0":
            entry["row"]["warnings"] = "unsure: with a score of 47.9, read the film; a marker was not counted"
    (out / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    say = Texts("fr")
    text = write_report(out, language="fr").read_text()
    rows = {row["id"]: row for row in json.loads(re.search(r'id="rows">(.*?)</script>', text, re.DOTALL)[1])}
    assert rows["bright"]["said"] == f"no_lungs: {say(REASONS['no_lungs'])}"
    assert rows["bright"]["error"].startswith("no_lungs: lungs cover 1.3 %")
    assert rows["f0"]["noted"] == f"unsure: {say(REASONS['unsure'])}; a marker was not counted"
    assert rows["text"]["said"] == say.failure(rows["text"]["error"]) != rows["text"]["error"]
    assert f"no_lungs: {say(REASONS['no_lungs'])}</th>" in html.unescape(text)
    rows = opened(write_report(out, language="en")).json("rows")
    assert not any({"said", "noted"} & set(row) for row in rows)


def test_the_histogram_counts_every_score():
    scores = ["0.0", "4.9", "5.0", "99.9", "100.0"]
    tally = Tally.of({"status": "ok", "image": "a", "tb_score": score} for score in scores)
    assert (tally.bins[0], tally.bins[1], tally.bins[-1], sum(tally.bins)) == (2, 1, 2, 5)


def test_texts_stand_out_from_their_ground():
    """WCAG 2.1 AA: 4.5 : 1 for texts, 3 : 1 for edges of controls and bars, in both colour schemes and in print."""
    style = (TEMPLATES / "report.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w+)", scheme))
        for name in ("text", "quiet", "accent"):
            for ground in ("ground", "raised"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        assert contrast(colours["warn-text"], colours["warn"]) >= 4.5
        for name in ("edge", "bar"):
            assert contrast(colours[name], colours["ground"]) >= 3, name


def contrast(one, other):
    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.slow
def test_a_browser_shows_the_table(out, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here to open the page in")
    path = write_report(out)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    body = re.search(r'<tbody id="body".*?</tbody>', done.stdout, re.DOTALL)[0]
    names = re.findall(r"<button type=\"button\">([^<]+)</button>", body)
    assert names[:4] == ["f3.png", "f2.png", "f1.png", "f0.png"]
    assert len(names) == 6
    alts = re.findall(r'alt="([^"]+)"', body)
    assert re.search(r"f3\.png: ok, Answer TB, TB score \d+\.\d of 100, .*TB: right lung, upper zone", alts[0])
    assert "6 of 6 films" in done.stdout
    assert (
        '<th scope="col" role="columnheader" aria-sort="descending"><button type="button" data-sort="score"'
        in done.stdout
    )


def test_it_says_what_to_read_first_where_films_lay_and_what_was_left_out(films, tmp_path):
    (films / "ward").mkdir()
    shutil.copy(films / "f3.png", films / "ward" / "again.png")
    out = tmp_path / "out"
    Runner(chain(), out, workers=2).run(find_inputs([films]))
    run = json.loads((out / "run.json").read_text())
    left = {"no_image": {"count": 2, "files": ["a/notes.txt", "a/more.txt"]}}
    (out / "run.json").write_text(json.dumps(run | {"left_out": left, "same_files": 1}))
    lines = (out / "journal.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    for one in entries:
        if one["row"]["id"] == "f3":
            one["row"]["screen"] = "positive"
    (out / "journal.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    text = write_report(out).read_text()
    assert "7 films: 1 screen positive, 0 unsure, 0 negative, 1 refused, 1 failed. Read this one first." in text
    assert re.search(r">\S*films/ward</th><td>1</td>", text)
    assert "1 film(s) are byte for byte the same file as another" in text
    assert "<td>2</td><td>notes.txt, more.txt</td>" in text
    assert html.escape(Texts("es")(LEFT_OUT["no_image"])) in write_report(out, language="es").read_text()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
def test_on_a_phone_the_histogram_can_be_read_and_on_a_desk_the_filter(out, tmp_path):
    box = "[...document.querySelectorAll('.histogram svg text')].find((one) => one.textContent === '{}')"
    with tab(tmp_path / "profile", width=390, height=800) as page:
        page.open(write_report(out).as_uri())
        page.run(f"figure = {box.format(0)}.getBoundingClientRect()")
        page.run(f"title = {box.format('TB score')}.getBoundingClientRect()")
        assert page.run("figure.height") >= 15
        assert page.run("title.top - figure.top > 0.75 * figure.height")  # below the numbers, and not over them
        assert page.run("document.documentElement.scrollWidth") <= 390
        page.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        # From a score to a score: one field beside the other, also where the line breaks.
        assert page.run("document.querySelector('#low').offsetTop === document.querySelector('#high').offsetTop")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
def test_paper_has_positives_with_pictures_and_the_rest_as_a_list(out, tmp_path):
    with tab(tmp_path / "profile") as page:
        page.open(write_report(out).as_uri())
        page.run("window.dispatchEvent(new Event('beforeprint'))")
        # The chain of this test answers with a label and no screen, so that every film is in the list.
        assert page.run("document.querySelectorAll('#print-films li').length") == 6
        assert "its content is no image" in page.run("document.querySelector('#print-films').textContent")
        page.run("window.dispatchEvent(new Event('afterprint'))")
        assert page.run("document.querySelectorAll('#print-films li').length") == 0
        assert page.errors == []
