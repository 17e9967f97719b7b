"""What every importer of a public data set keeps to, each on a small tree with the real file names and headers."""

from __future__ import annotations

import importlib
import re
import shutil

import cv2
import pytest

from cxr_pipeline.data.layouts import LAYOUTS
from cxr_pipeline.data.layouts.base import LayoutError, age_of, sex_of, tree_of
from cxr_pipeline.data.layouts.write import import_dataset
from cxr_pipeline.data.manifest import COLUMNS, read_manifest
from cxr_pipeline.data.splits import leaking_patients
from cxr_pipeline.stages.films import read_mask
from tests.data.layout_trees import (
    TREES,
    chexpert,
    film,
    montgomery,
    nih,
    rsna,
    tbdb,
    text,
)

TB_CLASSES = ("TB", "NTB", "NORM")


def test_every_data_set_has_a_tree_here():
    assert set(TREES) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_manifest_reads_back_without_faults(name, imported, tmp_path):
    done, table = imported(name)
    again = read_manifest(tmp_path / "out" / "manifest.csv", classes=TB_CLASSES)  # files exist, too
    assert len(again) == len(table) > 0
    assert list(again.table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert leaking_patients(again) == {}
    assert set(table["source"]) == {name}
    assert all(patient.startswith(f"{name}-") for patient in table["patient"])
    for _, row in table.iterrows():
        if row["mask"]:
            assert read_mask(again.path(row["mask"]), cv2.imread(str(again.path(row["image"])), 0).shape).any()
    assert all(isinstance(note, str) and note for note in done.notes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_folder_above_serves_as_well(name, tmp_path):
    home = TREES[name](tmp_path / "downloads")
    one = import_dataset(name, home, tmp_path / "a" / "m.csv").manifest.table
    other = import_dataset(name, home.parent, tmp_path / "b" / "m.csv").manifest.table
    assert list(one["patient"]) == list(other["patient"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrong_folder_shows_the_expected_tree_and_what_is_there(name, tmp_path):
    (tmp_path / "holiday pictures").mkdir()
    with pytest.raises(LayoutError) as caught:
        import_dataset(name, tmp_path, tmp_path / "m.csv")
    importer = getattr(importlib.import_module(f"cxr_pipeline.data.layouts.{LAYOUTS[name].module}"), name)
    tree = tree_of(importer)
    assert len(tree.splitlines()) >= 3
    assert tree in str(caught.value)
    assert "Found: holiday pictures" in str(caught.value)
    assert not (tmp_path / "m.csv").exists()


def test_half_a_download_shows_what_is_in_it(tmp_path):
    home = TREES["covidchestxray"](tmp_path / "downloads")
    shutil.rmtree(home / "images")
    with pytest.raises(LayoutError, match="Found: covid-chestxray-dataset/; in covid-chestxray-dataset/: metadata.csv"):
        import_dataset("covidchestxray", home.parent, tmp_path / "m.csv")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_mirrored_sites_path_may_lie_above(name, tmp_path):
    above = tmp_path / "site.org" / "files" / "set" / "patients"
    home = TREES[name](above)
    done = import_dataset(name, tmp_path / "site.org", tmp_path / "m.csv")
    again = import_dataset(name, home, tmp_path / "again" / "m.csv")
    assert list(done.manifest.table["patient"]) == list(again.manifest.table["patient"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_licence_and_leakage_stand_in_the_registry_alone(name):
    importer = getattr(importlib.import_module(f"cxr_pipeline.data.layouts.{LAYOUTS[name].module}"), name)
    assert re.search(r"[Pp]atient", importer.__doc__)
    assert "Licence:" not in importer.__doc__
    assert all((LAYOUTS[name].licence, LAYOUTS[name].citation, LAYOUTS[name].leakage))


def test_paths_below_the_manifest_are_relative(tmp_path):
    montgomery(tmp_path)
    table = import_dataset("montgomery", tmp_path, tmp_path / "m.csv").manifest.table
    assert table["image"][0] == "MontgomerySet/CXR_png/MCUCXR_0001_0.png"


@pytest.mark.parametrize(
    ("reading", "age", "sex"),
    [
        ("Patient's Sex: F Patient's Age: 027Y", "27", "F"),
        ("male 45yrs", "45", "M"),
        ("female24yrs", "24", "F"),
        ("Male, 6 months", "0.5", "M"),
        ("58", "58", ""),
        ("61.0", "61", ""),
        ("414", "", ""),  # stands in the first table of ChestX-ray14
        ("", "", ""),
        ("unknown", "", ""),
    ],
)
def test_ages_and_sexes(reading, age, sex):
    assert (age_of(reading), sex_of(reading)) == (age, sex)


def test_a_table_without_its_columns_is_named(tmp_path):
    home = nih(tmp_path)
    text(home / "Data_Entry_2017.csv", "a,b", "1,2")
    with pytest.raises(LayoutError, match="no column Image Index, Finding Labels, Patient ID. Columns there: a, b"):
        import_dataset("nih", home, tmp_path / "m.csv")


def test_tables_without_any_film_are_refused(tmp_path):
    home = rsna(tmp_path)
    for path in (home / "stage_2_train_images").iterdir():
        path.unlink()
    with pytest.raises(LayoutError, match="no film of rsna was found.*3 of 3 films"):
        import_dataset("rsna", home, tmp_path / "m.csv")


def test_a_manifest_is_replaced_only_when_asked(tmp_path):
    home = tbdb(tmp_path / "d")
    out = tmp_path / "m.csv"
    import_dataset("tbdb", home, out)
    with pytest.raises(LayoutError, match="--overwrite"):
        import_dataset("tbdb", home, out)
    import_dataset("tbdb", home, out, overwrite=True)
    with pytest.raises(LayoutError, match="Received"):
        import_dataset("tbdb", home, tmp_path / "boxes.csv")


def test_a_manifest_with_faults_replaces_nothing(tmp_path):
    home = chexpert(tmp_path)
    import_dataset("chexpert", home, tmp_path / "m.csv")
    before = (tmp_path / "m.csv").read_bytes()
    lines = (home / "valid.csv").read_text().splitlines()
    text(home / "valid.csv", lines[0], lines[1].replace("patient64541", "patient00001"))
    film(home / "valid/patient00001/study1/view1_frontal.jpg")
    with pytest.raises(LayoutError, match=r"nothing was written(.|\n)*patient00001"):
        import_dataset("chexpert", home, tmp_path / "m.csv", overwrite=True)
    assert (tmp_path / "m.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_boxes_never_meet_another_manifest(tmp_path):
    boxed, plain = rsna(tmp_path / "d"), tbdb(tmp_path / "d")
    import_dataset("rsna", boxed, tmp_path / "a" / "rsna.csv")
    with pytest.raises(LayoutError, match="holds boxes of another manifest"):
        import_dataset("tbdb", plain, tmp_path / "a" / "tbdb.csv")
    import_dataset("tbdb", plain, tmp_path / "b" / "tbdb.csv")
    with pytest.raises(LayoutError, match="cannot serve both"):
        import_dataset("rsna", boxed, tmp_path / "b" / "rsna.csv")
    import_dataset("tbdb", plain, tmp_path / "a" / "rsna.csv", overwrite=True)  # and its boxes go with it
    assert not (tmp_path / "a" / "boxes.csv").exists()


def test_the_registry_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, cxr_pipeline.data.layouts\nprint({'pandas', 'numpy', 'cv2', 'PIL'} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
