"""A finished folder decided again: the same as a run that had decided so, without its networks."""

from __future__ import annotations

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import yaml

from cxr_pipeline.cli.main import _call
from cxr_pipeline.models.store import fingerprint, write_card
from cxr_pipeline.results.drawing import layout
from cxr_pipeline.results.folder import Identity, rows, run_info
from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.results.reader import ResultsReader, wrong_files
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.run.screen import ScreenError, screen, summary
from cxr_pipeline.stages.base import fingerprint_of
from cxr_pipeline.stages.classify import Classify
from cxr_pipeline.train.calibration import CalibrationError
from tests.pipeline import dicom_films
from tests.pipeline.fake_chain import CLASSES, FakeClassify, chain, tree, write_film

pytestmark = pytest.mark.usefixtures("kept_decoders")

DECISIONS = {
    "classes": CLASSES,
    "positive": "TB",
    "normal": "NORM",
    "size": 96,
    "lungs": "crop",
    "temperature": 0.7,
    "offsets": {"TB": 0.1, "NTB": -0.6, "NORM": 0.2},
    "threshold": 0.3,
    "score": {"below": 2.0, "above": 3.0},
    "sets": {"risk": 0.1, "positive": 0.25, "negative": 0.35, "classes": {"TB": 0.1, "NTB": 0.1, "NORM": 0.1}},
}
SITE = {
    "site": "x",
    "weights": {"segment": "fake-segment", "classify": "fake-classify"},
    "temperature": 1.4,
    "offsets": {"TB": -0.5, "NTB": 0.4, "NORM": 0.1},
    "threshold": 0.2,
    "threshold_ci95": [0.1, 0.3],
    "score": {"below": 1.0, "above": 1.5},
}


class Judge(FakeClassify):
    """The real decisions, on logits that follow the brightness of the lungs."""

    def __init__(self, settings=None, **options):
        super().__init__(**options)
        self.real = Classify(None, {"decisions": DECISIONS | (settings or {})})

    def judge(self, record):
        super().judge(record)
        bright = record.probabilities["TB"]
        logits = np.array([3 * bright - 1.2, 0.5 - bright, 0.9 - 2 * bright], np.float32)
        self.real._judge(record, logits)


def go(films, out, settings=None, weights=None, **how):
    """A run whose classifier has other settings than its card's, as `open_chain` would make it."""
    segment, _, localize = chain()
    judge = Judge(settings, fingerprint=fingerprint(weights / "classify") if weights else None)
    stages = [segment, judge, localize]
    bundles = {stage.name: stage.fingerprint for stage in stages}
    settings = settings or {}
    about = {"config": {"classify": DECISIONS | settings}, "bundles": bundles, "decided": settings}
    about |= {"weights": str(weights)} if weights else {}
    prints = bundles | {"classify": fingerprint_of(bundles["classify"], settings)}
    identity = Identity("1", "onnx", prints, tuple(CLASSES), about)
    return Runner(stages, out, identity, workers=1, **how).run(find_inputs([films]))


@pytest.fixture
def films(tmp_path):
    for number in range(8):
        write_film(tmp_path / "films" / f"f{number}.png", number, lungs=0.05 * number)
    (tmp_path / "films" / "text.png").write_text("no film")
    return tmp_path / "films"


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(SITE))
    return path


@pytest.fixture
def weights(tmp_path):
    """A folder of weights whose card decides as DECISIONS do."""
    bundle = tmp_path / "weights" / "classify"
    bundle.mkdir(parents=True)
    write_card(bundle, {"decisions": DECISIONS})
    return bundle.parent


def site_settings():
    return {key: SITE[key] for key in ("temperature", "offsets", "threshold", "threshold_ci95", "score")} | {
        "sets": None
    }


def files_but_overlays(folder):
    """All files by name; of overlays, which are packed again, neither the bytes nor their size and checksum."""
    out = {name: data for name, data in tree(folder).items() if not name.startswith("overlays/")}
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line["files"] = {name: None if name.startswith("overlays/") else facts for name, facts in line["files"].items()}
    return out | {"journal.jsonl": lines}


def overlays(folder):
    return {path.name: cv2.imread(str(path)).astype(int) for path in sorted((folder / "overlays").iterdir())}


