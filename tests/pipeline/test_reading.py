"""Reading a sample of a run's films: who is drawn with which chance, what is kept, and that its weights are right."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from fastapi.testclient import TestClient

from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.reading import ReadingError, session
from cxr_pipeline.reading.app import create_app
from cxr_pipeline.reading.clicks import Clicks
from cxr_pipeline.reading.labels import agreement, kappa, label_of
from cxr_pipeline.reading.pictures import Pictures
from cxr_pipeline.reading.sampling import chances, draw
from cxr_pipeline.reading.session import Session
from cxr_pipeline.run import isolation
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner, identity_of
from cxr_pipeline.train import weighted
from cxr_pipeline.train.calibration import fit
from cxr_pipeline.train.training import prepare_manifest
from cxr_pipeline.web.settings import Settings
from tests.pipeline.chromium import BROWSER, tab
from tests.pipeline.fake_chain import chain, write_film

KEY = "0123456789abcdefSECRET"


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


# ---- a folder, and its page ----
@pytest.fixture
def results(tmp_path):
    for number in range(24):
        write_film(tmp_path / "films" / f"f{number:02}.png", number, lungs=0.02 + 0.016 * number)
    stages = chain()
    config = {"classify": {"classes": ["TB", "NTB", "NORM"], "positive": "TB", "normal": "NORM", "threshold": 0.5}}
    out = tmp_path / "out"
    Runner(stages, out, identity=identity_of(stages, about={"config": config}), workers=2).run(
        find_inputs([tmp_path / "films"])
    )
    return out


def serving(results, **options):
    made = Session(results, **options)
    pictures = Pictures()
    client = TestClient(create_app(made, Settings(api_key=KEY), pictures), base_url="http://127.0.0.1")
    client.headers["X-API-Key"] = KEY
    return made, client, pictures


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
    import threading

    import uvicorn

    from cxr_pipeline.web.server import listen, server_config

    monkeypatch.setattr(session, "LEAST", 5)
    made, pictures = Session(results, count=6, blind=False), Pictures()
    settings = Settings(port=0, api_key=KEY)
    with listen(settings) as socket, tab(tmp_path / "profile", width=1200, height=800) as page:
        server = uvicorn.Server(server_config(settings, create_app(made, settings, pictures)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        try:
            page.open(f"http://127.0.0.1:{socket.getsockname()[1]}/#{KEY}")
            page.wait("document.querySelector('#said').textContent.includes('Film 1 of 6')")
            assert page.run("location.hash") == ""
            grey = "document.querySelector('#film').getContext('2d').getImageData(20, 20, 1, 1).data[0]"
            before = page.run(grey)
            key = "document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}'}}))"
            page.run(key.format("i"))
            page.wait(f"{grey} === {255 - before}")
            page.run(key.format("m"))
            assert page.run("document.querySelectorAll('#drawn .lungs').length") == 1
            for number, pressed in enumerate("tonub", 2):
                page.run(key.format(pressed))
                page.wait(f"document.querySelector('#said').textContent.includes('Film {number} of 6')")
            assert list(made.clicks.answers.values()) == ["TB", "NTB", "NORM", "unsure", "bad"]
            page.run(key.format("ArrowLeft"))
            page.wait("document.querySelector('[aria-pressed=true]')?.dataset.value === 'bad'")
            page.run("document.querySelector('#finish').click()")
            page.wait("document.querySelector('#end').textContent.includes('labels.csv')")
            assert page.errors == []
        finally:
            server.should_exit = True
            thread.join(30)
            pictures.close()
