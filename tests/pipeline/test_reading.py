"""The reading page on a run's folder: what is shown, who may ask, and that no answer is lost."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from fastapi.testclient import TestClient

from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.reading import ReadingError, session
from cxr_pipeline.reading.app import create_app
from cxr_pipeline.reading.pictures import Pictures
from cxr_pipeline.reading.session import Session
from cxr_pipeline.run import isolation
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner, identity_of
from cxr_pipeline.web.settings import Settings
from tests.decoders import lent_by
from tests.pipeline.chromium import BROWSER, tab
from tests.pipeline.fake_chain import chain, write_film

KEY = "0123456789abcdefSECRET"
PRESS = "document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}'}}))"


# ---- a folder, and its page ----
@pytest.fixture
def results(tmp_path, decoders):
    for number in range(24):
        write_film(tmp_path / "films" / f"f{number:02}.png", number, lungs=0.02 + 0.016 * number)
    stages = chain()
    config = {"classify": {"classes": ["TB", "NTB", "NORM"], "positive": "TB", "normal": "NORM", "threshold": 0.5}}
    out = tmp_path / "out"
    runner = Runner(stages, out, identity=identity_of(stages, about={"config": config}), workers=2)
    with lent_by(decoders):
        runner.run(find_inputs([tmp_path / "films"]))
    return out


def serving(results, **options):
    made = Session(results, **options)
    pictures = Pictures()
    client = TestClient(create_app(made, Settings(api_key=KEY), pictures), base_url="http://127.0.0.1")
    client.headers["X-API-Key"] = KEY
    return made, client, pictures


@contextmanager
def page_of(made, pictures, folder):
    """The reading page in a browser."""
    import uvicorn

    from cxr_pipeline.web.server import listen, server_config

    settings = Settings(port=0, api_key=KEY)
    with listen(settings) as socket, tab(folder / "profile", width=1200, height=800) as page:
        server = uvicorn.Server(server_config(settings, create_app(made, settings, pictures)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        try:
            page.open(f"http://127.0.0.1:{socket.getsockname()[1]}/#{KEY}")
            yield page
        finally:
            server.should_exit = True
            thread.join(30)
            pictures.close()


def test_two_readers_read_apart_and_end_in_a_manifest(results, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    for reader, answers in (("asha", ["TB", "NORM", "unsure"]), ("ben", ["TB", "TB"])):
        made, client, pictures = serving(results, reader=reader, count=8)
        try:
            said = client.get("/v1/reading").json()
            assert (said["films"], said["done"], said["next"]) == (8, 0, 1)
            assert [one["key"] for one in said["answers"]] == ["t", "o", "n", "u", "b"]
            for number, answer in enumerate(answers, 1):
                said = client.post(f"/v1/films/{number}/answer", json={"answer": answer, "seconds": 2}).json()
                kept = (results / "reading" / f"{reader}.jsonl").read_text().splitlines()
                assert json.loads(kept[-1])["answer"] == answer  # on the disk by now
            assert said["next"] == len(answers) + 1
            path = made.write()
        finally:
            pictures.close()
    table = read_manifest(path).table
    assert list(table["label"]) == ["TB", "", ""]  # they disagree on the second, and the third is unsure
    assert list(table["read_by_asha"]) == ["TB", "NORM", "unsure"]
    sample = json.loads((results / "reading" / "sample.json").read_text())["films"]
    assert [float(one) for one in table["weight"]] == pytest.approx([film["weight"] for film in sample[:3]], rel=1e-5)
    (pair,) = json.loads((results / "reading" / "agreement.json").read_text())
    assert (pair["films"], pair["agreed"]) == (2, 0.5)


def test_a_blind_reader_is_told_nothing_of_the_network(results, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    _, client, pictures = serving(results, count=8)
    _, seeing, more = serving(results, reader="sees", blind=False)
    try:
        film = client.get("/v1/films/1").json()
        assert set(film) == {"number", "width", "height", "low", "high", "native", "lungs", "answer"}
        assert client.get("/v1/films/1/heat.png").status_code == 403
        shown = seeing.get("/v1/films/1").json()
        assert {"score", "label", "boxes", "name"} <= set(shown)
        assert seeing.get("/v1/films/1/heat.png").content[1:4] == b"PNG"
        levels = np.frombuffer(client.get("/v1/films/1/levels").content, "<u2")
        assert len(levels) == film["width"] * film["height"]
        assert levels.max() > 255
    finally:
        pictures.close()
        more.close()


def test_the_page_asks_for_its_key_and_refuses_what_is_no_answer(results, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    _, client, pictures = serving(results, count=8)
    try:
        for path in ("/v1/reading", "/v1/films/1", "/v1/films/1/levels", "/v1/agreement"):
            assert client.get(path, headers={"X-API-Key": "guess-guess-guess"}).status_code == 401
        assert client.get("/", headers={"X-API-Key": ""}).status_code == 200
        for number, answer in ((1, "maybe"), (3, "TB"), (99, "TB"), (0, "TB")):
            assert client.post(f"/v1/films/{number}/answer", json={"answer": answer}).status_code == 422
        assert not (results / "reading" / "reader.jsonl").exists()
        assert client.get("/v1/films/99").status_code == 404
    finally:
        pictures.close()


def test_films_are_read_by_one_process_whichever_threads_ask(results, monkeypatch):
    """Linux ends a helper with the thread that began it; a new one for each film would cost seconds."""
    monkeypatch.setattr(session, "LEAST", 5)
    begun, made = [], isolation.Process
    monkeypatch.setattr(isolation, "take_early", lambda memory: None)
    monkeypatch.setattr(isolation, "Process", lambda memory: begun.append(memory) or made(memory))
    reading, client, pictures = serving(results, count=8)
    try:
        for number in range(1, 5):  # each request has threads of its own here
            assert client.get(f"/v1/films/{number}").status_code == 200
        assert len(reading.sample) == 8
        assert len(begun) == 1
    finally:
        pictures.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone ends a child with its parent")
def test_the_process_that_reads_films_ends_with_a_server_that_is_killed(tmp_path):
    film = write_film(tmp_path / "a.png")
    code = (
        "import sys, time\nfrom cxr_pipeline.reading.pictures import Pictures\npictures = Pictures()\n"
        "pictures.film({'id': 'a', 'image': sys.argv[1], 'sha256': ''})\n"
        "print(pictures._reader._all[0]._process.pid, flush=True)\ntime.sleep(600)"
    )
    server = subprocess.Popen([sys.executable, "-c", code, str(film)], stdout=subprocess.PIPE)
    helper = Path("/proc", server.stdout.readline().decode().strip(), "cmdline")
    assert b"isolation" in helper.read_bytes()
    server.kill()
    server.communicate()
    until = time.monotonic() + 60  # only a helper that stays lets this run out
    while helper.exists() and b"isolation" in helper.read_bytes() and time.monotonic() < until:
        time.sleep(0.02)
    assert not helper.exists() or b"isolation" not in helper.read_bytes()


def test_what_a_killed_reader_left_half_written_goes_at_the_next_start(results, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    Session(results, count=8)
    old, new = (results / "reading" / f".{name}.0123abcd.part" for name in ("sample.json", "labels.csv"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))  # the other may be one that another reader is writing
    Session(results)
    assert not old.exists()
    assert new.exists()


def test_a_film_that_changed_is_not_shown(results, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    made, client, pictures = serving(results, count=8)
    try:
        write_film(tmp_path / "films" / f"{made.sample[0]['id']}.png", 99)
        assert client.get("/v1/films/1").status_code == 409
    finally:
        pictures.close()


def test_what_cannot_be_read_says_why(results, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 100)
    with pytest.raises(ReadingError, match="at least 100"):
        Session(results)
    monkeypatch.setattr(session, "LEAST", 5)
    with pytest.raises(ReadingError, match="letters, digits"):
        Session(results, reader="../x")
    Session(results, count=8)
    with pytest.raises(ReadingError, match="holds a sample of 8"):
        Session(results, count=9)
    with pytest.raises(ReadingError, match="run.json"):
        Session(tmp_path)
    (tmp_path / "films").rename(tmp_path / "away")
    with pytest.raises(ReadingError, match="not where they were"):
        Session(results)


def test_readers_who_begin_at_once_get_one_sample(results, monkeypatch):
    """The second one drew before the first one's sample was there: what came first stays."""
    monkeypatch.setattr(session, "LEAST", 5)
    path, seen = results / "reading" / "sample.json", []
    real = session.draw

    def overtaken(*arguments):
        monkeypatch.setattr(session, "draw", real)
        seen.append(Session(results, "ben", count=8, seed=2).sample)
        return real(*arguments)

    monkeypatch.setattr(session, "draw", overtaken)
    first = Session(results, "asha", count=8, seed=1).sample
    assert first == seen[0] == json.loads(path.read_text())["films"]
    assert [one.name for one in path.parent.iterdir()] == ["sample.json"]


