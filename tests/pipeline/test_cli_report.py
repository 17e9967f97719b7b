"""`pipeline report`, and the report that ends a run, as a person calls them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from cxr_pipeline import stages
from cxr_pipeline.cli import main as cli
from cxr_pipeline.data.formats.small import Small, Wanted
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.data.radiograph import read as read_film
from cxr_pipeline.report import pictures, report
from cxr_pipeline.report.films import pieces
from cxr_pipeline.report.pictures import Pictures, picture
from cxr_pipeline.results.folder import run_info
from cxr_pipeline.run.reading import file_hash
from cxr_pipeline.stages.base import DETAIL, Record
from tests.data.test_small import j2k
from tests.pipeline import fake_chain
from tests.pipeline.fake_chain import tree, write_film
from tests.pipeline.report_reader import opened

pytestmark = pytest.mark.usefixtures("kept_decoders")


@pytest.fixture
def films(tmp_path):
    for number in range(3):
        write_film(tmp_path / "films" / f"f{number}.png", number, lungs=0.1 + 0.1 * number)
    return tmp_path / "films"


@pytest.fixture
def arguments(films, tmp_path, monkeypatch):
    """A call of run; what its weights load are the fake stages, with a card that has figures."""
    figure = {"value": 0.9, "ci95": [0.85, 0.94], "n": 70}
    for one in fake_chain.chain():
        (tmp_path / "weights" / one.name).mkdir(parents=True)
        if one.name == "classify":
            one.card["decisions"] = one.card["decisions"] | {"positive": "TB", "threshold": 0.25}
        training = {"films": {"train": {"n": 123, "by_source": {"shenzhen": 123}}}}
        card = one.card | {"licence": "MIT", "training": training, "figures": {"test": {"auc_tb": figure}}}
        (tmp_path / "weights" / one.name / "card.json").write_text(json.dumps(card))

    def load_chain(weights, last_stage=None, runtime="onnx", threads=None):
        loaded = fake_chain.chain(last_stage)
        for one in loaded:
            one.card = json.loads((tmp_path / "weights" / one.name / "card.json").read_text())
        return loaded

    monkeypatch.setattr(stages, "load_chain", load_chain)
    return ["run", films, "--out", tmp_path / "out", "--weights", tmp_path / "weights"]


def call(*given):
    return cli._call([str(one) for one in given])


def test_a_run_ends_with_its_report(arguments, tmp_path, capsys):
    assert call(*arguments) == 0
    path = tmp_path / "out" / "report.html"
    assert f"Report    {path}" in capsys.readouterr().out
    page = opened(path)
    assert page.json("facts")["threshold"] == 0.25
    text = path.read_text()
    assert "The threshold is 50.0." in text  # of the score: 50 is the threshold, whatever its probability
    for part in ("0.900 (0.850 to 0.940), n 70", "train 123 (shenzhen 123)", "<td>MIT</td>", "Card of classify"):
        assert part in text
    assert f"<td>{run_info(tmp_path / 'out')['seconds']['total']:.1f}</td>" in text


def test_asked_for_again_it_is_the_same(arguments, tmp_path):
    assert call(*arguments) == 0
    before = tree(tmp_path / "out")
    assert call("report", tmp_path / "out", "--workers", 1) == 0
    assert tree(tmp_path / "out") == before
    assert call(*arguments) == 0
    assert tree(tmp_path / "out") == before


def test_films_that_the_run_has_read_are_not_read_again(arguments, films, tmp_path, monkeypatch):
    read = []
    usual = report.IsolatedReader.__call__

    def seen(self, path, **options):
        read.append(str(path))
        return usual(self, path, **options)

    monkeypatch.setattr(report, "IsolatedReader", type("Reader", (report.IsolatedReader,), {"__call__": seen}))
    assert call(*arguments) == 0
    page = opened(tmp_path / "out" / "report.html")
    assert [page.json(f"film-{number}")["from"] for number in range(3)] == ["source"] * 3
    assert not read
    write_film(films / "later.png", 7, lungs=0.2)  # the run goes on: the others were judged by an earlier call
    assert call(*arguments) == 0
    assert sorted(read) == [str(films / f"f{number}.png") for number in range(3)]
    page = opened(tmp_path / "out" / "report.html")
    assert [page.json(f"film-{number}")["from"] for number in range(4)] == ["source"] * 4


def test_pictures_are_of_no_rough_decoding_and_not_of_more_than_a_number():
    def record(name, pixels, small=None):
        return Record(Radiograph(pixels, name, "", film.shape, None, "png", 8, {}, small=small))

    kept, film = Pictures(most=2), np.linspace(0, 1, 800 * 400, dtype=np.float32).reshape(800, 400)
    kept.keep("0", record("half", film[::2, ::2], Small(film.shape, 2, 1.0, rough=True)))
    kept.keep("0", record("half", film[::2, ::2], Small(film.shape, 2, 1.0)))  # the report reads all of so small a film
    for name in "abc":
        kept.keep("0", record(name, film))
    found = {name: kept.of({"id": name, "sha256": "0"}) for name in ("half", "a", "b", "c")}
    assert [name for name, data in found.items() if data] == ["a", "b"]
    assert cv2.imdecode(np.frombuffer(found["a"].film, np.uint8), cv2.IMREAD_GRAYSCALE).shape == (384, 192)
    assert kept.of({"id": "a", "sha256": "1"}) is None  # another film under the same name


def test_a_large_film_has_the_same_picture_from_what_a_run_holds_and_when_it_is_read_again(tmp_path):
    file = tmp_path / "large.png"
    film = np.random.default_rng(0).integers(0, 255, (300, 260), np.uint8)
    cv2.imwrite(str(file), cv2.resize(film, (2051, 2301), interpolation=cv2.INTER_CUBIC))
    held, whole = read_film(file, wanted=Wanted(1024)), read_film(file)
    assert held.pixels.shape == (1151, 1026)
    kept = Pictures()
    kept.keep("0", Record(held))
    assert kept.of({"id": "large", "sha256": "0"}).film == picture(whole)


def test_a_film_decoded_at_a_half_has_the_same_picture_when_it_is_read_again(tmp_path):
    film = np.random.default_rng(0).random((300, 260), np.float32)
    file = j2k(tmp_path / "large.dcm", cv2.resize(film, (2051, 2301), interpolation=cv2.INTER_LINEAR))
    held = read_film(file, wanted=Wanted(DETAIL), least=DETAIL, rough=False)
    assert held.pixels.shape == (1151, 1026)
    kept = Pictures()
    kept.keep("0", Record(held))
    row = {"image": str(file), "id": "large", "sha256": file_hash(file), "height": "2301", "width": "2051"}
    shown = pieces(tmp_path, {"row": row, "files": {}}, read_film)
    assert base64.b64decode(shown["film"]) == kept.of({"id": "large", "sha256": "0"}).film


def test_a_picture_that_cannot_be_kept_costs_nothing(arguments, tmp_path, monkeypatch):
    def fails(_):
        raise MemoryError("no room")

    monkeypatch.setattr(pictures, "picture", fails)
    assert call(*arguments) == 0
    page = opened(tmp_path / "out" / "report.html")
    assert [page.json(f"film-{number}")["from"] for number in range(3)] == ["source"] * 3


def test_without_it_none_is_left(arguments, tmp_path, capsys):
    assert call(*arguments, "--no-report") == 0
    assert not (tmp_path / "out" / "report.html").exists()
    assert call(*arguments) == 0
    assert (tmp_path / "out" / "report.html").exists()
    assert call(*arguments, "--no-report") == 0
    assert not (tmp_path / "out" / "report.html").exists()


def test_beyond_the_limit_it_is_made_when_asked_for(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "EMBEDDED", 2)
    assert call(*arguments) == 0
    assert f"pipeline report {tmp_path / 'out'}" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.html").exists()
    assert call(*arguments, "--report") == 0
    assert (tmp_path / "out" / "report.html").exists()


def test_a_report_that_fails_does_not_fail_the_run(arguments, films, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "pieces", lambda *_: 1 / 0)
    assert call(*arguments) == 0
    printed = capsys.readouterr().err
    assert "The results are complete, but report.html could not be written" in printed
    assert f"pipeline report {tmp_path / 'out'}" in printed
    assert "Traceback" not in printed
    assert not list((tmp_path / "out").glob("*report*"))
    (films / "text.png").write_text("no image")
    assert call(*arguments) == 1


def test_a_closed_pipe_is_no_fault_of_the_report(tmp_path, monkeypatch, capsys):
    """As in `pipeline screen results | head -1`."""
    from cxr_pipeline.cli.folders import report_at_end

    def closed(text, err=False):
        if not err:
            raise BrokenPipeError
        print(text)

    monkeypatch.setattr(report, "write_report", lambda out, **_: out / "report.html")
    monkeypatch.setattr("click.echo", closed)
    with pytest.raises(BrokenPipeError):
        report_at_end(tmp_path, 1, True)
    assert "could not be written" not in capsys.readouterr().out


def test_interrupted_while_it_is_written_the_run_is_done(arguments, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "_films", interrupted)
    assert call(*arguments) == 0
    assert "The results are complete, without report.html" in capsys.readouterr().err
    assert run_info(tmp_path / "out")["finished"]


def test_the_card_of_changed_weights_is_not_shown(arguments, tmp_path):
    assert call(*arguments) == 0
    card = tmp_path / "weights" / "classify" / "card.json"
    card.write_text(card.read_text().replace("0.9", "0.99"))
    assert call("report", tmp_path / "out") == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("The card of these weights is not at hand") == 1
    assert "0.99" not in text
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    run["hashes"]["classify"] = {}  # as of a stage that has no weights, and so no card that could be gone
    (tmp_path / "out" / "run.json").write_text(json.dumps(run))
    assert call("report", tmp_path / "out") == 0
    assert "is not at hand" not in (tmp_path / "out" / "report.html").read_text()
    assert "threshold: 0.25" in text


@pytest.mark.parametrize("threshold", ["NaN", "null"])
def test_a_threshold_that_could_not_be_fitted_is_none(arguments, tmp_path, threshold):
    assert call(*arguments) == 0
    path = tmp_path / "out" / "run.json"
    path.write_text(path.read_text().replace('"threshold": 0.25', f'"threshold": {threshold}'))
    assert call("report", tmp_path / "out") == 0
    assert opened(tmp_path / "out" / "report.html").json("facts")["threshold"] is None
    assert "The threshold is" not in (tmp_path / "out" / "report.html").read_text()


def test_overwrite_takes_it_along(arguments, tmp_path):
    assert call(*arguments) == 0
    (tmp_path / "c.yaml").write_text("segment: {threshold: 0.35}\n")
    assert call(*arguments, "--config", tmp_path / "c.yaml", "--overwrite", "--no-report") == 0
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_folder_of_neither_is_2_and_says_so(tmp_path, capsys):
    assert call("report", tmp_path) == 2
    assert "Give a folder of `pipeline run`" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_its_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "cxr_pipeline.cli.main", "report", "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.stderr.splitlines()}
    assert not imported & {"cv2", "numpy", "onnxruntime", "rich"}