def assert_the_same(folder, wanted):
    """All files are the same, and overlays as far as JPEG lets them; the journal tells their sizes and checksums."""
    assert files_but_overlays(folder) == files_but_overlays(wanted)
    drawn, drawn_wanted = overlays(folder), overlays(wanted)
    assert drawn.keys() == drawn_wanted.keys()
    for name, image in drawn.items():
        row = table(folder)[name.removesuffix(".jpg")]
        height = layout(int(row["height"]), int(row["width"]))[0]
        assert np.abs(image - drawn_wanted[name]).mean() < 1.5
        assert np.abs(image[height:] - drawn_wanted[name][height:]).mean() < 2.0  # another text: more than 4
    for entry in ResultsReader(folder):
        assert wrong_files(folder, entry) == []


def table(folder):
    return {row["id"]: row for row in rows(folder)}


@pytest.mark.parametrize("cutoff", [10.0, 47.3, 80.0])
def test_a_threshold_is_as_if_the_run_had_had_it(films, tmp_path, cutoff):
    go(films, tmp_path / "out")
    go(films, tmp_path / "wanted", {"cutoff": cutoff})
    before = table(tmp_path / "out")
    screened = screen(tmp_path / "out", threshold=cutoff)
    assert_the_same(tmp_path / "out", tmp_path / "wanted")
    now = table(tmp_path / "out")
    assert screened.changed == sum(before[name].get("screen") != now[name].get("screen") for name in now)
    assert {row["tb_score"] for row in before.values()} == {row["tb_score"] for row in now.values()}
    for row in now.values():
        if row["screen"] in ("positive", "negative"):
            assert (float(row["tb_score"]) >= cutoff) == (row["screen"] == "positive")


def test_a_site_is_as_if_the_run_had_had_it(films, tmp_path, site):
    go(films, tmp_path / "out")
    go(films, tmp_path / "wanted", site_settings())
    screened = screen(tmp_path / "out", site=site)
    # Boxes stay as the run drew them, of the label that it gave: all else is the same.
    without_boxes = [
        {name: {k: v for k, v in row.items() if k != "regions"} for name, row in table(tmp_path / out).items()}
        for out in ("out", "wanted")
    ]
    assert without_boxes[0] == without_boxes[1]
    runs = [tree(tmp_path / out)["run.json"] | {"tables": None} for out in ("out", "wanted")]  # which hold the boxes
    assert runs[0] == runs[1]
    assert sum(screened.now.values()) == 8
    assert screened.films == 9
    assert "unsure" not in screened.now  # the site file has no sets
    assert "Screen: " in summary(screened, tmp_path)


def test_a_threshold_on_top_of_a_site_and_back(films, tmp_path, site):
    go(films, tmp_path / "out")
    screen(tmp_path / "out", site=site)
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    screen(tmp_path / "out", threshold=70)
    assert table(tmp_path / "out") != table(tmp_path / "before")
    screen(tmp_path / "out", site=site)
    assert_the_same(tmp_path / "out", tmp_path / "before")


def test_from_a_site_back_to_what_the_weights_decide(films, tmp_path, weights, site):
    out, wanted = tmp_path / "out", tmp_path / "wanted"
    site.write_text(yaml.safe_dump(SITE | {"weights": {"classify": fingerprint(weights / "classify")}}))
    go(films, wanted, weights=weights)
    shutil.copytree(wanted, out)
    screen(out, site=site, threshold=70)
    assert table(out) != table(wanted)
    assert screen(out, site="none", threshold=40).threshold == 40
    assert _call(["screen", str(out), "--site", "none", "--no-report"]) == 0
    assert_the_same(out, wanted)
    assert go(films, out, weights=weights).already == 9
    go(films, tmp_path / "sited", site_settings(), weights)  # which knows the weights' own decisions from nowhere else
    screen(tmp_path / "sited", site="none")
    for name, row in table(tmp_path / "sited").items():
        assert {**row, "regions": ""} == {**table(wanted)[name], "regions": ""}  # boxes stay as drawn
    assert run_info(tmp_path / "sited")["config"] == run_info(wanted)["config"]


def test_without_its_weights_no_folder_goes_back_from_a_site(films, tmp_path, weights, site):
    out = tmp_path / "out"
    go(films, out, site_settings(), weights)
    before = tree(out)
    write_card(weights / "classify", {"decisions": DECISIONS | {"threshold": 0.31}})
    with pytest.raises(ScreenError, match="made with other weights .*--overwrite"):
        screen(out, site="none")
    shutil.rmtree(weights)
    with pytest.raises(ScreenError, match="weights that cannot be read now: no weights"):
        screen(out, site="none")
    assert tree(out) == before