def test_two_windows_of_one_reader_lose_no_answer(results, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    one, two = Session(results, "asha", count=8), Session(results, "asha", count=8)
    one.answer(1, "TB")
    one.answer(2, "NORM")
    two.answer(1, "NORM")
    assert one.everyone() == {"asha": {one.sample[0]["id"]: "NORM", one.sample[1]["id"]: "NORM"}}


def test_a_film_that_vanished_is_skipped_and_the_reading_goes_on(results, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    sample = Session(results, count=8).sample
    paths = [tmp_path / "films" / f"{film['id']}.png" for film in sample]
    paths[1].unlink()  # before this call
    made, client, pictures = serving(results)
    answer = {"answer": "TB"}
    try:
        assert client.get("/v1/reading").json()["skipped"] == [2]
        assert client.post("/v1/films/1/answer", json=answer).json()["next"] == 3
        paths[2].unlink()  # while it is read
        assert client.get("/v1/films/3").status_code in (409, 422)
        said = client.get("/v1/reading").json()
        assert (said["skipped"], said["next"]) == ([2, 3], 4)
        write_film(paths[2], int(sample[2]["id"][1:]), lungs=0.02 + 0.016 * int(sample[2]["id"][1:]))  # and back again
        assert client.get("/v1/films/3").status_code == 200
        assert client.get("/v1/reading").json()["skipped"] == [2]
        for number in range(3, 9):
            said = client.post(f"/v1/films/{number}/answer", json=answer).json()
        assert (said["done"], said["next"]) == (7, None)
        with (made.write()).open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 7
    finally:
        pictures.close()


def test_another_seed_than_that_of_the_sample_is_refused(results, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    sample = Session(results, count=8, seed=3).sample
    assert Session(results, count=8, seed=3).sample == Session(results).sample == sample
    with pytest.raises(ReadingError, match="seed 3, and 0 is asked for"):
        Session(results, seed=0)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
def test_the_page_goes_past_films_that_vanished(results, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    made, pictures = Session(results, count=4), Pictures()
    paths = [tmp_path / "films" / f"{film['id']}.png" for film in made.sample]
    with page_of(made, pictures, tmp_path) as page:
        page.wait("document.querySelector('#said').textContent.includes('Film 1 of 4')")
        paths[1].unlink()
        page.run(PRESS.format("n"))
        page.wait("document.querySelector('#said').textContent.includes('Film 3 of 4')")
        assert "shown: 1." in page.run("document.querySelector('#said').textContent")
        page.run(PRESS.format("ArrowLeft"))
        page.wait("document.querySelector('#said').textContent.includes('Film 1 of 4')")
        paths[2].unlink()
        paths[3].unlink()
        page.run(PRESS.format("ArrowRight"))  # the third is in memory still
        page.wait("document.querySelector('#said').textContent.includes('Film 3 of 4')")
        page.run(PRESS.format("t"))
        page.wait("document.querySelector('#said').textContent.includes('All films are read')")
        assert list(made.clicks.answers.values()) == ["NORM", "TB"]
        assert all("Failed to load resource" in one for one in page.errors)  # the browser's own word of a 409


def test_a_blind_reader_does_not_meet_file_names_in_errors(results, tmp_path, monkeypatch):
    """Films of class folders are named by their answer."""
    monkeypatch.setattr(session, "LEAST", 5)
    made, client, pictures = serving(results, count=8)
    try:
        film = made.sample[0]
        path = tmp_path / "films" / f"{film['id']}.png"
        write_film(path, 99)
        changed = client.get("/v1/films/1")
        film["sha256"] = ""
        path.write_bytes(b"no film")
        unreadable = client.get("/v1/films/1")
        path.unlink()
        gone = client.get("/v1/films/1")
        assert [answer.status_code for answer in (changed, unreadable)] == [409, 422]
        assert gone.status_code in (409, 422)
        for answer in (changed, unreadable, gone):
            assert film["id"] not in answer.text
    finally:
        pictures.close()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
def test_a_person_reads_by_keys(results, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LEAST", 5)
    made, pictures = Session(results, count=6, blind=False), Pictures()
    with page_of(made, pictures, tmp_path) as page:
        page.wait("document.querySelector('#said').textContent.includes('Film 1 of 6')")
        assert page.run("location.hash") == ""
        assert page.run("document.querySelector('#before').offsetTop === document.querySelector('#after').offsetTop")
        grey = "document.querySelector('#film').getContext('2d').getImageData(20, 20, 1, 1).data[0]"
        before = page.run(grey)
        page.run(PRESS.format("i"))
        page.wait(f"{grey} === {255 - before}")
        page.run(PRESS.format("m"))
        assert page.run("document.querySelectorAll('#drawn .lungs').length") == 1
        for number, pressed in enumerate("tonub", 2):
            page.run(PRESS.format(pressed))
            page.wait(f"document.querySelector('#said').textContent.includes('Film {number} of 6')")
        assert list(made.clicks.answers.values()) == ["TB", "NTB", "NORM", "unsure", "bad"]
        page.run(PRESS.format("ArrowLeft"))
        page.wait("document.querySelector('[aria-pressed=true]')?.dataset.value === 'bad'")
        page.run("document.querySelector('#finish').click()")
        page.wait("document.querySelector('#end').textContent.includes('labels.csv')")
        assert page.errors == []
