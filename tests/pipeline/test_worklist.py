"""What to read first: the order, the words, the files."""

from __future__ import annotations

import csv
import json

import pytest

from cxr_pipeline.about import PROGRAM
from cxr_pipeline.data.files import csv_line
from cxr_pipeline.results import worklist
from cxr_pipeline.results.outputs import columns
from cxr_pipeline.results.worklist import Work, work_of, write_worklist

FILMS = [
    {"image": "a/x/=1+1.png", "status": "ok", "screen": "negative", "tb_score": "12.0", "label": "NTB"},
    {"image": "a/two.png", "status": "ok", "screen": "positive", "tb_score": "71.0", "label": "TB"},
    {"image": "three.png", "status": "refused", "error": "cut_off: the film is cut off"},
    {"image": "a/four.png", "status": "ok", "screen": "unsure", "tb_score": "55.5", "label": "NORM",
     "warnings": "unsure: w"},
    {"image": "a/five.png", "status": "ok", "screen": "positive", "tb_score": "93.2", "label": "TB", "warnings": "one"},
    {"image": "a/six.png", "status": "failed", "error": "six.png: damaged"},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    films = [
        {**film, "id": str(number), "sha256": "x", "width": "9", "height": "9"} for number, film in enumerate(FILMS)
    ]
    table = b"".join(csv_line(columns(), film) for film in films)
    (tmp_path / "results.csv").write_bytes(csv_line(columns(), {name: name for name in columns()}) + table)
    regions = [
        {"bbox": [0, 0, 2, 2], "area": 4, "score": 0.5, "category": "TB", "side": side, "zone": zone}
        for side, zone in (("right", "upper"), ("right", "upper"), ("left", "lower"))
    ]
    rest = {"stage": "localize", "retry": False, "files": {}, "outputs": [], "trace": ""}
    entries = [
        {"key": str(n), "row": film, "regions": regions if n == 4 else [], **rest} for n, film in enumerate(films)
    ]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    run = {"program": PROGRAM, "config": {"classify": {"positive": "TB", "cutoff": 40}}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    return tmp_path


def listed(folder):
    with open(folder / "worklist.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_most_suspicious_come_first(folder):
    write_worklist(folder)
    found = listed(folder)
    assert [one["id"] for one in found] == ["4", "1", "3", "2", "5", "0"]
    assert [one["place"] for one in found] == ["1", "2", "3", "4", "5", "6"]
    assert found[0]["where"] == "right lung, upper zone; left lung, lower zone"
    assert (found[0]["file"], found[0]["folder"]) == ("five.png", "a")


def test_the_reason_is_in_words(folder):
    write_worklist(folder)
    assert [one["reason"] for one in listed(folder)] == [
        "TB score 93.2 reaches the threshold, 40; one",
        "TB score 71.0 reaches the threshold, 40",
        "TB score 55.5 reaches the threshold, 40, too near to decide; likeliest NORM",
        "not judged: cut_off: the film is cut off",
        "not judged: six.png: damaged",
        "TB score 12.0 is under the threshold, 40; likeliest NTB",
    ]


def test_the_counts_are_said(folder):
    work = write_worklist(folder)
    assert work.summary() == (
        "6 films: 2 screen positive, 1 unsure, 1 negative, 1 refused, 1 failed. Read these 3 first.\n"
        "Likeliest class: 1 NORM, 1 NTB, 2 TB."
    )
    assert work_of([FILMS[1]]).summary().startswith("1 film: 1 screen positive")
    assert Work({"ok": 3}).summary() == "3 films: 0 refused, 0 failed."


def test_who_may_read_the_run_may_read_the_worklist(folder):
    pytest.importorskip("openpyxl")
    for mode in (0o600, 0o640):
        (folder / "run.json").chmod(mode)
        write_worklist(folder)
        assert {(folder / f"worklist.{kind}").stat().st_mode & 0o777 for kind in ("csv", "xlsx")} == {mode}


def test_a_file_name_is_no_formula(folder):
    openpyxl = pytest.importorskip("openpyxl")
    write_worklist(folder)
    assert listed(folder)[-1]["file"] == "'=1+1.png"
    sheet = openpyxl.load_workbook(folder / "worklist.xlsx")["worklist"]
    last = next(iter(sheet.iter_rows(min_row=7, max_row=7)))
    assert (last[1].value, last[1].data_type) == ("=1+1.png", "s")
    assert (last[0].value, last[5].value) == (6, 12.0)


def test_the_same_films_give_the_same_bytes(folder):
    write_worklist(folder)
    first = (folder / "worklist.xlsx").read_bytes()
    write_worklist(folder)
    assert (folder / "worklist.xlsx").read_bytes() == first


def test_a_missing_library_is_said_and_costs_the_workbook_alone(folder, monkeypatch):
    (folder / "worklist.xlsx").write_text("of before")
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    assert write_worklist(folder).excel_missing
    assert not (folder / "worklist.xlsx").exists()
    assert len(listed(folder)) == 6
    assert tuple(listed(folder)[0]) == worklist.COLUMNS
