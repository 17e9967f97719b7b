"""Importers of the sets about tuberculosis and lungs: montgomery, shenzhen, jsrt, tbx11k, tbdb."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr_pipeline.data.layouts.base import LayoutError
from cxr_pipeline.data.layouts.write import import_dataset
from cxr_pipeline.data.radiograph import read
from cxr_pipeline.data.splits import leaking_patients
from tests.data.layout_trees import (
    film,
    jsrt,
    lung,
    montgomery,
    shenzhen,
    tbdb,
    tbx11k,
    text,
)


def test_montgomery_joins_the_lungs_and_reads_the_patients(imported, tmp_path):
    done, table = imported("montgomery")
    normal, sick = table.loc["MCUCXR_0001_0"], table.loc["MCUCXR_0104_1"]
    assert (normal["label"], normal["age"], normal["sex"], normal["findings"]) == ("NORM", "27", "F", "")
    assert (sick["label"], sick["age"], sick["sex"], sick["reading"]) == ("TB", "63", "M", "RUL TB")
    assert normal["mask"] == "masks/montgomery/MCUCXR_0001_0.png"
    mask = cv2.imread(str(tmp_path / "out" / normal["mask"]), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).sum() == 2 * 25 * 10
    assert any("joined into" in note for note in done.notes)
    assert Path(normal["image"]).is_absolute()


def test_a_bad_mask_costs_only_itself(tmp_path):
    home = montgomery(tmp_path)
    (home / "ManualMask" / "leftMask" / "MCUCXR_0001_0.png").write_text("no picture")
    done = import_dataset("montgomery", home, tmp_path / "m.csv")
    assert list(done.manifest.table["mask"]) == ["", "masks/montgomery/MCUCXR_0104_1.png"]
    assert any("leftMask/MCUCXR_0001_0.png cannot be read" in note for note in done.notes)


def test_shenzhen_takes_masks_where_they_are(imported):
    done, table = imported("shenzhen")
    assert table.loc["CHNCXR_0001_0", "mask"].endswith("CHNCXR_0001_0_mask.png")
    assert table.loc["CHNCXR_0327_1", "mask"] == ""
    assert list(table["age"]) == ["45", "28"]
    assert list(table["sex"]) == ["M", "F"]
    assert any("1 of 2 films have no lung mask" in note for note in done.notes)


@pytest.mark.parametrize("place", ["ChinaSet_AllFiles/mask/mask", "shcxr-lung-mask/mask/mask", "masks"])
def test_shenzhen_finds_masks_wherever_they_were_unpacked(place, tmp_path):
    home = shenzhen(tmp_path)
    shutil.rmtree(home / "mask")
    lung(tmp_path / place / "CHNCXR_0327_1_mask.png", slice(5, 35))
    table = import_dataset("shenzhen", home, tmp_path / "m.csv").manifest.table
    assert [bool(mask) for mask in table["mask"]] == [False, True]


def test_a_reading_may_be_misspelt(tmp_path):
    home = shenzhen(tmp_path)
    text(home / "ClinicalReadings" / "CHNCXR_0001_0.txt", "femal 32yrs", "malignant changes")
    row = import_dataset("shenzhen", home, tmp_path / "m.csv").manifest.table.iloc[0]
    assert (row["age"], row["sex"], row["reading"]) == ("32", "F", "malignant changes")


def test_jsrt_turns_img_round_and_boxes_the_nodule(imported):
    done, table = imported("jsrt")
    nodule, normal = table.loc["JPCLN001"], table.loc["JPCNN001"]
    pixels = read(done.manifest.path(nodule["image"])).pixels
    np.testing.assert_allclose([pixels[0, 0], pixels[0, 1], pixels[5, 5]], [0, 1, 3095 / 4095], atol=1e-4)
    assert (nodule["label"], nodule["findings"], nodule["age"], nodule["sex"]) == ("NTB", "Nodule", "53", "M")
    assert (normal["label"], normal["findings"], normal["age"], normal["sex"]) == ("NORM", "", "60", "F")
    assert (nodule["fold"], normal["fold"]) == ("1", "2")
    (boxed,) = done.manifest.boxes_of(nodule["image"])
    side = 15 / 0.175
    assert boxed[1] == pytest.approx((1634 - side / 2, 692 - side / 2, side, side), rel=1e-4)
    assert done.manifest.boxes_of(normal["image"]) == []


def test_jsrt_prefers_pictures_to_img(tmp_path):
    home = jsrt(tmp_path)
    film(home / "png" / "JPCLN001.png", (1024, 1024))
    done = import_dataset("jsrt", home, tmp_path / "out" / "m.csv")
    (_, box) = done.manifest.boxes_of(str(home / "png" / "JPCLN001.png"))[0]
    assert box.x + box.w / 2 == pytest.approx(1634 / 2, rel=1e-4)  # boxes follow the film's size
    assert not (tmp_path / "out" / "images").exists()


def test_jsrt_takes_no_meaning_from_folders_above(tmp_path):
    home = jsrt(tmp_path / "fold9 masks" / "subset")
    table = import_dataset("jsrt", home.parent, tmp_path / "m.csv").manifest.table
    assert list(table["fold"]) == ["1", "2"]


def test_jsrt_takes_films_from_any_folder_but_those_of_other_pictures(tmp_path):
    home = jsrt(tmp_path)
    (home / "All247images").rename(home / "subset with SCR masks")
    film(home / "BSE_JSRT" / "JPCNN002.png")
    table = import_dataset("jsrt", home, tmp_path / "m.csv").manifest.table
    assert list(table["patient"]) == ["jsrt-JPCLN001", "jsrt-JPCNN001"]


@pytest.mark.parametrize("folder", ["lung_masks", "Masks_png", "lung", "JSRT_masks"])
def test_jsrt_takes_no_mask_for_a_film(folder, tmp_path):
    home = jsrt(tmp_path)
    lung(home / folder / "JPCLN001.png", slice(5, 35))
    table = import_dataset("jsrt", home, tmp_path / "m.csv").manifest.table
    assert table["image"][0] == "images/jsrt/JPCLN001.png"


def test_jsrt_says_that_its_clinical_tables_are_missing(tmp_path):
    home = jsrt(tmp_path)
    shutil.rmtree(home / "Clinical_Information")
    done = import_dataset("jsrt", home, tmp_path / "m.csv")
    assert any("CLNDAT_EN.txt" in note for note in done.notes)


def test_tbx11k_leaves_copies_of_other_sets_out(imported):
    done, table = imported("tbx11k")
    assert dict(table["label"]) == {"h0001": "NORM", "h0002": "NORM", "s0001": "NTB", "tb0003": "TB", "tb0005": "TB"}
    assert dict(table["split"]) == {
        "h0001": "train",
        "h0002": "val",
        "s0001": "train",
        "tb0003": "val",
        "tb0005": "train",
    }
    assert table.loc["tb0003", "findings"] == "ActiveTuberculosis"
    assert done.manifest.boxes_of(table.loc["tb0003", "image"]) == [("ActiveTuberculosis", (334.5, 111.0, 35.25, 39.0))]
    assert set(table["leakage"]) == {""}
    notes = "\n".join(done.notes)
    for part in ("5 films of imgs/extra are copies", "1 of 6 films in lists/ are missing", "1 films of imgs/test"):
        assert part in notes


def test_tbx11k_marks_copies_as_the_patients_of_the_original(imported, tmp_path):
    done, table = imported("tbx11k", extra=True)
    copies = table[table["leakage"] != ""]
    assert dict(zip(copies["patient"], copies["source"], strict=True)) == {
        "db-train-n1": "db",
        "db-val-n1": "db",
        "da-train-px2": "da",
        "montgomery-0001": "montgomery",
        "shenzhen-0327": "shenzhen",
    }
    assert list(copies["leakage"]) == list(copies["source"])
    assert any("LEAKAGE: 5 films are copies" in note for note in done.notes)
    original = import_dataset("montgomery", montgomery(tmp_path / "d"), tmp_path / "mc" / "m.csv").manifest
    both = pd.concat([table, original.table.assign(split="external")])
    assert leaking_patients(type(original)(both, Path(), original.boxes)) == {"montgomery-0001": {"train", "external"}}


def test_tbx11k_learns_no_copy_of_a_film_of_val(tmp_path):
    home = tbx11k(tmp_path)
    shutil.copy(home / "imgs/sick/s0001.png", home / "imgs/sick/s0002.png")  # train, and a copy in val
    shutil.copy(home / "imgs/tb/tb0005.png", home / "imgs/tb/tb0007.png")  # two in train
    for name, split in (("sick/s0002.png", "val"), ("tb/tb0007.png", "train")):
        with (home / "lists" / f"TBX11K_{split}.txt").open("a") as file:
            file.write(f"{name}\n")
    done = import_dataset("tbx11k", home, tmp_path / "m.csv")
    table = done.manifest.table.assign(stem=lambda table: [Path(image).stem for image in table["image"]])
    patients = dict(zip(table["stem"], table["patient"], strict=True))
    assert "s0001" not in patients
    assert "s0002" in patients
    assert patients["tb0005"] == patients["tb0007"]
    assert any("1 films of train are the same as one of another split" in note for note in done.notes)


def test_tbx11k_names_a_damaged_list_of_boxes(tmp_path):
    home = tbx11k(tmp_path)
    text(home / "annotations" / "json" / "TBX11K_train.json", '{"images": [{"id": 7')
    with pytest.raises(LayoutError, match="TBX11K_train.json is no list of boxes.*Download it again"):
        import_dataset("tbx11k", home, tmp_path / "m.csv")


def test_tbdb_says_where_films_are_from(tmp_path):
    pytest.importorskip("openpyxl")
    home = tbdb(tmp_path)
    url = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data"
    columns = {"FILE NAME": ["NORMAL-1"], "FORMAT": ["PNG"], "SIZE": ["512*512"], "URL": [url]}
    pd.DataFrame(columns).to_excel(home / "Normal.metadata.xlsx", index=False)
    table = import_dataset("tbdb", home, tmp_path / "m.csv").manifest.table
    assert list(table["origin"]) == [url, ""]
    assert list(table["leakage"]) == ["rsna", ""]


def test_damaged_metadata_cost_a_column_only(tmp_path):
    home = tbdb(tmp_path)
    (home / "Normal.metadata.xlsx").write_text("no spreadsheet")
    done = import_dataset("tbdb", home, tmp_path / "m.csv")
    assert len(done.manifest) == 2
    assert any("column `origin` stays empty" in note for note in done.notes)
