"""The page, in a browser: hand films in, read the result, by keyboard too, and on a phone.

CXR_SCREENSHOTS names a folder that gets pictures of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.runner import identity_of
from cxr_pipeline.texts import FAILURES, REASONS, Texts
from tests.pipeline.chromium import BROWSER, tab
from tests.pipeline.fake_chain import findings_chain, write_film
from tests.pipeline.web_server import KEY, listening, serving

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")

EVIL = "<img src=x onerror=alert(1)>.png"

DONE = "document.querySelector('#said').textContent.includes(' done') && !document.querySelector('#zip').disabled"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    made = [
        write_film(folder / "sick.png", 1, lungs=0.37, size=(288, 240)),
        write_film(folder / "well.png", 2, lungs=0.05, size=(240, 288)),
        write_film(folder / EVIL, 3, size=(240, 288)),
    ]
    (folder / "notes.txt").write_text("no film")
    return [*made, folder / "notes.txt"]


@pytest.fixture(scope="module")
def server():
    with listening(max_upload_mb=2) as address:
        yield address


@pytest.fixture(scope="module")
def page(tmp_path_factory, server):
    with tab(tmp_path_factory.mktemp("profile")) as page:
        page.open(server)
        yield page


def screenshot(page, name):
    folder = os.environ.get("CXR_SCREENSHOTS")
    if folder:
        page.picture(Path(folder) / f"{name}.png")


def text(page, selector):
    return page.run(f"document.querySelector({selector!r}).innerText")


def show(page, place):
    page.run(f"document.querySelectorAll('#list button')[{place}].click()")


def stage_is_painted(page):
    return page.wait("document.querySelector('#film').complete && document.querySelector('#film').naturalWidth")


def test_films_are_handed_in_and_judged(page, films):
    page.wait("document.querySelector('#drop-help').textContent.includes('DICOM')")
    screenshot(page, "empty")
    page.give("#files", films)
    page.wait(DONE)
    assert text(page, "#said") == "4 done, of them 1 failed"
    states = page.run("[...document.querySelectorAll('#list .state')].map((one) => one.textContent)")
    assert states[0].startswith("TB ")
    assert states[3] == "failed"
    stage_is_painted(page)
    screenshot(page, "result")
    assert "Research use only" in text(page, "body")
    assert page.errors == []


def test_a_result_in_words_and_bars(page):
    show(page, 0)
    stage_is_painted(page)
    assert text(page, "#film-name") == "sick.png"
    assert 50 < float(text(page, "#score")) <= 100
    assert text(page, "#regions").startswith("TB: patient's right lung, upper zone")
    shares = page.run("[...document.querySelectorAll('#bars .bar span')].map((one) => parseFloat(one.style.width))")
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert "patient's right lung" in page.run("document.querySelector('#stage').getAttribute('aria-label')")


def test_overlay_slider_boxes_and_outline(page):
    show(page, 0)
    stage_is_painted(page)
    page.wait("document.querySelectorAll('#boxes rect').length === 1")
    lit = "[...document.querySelector('{}').getContext('2d').getImageData(0, 0, 240, 288).data].some(Boolean)"
    assert page.wait(lit.format("#heat"))
    assert page.wait(lit.format("#outline"))
    where = page.run(
        "(() => { const [a, b] = ['#film', '#boxes'].map((id) => document.querySelector(id).getBoundingClientRect());"
        " return [a.width - b.width, a.height - b.height, a.left - b.left, a.top - b.top]; })()"
    )
    assert where == pytest.approx([0, 0, 0, 0], abs=1)
    page.run("document.querySelector('#opacity').focus()")
    before = float(page.run("document.querySelector('#heat').style.opacity"))
    page.press("ArrowRight")
    assert float(page.run("document.querySelector('#heat').style.opacity")) > before
    page.press("Tab")
    assert page.run("document.activeElement.id") == "show-boxes"
    page.press("Space")
    assert page.run("getComputedStyle(document.querySelector('#boxes')).visibility") == "hidden"
    page.press("Space")


def test_names_stay_text(page):
    show(
        page,
        page.run(f"[...document.querySelectorAll('#list .name')].findIndex((one) => one.textContent === '{EVIL}')"),
    )
    assert text(page, "#film-name") == EVIL
    assert page.run("document.querySelectorAll('#list img, #detail h2 img').length") == 0
    assert page.errors == []


def test_films_are_sorted_by_score_and_the_threshold_is_on_the_scale(page):
    states = page.run("[...document.querySelectorAll('#list .state')].map((one) => one.textContent)")
    scores = [float(one.split()[-1]) for one in states[:3]]
    assert scores == sorted(scores, reverse=True)
    show(page, 0)
    stage_is_painted(page)
    assert page.run("document.querySelector('#cut').getAttribute('x1')") == "50"
    assert float(page.run("document.querySelector('#at').getAttribute('x1')")) == float(text(page, "#score"))
    assert page.run("document.querySelector('#boxes text').textContent") == "1"


def test_zoom_window_and_invert_change_the_picture_and_end_with_the_film(page):
    show(page, 0)
    stage_is_painted(page)
    page.run("document.querySelector('#invert').click()")
    page.run(
        "(() => { const z = document.querySelector('#zoom'); z.value = 3; z.dispatchEvent(new Event('input')); })()"
    )
    assert "invert(1)" in page.run("document.querySelector('#film').style.filter")
    assert "scale(3)" in page.run("document.querySelector('#sheet').style.transform")
    show(page, 1)
    assert "scale(1)" in page.run("document.querySelector('#sheet').style.transform")
    assert "invert" not in page.run("document.querySelector('#film').style.filter")


def test_a_job_that_is_gone_says_so(server, tmp_path):
    with tab(tmp_path / "profile") as page:
        page.open(f"{server}/#job={'0' * 32}")
        page.wait("document.querySelector('#fault').textContent.includes('deleted')")
        assert page.run("location.hash") == ""


def test_a_page_in_the_language_of_the_browser():
    from cxr_pipeline.web.routers.pages import accepted

    assert accepted("pt-BR,pt;q=0.9,en;q=0.8") == "pt"
    assert accepted("de, hi;q=0.3, fr;q=0.7") == "fr"
    assert accepted("de, ;q=x, ,fr;q=0") == "en"


def test_reasons_come_in_the_language_of_the_page():
    with serving() as asked:
        french = asked.get("/pages/texts.json", headers={"Accept-Language": "fr"}).json()
        english = asked.get("/pages/texts.json").json()
    assert french["reasons"]["lateral"] == Texts("fr")(REASONS["lateral"])
    assert set(french["reasons"]) == set(REASONS)
    assert dict(french["failures"]) == {pattern: Texts("fr")(said) for pattern, said in FAILURES.items()}
    assert (english["reasons"], english["failures"]) == ({}, [])


def test_a_reason_with_a_code_is_said_above_the_english_one(page):
    page.run("reasons = { lateral: 'de profil' }; texts['tinted'] = 'teint\\u00e9'")
    try:
        assert page.run("short('lateral: its view is LL; tinted; a marker; lateral: again')") == (
            "lateral: de profil; teint\u00e9; a marker"
        )
        page.run("job.films[0].result.warnings = 'lateral: its view is LL'")
        show(page, 0)
        assert text(page, "#film-said") == "lateral: de profil\nlateral: its view is LL"
        assert page.run("document.querySelector('#film-said .original').lang") == "en"
    finally:
        page.run("reasons = {}; delete texts['tinted']; job.films[0].result.warnings = ''")


def test_a_bad_file_says_why(page):
    show(page, 3)
    assert "no image that can be read" in text(page, "#film-said")
    pairs = [[pattern, Texts("es")(said)] for pattern, said in FAILURES.items()]
    page.run(f"failures = {json.dumps(pairs)}")
    try:
        show(page, 3)
        said, english = text(page, "#film-said").split("\n")
        assert said == Texts("es").failure(english) != english
        few = "x.png: 20x20 pixels are too few; at least 32 a side are needed. Export the film larger"
        assert page.run(f"failed({few!r})") == Texts("es").failure(few) != few
    finally:
        page.run("failures = []")
    page.wait("document.querySelector('#stage').hidden")


def test_by_keyboard_alone(page):
    page.run("document.activeElement.blur(); document.querySelector('#files').focus()")
    assert page.run("getComputedStyle(document.querySelector('#files + .button')).outlineStyle") == "solid"
    page.press("Tab")
    assert page.run("document.activeElement.closest('li') !== null")
    page.press("Enter")
    page.press("ArrowDown")
    page.wait(
        "document.querySelector('#film-name').textContent === document.querySelectorAll('#list .name')[1].textContent"
    )
    assert page.run("document.activeElement.getAttribute('aria-current')") == "true"


def test_a_reload_and_the_back_button_find_the_film_again(page, server):
    show(page, 0)
    show(page, 1)
    second = text(page, "#film-name")
    address = page.run("location.href")
    page.open(server + "/docs")
    page.open(address)
    page.wait(f"document.querySelector('#film-name').textContent === {second!r}")
    show(page, 0)
    page.wait(f"document.querySelector('#film-name').textContent !== {second!r}")
    page.run("history.back()")
    page.wait(f"document.querySelector('#film-name').textContent === {second!r}")
    assert page.errors == []


def test_the_zip_is_fetched_and_the_job_deleted(page, server, tmp_path):
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.run("document.querySelector('#zip').click()")
    page.wait("document.querySelector('#said').textContent.includes('downloaded')")
    page.wait("new Promise((resolve) => setTimeout(() => resolve(true), 300))")
    assert next(path.suffix for path in tmp_path.iterdir()) in (".zip", ".crdownload")
    page.run("document.querySelector('#discard').click()")
    page.wait("document.querySelector('#said').textContent === 'Deleted from the server'")
    assert page.run("document.querySelector('#result').hidden")
    assert page.run("fetch('/metrics').then((a) => a.text())").count("cxr_jobs 0.0") == 1


def test_what_is_too_large_is_said_before_it_is_sent(page, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(3_000_000))
    page.give("#files", [large])
    page.wait("document.querySelector('#fault').textContent.includes('2 MB are allowed')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_it_without_sideways_scrolling(server, films, tmp_path, dark):
    with tab(tmp_path, width=360, height=740, dark=dark) as page:
        page.open(server)
        page.wait("document.querySelector('#drop-help').textContent.includes('DICOM')")
        page.give("#files", films[:1])
        page.wait(DONE)
        stage_is_painted(page)
        page.wait("document.querySelectorAll('#boxes rect').length === 1")
        screenshot(page, f"phone-{'dark' if dark else 'light'}")
        assert page.run("document.documentElement.scrollWidth") <= 360
        ground = page.run("getComputedStyle(document.querySelector('#list')).backgroundAttachment")
        assert ground == "local, local, scroll, scroll"  # a list that goes on below has a shadow there
        small = page.run(
            "[...document.querySelectorAll('button, .button, input[type=range], .check')]"
            ".filter((one) => one.offsetParent).map((one) => one.getBoundingClientRect().height)"
        )
        assert min(small) >= 32
        for selector in ("body", ".notice", ".small", "button", ".list .state"):
            assert contrast(page, selector) >= 4.5, selector


def contrast(page, selector):
    """WCAG 2 contrast of an element's text on the first ground behind it that is not see-through."""
    colours = page.run(
        f"""(() => {{ let one = document.querySelector({selector!r}); const text = getComputedStyle(one).color;
        const behind = () => getComputedStyle(one).backgroundColor;
        while (behind() === 'rgba(0, 0, 0, 0)') one = one.parentElement;
        const ground = behind();
        return [text, ground].map((c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number)); }})()"""
    )

    def light(colour):
        parts = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted(map(light, colours), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_key_is_asked_for(tmp_path, films):
    with listening(api_key=KEY) as address, tab(tmp_path) as page:
        page.open(address)
        page.wait("!document.querySelector('#key-form').hidden")
        assert page.run("document.activeElement.id") == "key"
        page.run("document.querySelector('#key').value = 'wrong'; document.querySelector('#key-form').requestSubmit()")
        page.wait("document.querySelector('#key-error').textContent.includes('key')")
        page.run(f"document.querySelector('#key').value = '{KEY}'; document.querySelector('#key-form').requestSubmit()")
        page.wait("!document.querySelector('#work').hidden")
        page.give("#files", films[:1])
        page.wait(DONE)
        stage_is_painted(page)


def test_the_api_page_lists_the_routes(page, server):
    page.open(f"{server}/docs")
    page.wait("document.querySelectorAll('#routes section').length >= 9")
    assert "POST /v1/analyze" in text(page, "#routes")
    assert "tb_score" in text(page, "#models")
    screenshot(page, "docs")


def test_several_labels_are_told_one_by_one(tmp_path):
    film = write_film(tmp_path / "both.png", 1, lungs=0.5)  # Mass and Effusion, the latter likelier
    stages = findings_chain()
    unchecked = {"unchecked": "Films are not checked"}
    with (
        listening(Chain(stages, identity_of(stages, about=unchecked), {})) as address,
        tab(tmp_path / "profile") as page,
    ):
        page.open(address)
        page.wait("document.querySelector('#drop-help').textContent.includes('DICOM')")
        assert text(page, "#drop-help").endswith("megapixels. Films are not checked.")
        page.give("#files", [film])
        page.wait(DONE)
        assert page.run("document.querySelector('#list .state').textContent") == "Effusion +1"
        stage_is_painted(page)
        assert "Effusion, Mass" in text(page, "#facts")
        assert page.errors == []
        screenshot(page, "labels")