def test_deciding_as_before_packs_no_overlay_again(films, tmp_path):
    out = tmp_path / "out"
    go(films, out)
    screen(out, threshold=40)
    before = tree(out)
    screen(out, threshold=40)
    assert tree(out) == before


def test_the_files_keep_the_mode_of_the_run(films, tmp_path):
    out = tmp_path / "out"
    go(films, out)
    screen(out, threshold=10)
    modes = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert modes == {0o600}


def test_a_run_goes_on_without_judging_again_what_was_decided_again(films, tmp_path):
    out = tmp_path / "out"
    go(films, out)
    screen(out, threshold=10)
    assert go(films, out, {"cutoff": 10.0}).already == 9


def test_an_overlay_that_is_cut_or_missing_is_left_to_the_next_run(films, tmp_path):
    out = tmp_path / "out"
    go(films, out)
    cut, missing = sorted((out / "overlays").iterdir())[:2]
    cut.write_bytes(cut.read_bytes()[:-100])
    missing.unlink()
    screen(out, threshold=10)
    assert sum(bool(wrong_files(out, entry)) for entry in ResultsReader(out)) == 2
    assert go(films, out, {"cutoff": 10.0}).already == 7
    assert not any(wrong_files(out, entry) for entry in ResultsReader(out))


def test_films_may_join_a_folder_decided_again(films, tmp_path):
    go(films, tmp_path / "out")
    screen(tmp_path / "out", threshold=40)
    write_film(films / "new.png", 99, lungs=0.3)
    summary = go(films, tmp_path / "out", {"cutoff": 40.0})
    assert summary.already == 9
    assert run_info(tmp_path / "out")["counts"]["ok"] == 9


def test_the_worklist_follows(films, tmp_path):
    go(films, tmp_path / "out")
    screen(tmp_path / "out", threshold=80)
    with open(tmp_path / "out" / "worklist.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert {one["id"]: one["screen"] for one in listed if one["score"]} == {
        name: row["screen"] for name, row in table(tmp_path / "out").items() if row["tb_score"]
    }


def test_what_cannot_be_decided_again_is_refused_and_left_alone(films, tmp_path, site):
    out = tmp_path / "out"
    with pytest.raises(ScreenError, match="--threshold SCORE, or --site FILE"):
        screen(out)
    with pytest.raises(ResultsError, match="no results folder"):
        screen(films, threshold=40)
    go(films, out)
    site.write_text(yaml.safe_dump(SITE | {"weights": {"classify": "others"}}))
    before = tree(out)
    with pytest.raises(CalibrationError, match="made with other 'classify' weights"):
        screen(out, site=site)
    assert tree(out) == before
    run = run_info(out)
    (out / "run.json").write_text(json.dumps(run | {"finished": False}))
    with pytest.raises(ScreenError, match="has not finished"):
        screen(out, threshold=40)


def test_a_folder_without_logits_says_to_run_again(films, tmp_path):
    out = tmp_path / "out"
    go(films, out)
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("logits", None)
    (out / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = tree(out)
    with pytest.raises(ScreenError, match="--overwrite"):
        screen(out, threshold=40)
    assert tree(out) == before


def test_answers_that_hold_the_decision_of_before_go_and_the_next_run_makes_them_anew(tmp_path):
    from cxr_pipeline.results.outputs import chosen

    pytest.importorskip("highdicom")
    pytest.importorskip("fhir.resources")
    (tmp_path / "films").mkdir()
    dicom_films.write(tmp_path / "films" / "a.dcm")

    def run(settings=None):
        return go(tmp_path / "films", tmp_path / "out", settings, outputs=chosen("masks,dicom,fhir"))

    run()
    assert (tmp_path / "out" / "dicom" / "a-sr.dcm").is_file()
    screen(tmp_path / "out", threshold=99.0)
    assert [path.name for folder in ("dicom", "fhir") for path in (tmp_path / "out" / folder).iterdir()] == []
    (entry,) = ResultsReader(tmp_path / "out")
    assert wrong_files(tmp_path / "out", entry) == []
    run({"cutoff": 99.0})
    assert "threshold 99" in (tmp_path / "out" / "fhir" / "a.json").read_text()
    assert (tmp_path / "out" / "dicom" / "a-sr.dcm").is_file()
