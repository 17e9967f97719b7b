"""`pipeline data import` and `pipeline data summary` through the command line."""

from __future__ import annotations

import csv

import cv2
import pytest

from cxr_pipeline.cli.main import _call
from cxr_pipeline.data.layouts import LAYOUTS
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.manifests.summary import counts
from tests.data.layout_trees import TREES, kermany, rsna, tbx11k


def test_import_prints_the_summary_and_the_next_step(tmp_path, capsys):
    out = tmp_path / "m" / "manifest.csv"
    assert _call(["data", "import", "tbx11k", str(tbx11k(tmp_path)), "--out", str(out)]) == 0
    printed, warned = capsys.readouterr()
    assert "5 films of 5 patients from 1 source(s); 0 with a lung mask, 1 with boxes" in printed
    assert f"Next: pipeline data check {out}" in printed
    assert LAYOUTS["tbx11k"].licence in printed
    assert "note: LEAKAGE avoided" in warned
    assert _call(["data", "check", str(out), "--no-images"]) == 0


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("montgomery", "pipeline train --data {} --out my-weights"),
        ("tbx11k", "pipeline train --data {} --set segment.weights=tb --out my-weights"),
        ("kermany", "pipeline train --data {} --config pneumonia --out my-weights"),
        ("chexpert", "pipeline train --data {} --config chexpert --out my-weights"),
        ("jsrt", "join it with films of TB"),
    ],
)
def test_the_next_step_fits_the_data_set(name, step, tmp_path, capsys):
    out = tmp_path / "m" / "manifest.csv"
    assert _call(["data", "import", name, str(TREES[name](tmp_path)), "--out", str(out)]) == 0
    assert step.format(out) in capsys.readouterr().out


def test_import_help_lists_every_data_set(capsys):
    assert _call(["data", "import", "--help"]) == 0
    printed = capsys.readouterr().out
    for name, layout in LAYOUTS.items():
        assert f"  {name} " in printed
        assert layout.title in printed


def test_a_wrong_folder_is_2_and_shows_the_tree(tmp_path, capsys):
    assert _call(["data", "import", "rsna", str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 2
    printed = capsys.readouterr().err
    assert "stage_2_train_labels.csv" in printed
    assert "Found: nothing" in printed
    assert "unexpected" not in printed


def test_an_unknown_data_set_is_2(tmp_path, capsys):
    assert _call(["data", "import", "padchest", str(tmp_path), "--out", str(tmp_path / "m.csv")]) == 2
    assert "montgomery" in capsys.readouterr().err


def test_own_labels_through_the_command(tmp_path):
    out = tmp_path / "m.csv"
    assert _call(["data", "import", "kermany", str(kermany(tmp_path)), "--out", str(out), "--labels", "own"]) == 0
    read_manifest(out, classes=("NORMAL", "PNEUMONIA"))


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(
        "image,mask,label,patient,source,split,findings\n"
        "a.png,a_mask.png,TB,p1,x,train,Cavity|Nodule\n"
        "b.png,,TB,p1,x,train,Nodule\n"
        "c.png,,NORM,p2,x,test,\n"
        "d.png,,,p3,y,,\n"
    )
    return path


def test_summary_counts_by_source_class_and_split(manifest, capsys):
    assert _call(["data", "summary", str(manifest)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [
        "4 films of 3 patients from 2 source(s); 1 with a lung mask, 0 with boxes",
        "source label train test no split all",
        "x NORM 0 1 0 1",
        "x TB 2 0 0 2",
        "y no label 0 0 1 1",
        "all 2 1 1 4",
        "finding train all",
        "Nodule 2 2",
        "Cavity 1 1",
    ]


def test_summary_leaves_tables_and_a_picture(manifest, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert _call(["data", "summary", str(manifest), "--out", str(out)]) == 0
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"source": "x", "label": "TB", "split": "train", "films": "2", "patients": "1", "masks": "1"}
    assert sum(int(row["films"]) for row in rows) == 4
    with (out / "findings.csv").open() as file:
        assert {row["finding"] for row in csv.DictReader(file)} == {"Cavity", "Nodule"}
    assert cv2.imread(str(out / "summary.png")) is not None
    assert capsys.readouterr().out.count("Written: ") == 3


def test_summary_counts_a_table_with_faults_and_says_so(manifest, capsys):
    manifest.write_text(manifest.read_text() + "e.png,,TB,p1,x,holdout,\n")
    assert _call(["data", "summary", str(manifest)]) == 0
    printed, warned = capsys.readouterr()
    assert "5 films" in printed
    assert "holdout" in printed
    assert "1 fault(s)" in warned


def test_summary_says_how_many_films_are_missing(manifest, capsys):
    (manifest.parent / "a.png").touch()
    (manifest.parent / "B.PNG").touch()  # which reading mends
    assert _call(["data", "summary", str(manifest)]) == 0
    assert f"2 of these 4 films are missing; see: pipeline data check {manifest}" in capsys.readouterr().err
    for name in "cd":
        (manifest.parent / f"{name}.png").touch()
    assert _call(["data", "summary", str(manifest)]) == 0
    assert capsys.readouterr().err == ""


def test_summary_of_an_import_has_every_film(tmp_path):
    out = tmp_path / "m.csv"
    assert _call(["data", "import", "rsna", str(rsna(tmp_path)), "--out", str(out)]) == 0
    table = counts(read_manifest(out))
    assert table["films"].sum() == 3
    assert set(table["split"]) == {"no split"}
