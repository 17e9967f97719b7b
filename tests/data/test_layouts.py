"""Importers of public data sets, each on a small tree with the file names and table headers of the real one."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from data.geometry import Box
from data.layouts import LAYOUTS
from data.layouts.base import LayoutError, age_of, sex_of, tree_of
from data.layouts.chexpert import OBSERVATIONS
from data.layouts.vindr import agreed
from data.layouts.write import import_dataset
from data.manifest import COLUMNS, read_manifest
from data.radiograph import read
from data.splits import leaking_patients
from stages.films import read_mask
from tests.data.layout_trees import (
    TREES,
    chexpert,
    film,
    jsrt,
    lung,
    montgomery,
    nih,
    rsna,
    shenzhen,
    tbdb,
    tbx11k,
    text,
    vindr,
)

TB_CLASSES = ("TB", "NTB", "NORM")


@pytest.fixture
def imported(tmp_path):
    """Make the tree of a data set and import it; the table goes by file name without suffix."""

    def make(name, **options):
        home = TREES[name](tmp_path / "downloads")
        done = import_dataset(name, home, tmp_path / "out" / "manifest.csv", **options)
        table = done.manifest.table
        stems = [Path(image).stem for image in table["image"]]
        return done, table.assign(stem=stems).set_index("stem", drop=False)

    return make


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
    importer = getattr(importlib.import_module(f"data.layouts.{LAYOUTS[name].module}"), name)
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
def test_docstrings_state_licence_or_patients_and_leakage(name):
    importer = getattr(importlib.import_module(f"data.layouts.{LAYOUTS[name].module}"), name)
    for word in (r"[Pp]atient", r"[Ll]icence|metadata", r"[Ll]eakage|other sets"):
        assert re.search(word, importer.__doc__), word


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


def test_paths_below_the_manifest_are_relative(tmp_path):
    montgomery(tmp_path)
    table = import_dataset("montgomery", tmp_path, tmp_path / "m.csv").manifest.table
    assert table["image"][0] == "MontgomerySet/CXR_png/MCUCXR_0001_0.png"


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
    said = "\n".join(done.notes)
    for part in ("5 films of imgs/extra are copies", "1 of 6 films in lists/ are missing", "1 films of imgs/test"):
        assert part in said


def test_tbx11k_marks_copies_as_the_patients_of_the_original(imported, tmp_path):
    done, table = imported("tbx11k", extra=True)
    copies = table[table["leakage"] != ""]
    assert dict(zip(copies["patient"], copies["source"], strict=True)) == {
        "da-train-n1": "da",
        "da-val-n1": "da",
        "db-train-px2": "db",
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


def test_nih_keeps_the_official_test_and_carves_val_by_patient(imported):
    done, table = imported("nih")
    assert len(table) == 80
    assert any("1 of 81 films in Data_Entry_2017.csv are missing" in note for note in done.notes)
    patients = table.groupby("split")["patient"].nunique().to_dict()
    assert patients["test"] == 10
    assert patients["val"] == round(0.15 * 20) + round(0.15 * 10)
    assert table.loc["00000003_000", ["label", "findings", "age", "sex", "view"]].tolist() == [
        *("NTB", "Cardiomegaly|Emphysema", "58", "M", "PA")
    ]
    assert table.loc["00000001_000", ["label", "findings", "age"]].tolist() == ["NORM", "No Finding", ""]
    boxed = done.manifest.boxes_of(table.loc["00000033_000", "image"])
    assert boxed == [("Infiltration", (32.0, 64.0, pytest.approx(16.0625, rel=1e-4), 8.0))]  # 1024 px to the 128 there
    assert not {"uncertain", "negative"} & set(table.columns)


def test_nih_without_lists_has_no_splits(tmp_path):
    (nih(tmp_path) / "test_list.txt").unlink()
    done = import_dataset("nih", tmp_path, tmp_path / "m.csv")
    assert set(done.manifest.table["split"]) == {""}
    assert any("test_list.txt is missing" in note for note in done.notes)


def test_nih_takes_the_lists_of_smaller_copies(tmp_path):
    home = nih(tmp_path)
    for name in ("train_val_list", "test_list"):
        (home / f"{name}.txt").rename(home / f"{name}_NIH.txt")
    table = import_dataset("nih", home, tmp_path / "m.csv").manifest.table
    assert set(table["split"]) == {"train", "val", "test"}


def test_nih_says_what_its_lists_and_boxes_lack(tmp_path):
    home = nih(tmp_path)
    listed = (home / "train_val_list.txt").read_text().split()
    text(home / "train_val_list.txt", *listed[:40])
    text(home / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,")
    done = import_dataset("nih", home, tmp_path / "m.csv")
    assert (done.manifest.table["split"] == "").sum() == len(listed) - 40
    assert any(f"{len(listed) - 40} films are in neither list" in note for note in done.notes)
    assert any("BBox_List_2017.csv is empty" in note for note in done.notes)


@pytest.mark.parametrize(
    ("table", "line", "said"),
    [
        ("BBox_List_2017.csv", "00000033_000.png,Mass,a,1,2,3,,,", "row 3: x is no number: 'a'"),
        ("BBox_List_2017.csv", "00000033_000.png,Mass", "row 3: six cells are needed"),
        ("Data_Entry_2017.csv", "00000041_000.png,Her", "row 83: no Patient ID"),
    ],
)
def test_nih_names_the_row_that_is_cut_off(table, line, said, tmp_path):
    home = nih(tmp_path)
    with (home / table).open("a") as file:
        file.write(line)
    with pytest.raises(LayoutError, match=f"{table}, {said}"):
        import_dataset("nih", home, tmp_path / "m.csv")


def test_chexpert_keeps_what_is_uncertain_and_what_is_absent(imported):
    done, table = imported("chexpert")
    table = table.set_index("patient")
    assert len(table) == 4
    assert any("1 lateral films are left out" in note for note in done.notes)
    one, two, three = (table.loc[f"chexpert-patient0000{n}"] for n in (1, 2, 3))
    assert (one["label"], one["findings"], one["negative"], one["uncertain"]) == (
        *("NORM", "No Finding|Support Devices", "Pneumothorax", ""),
    )
    assert (two["label"], two["findings"], two["negative"]) == ("NTB", "Lung Opacity|Fracture", "")
    assert two["uncertain"] == "Cardiomegaly|Edema|Consolidation|Atelectasis|Pleural Effusion"
    assert (three["label"], three["findings"]) == ("", "Support Devices")
    assert (two["age"], two["sex"], two["view"]) == ("87", "M", "PA")
    assert table.loc["chexpert-patient64541", "split"] == "val"
    assert table.loc["chexpert-patient64541", "negative"] == "No Finding|Enlarged Cardiomediastinum"


def test_chexpert_takes_lateral_films_when_asked(imported):
    assert len(imported("chexpert", all_views=True)[1]) == 5


def test_chexpert_in_the_parts_of_its_full_size_download(tmp_path):
    home = chexpert(tmp_path / "small")
    first, second = (
        tmp_path / "full" / f"CheXpert-v1.0 batch {name}" for name in ("1 (validate & csv)", "2 (train 1)")
    )
    first.parent.mkdir()
    (home / "train").rename(second)
    home.rename(first)
    table = import_dataset("chexpert", tmp_path / "full", tmp_path / "full" / "m.csv").manifest.table
    assert len(table) == 4
    assert table["image"][0] == "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg"


@pytest.mark.parametrize("layout", ["wrapped", "all in one"])
def test_chexpert_in_parts_unpacked_otherwise(layout, tmp_path):
    home = chexpert(tmp_path / "small")
    full = tmp_path / "full"
    first, second = (f"CheXpert-v1.0 batch {name}" for name in ("1 (validate & csv)", "2 (train 1)"))
    if layout == "wrapped":
        (full / first).mkdir(parents=True)
        (full / second).mkdir()
        (home / "train").rename(full / second / second)
        home.rename(full / first / first)
    else:
        home.rename(full)
        for patient in (full / "train").iterdir():
            patient.rename(full / patient.name)
        (full / "train").rmdir()
    done = import_dataset("chexpert", full, tmp_path / "m.csv")
    assert done.manifest.table["split"].value_counts().to_dict() == {"train": 3, "val": 1}


@pytest.mark.parametrize("place", [".", "chexlocalize/CheXpert", "../chexlocalize/CheXpert"])
def test_chexpert_takes_the_official_test(place, tmp_path):
    home = chexpert(tmp_path)
    observations = [name for name in OBSERVATIONS if name != "No Finding"]
    row = f"test/patient64741/study1/view1_frontal.jpg,{','.join(['1.0'] + ['0.0'] * 12)}"
    text(home / place / "test_labels.csv", f"Path,{','.join(observations)}", row)
    film(home / place / "test/patient64741/study1/view1_frontal.jpg")
    table = import_dataset("chexpert", home, tmp_path / "m.csv").manifest.table.set_index("split")
    assert table.loc["test", ["patient", "findings", "label"]].tolist() == [
        *("chexpert-patient64741", "Enlarged Cardiomediastinum", "NTB")
    ]


def test_chexpert_names_a_cell_that_is_no_number(tmp_path):
    home = chexpert(tmp_path)
    lines = (home / "valid.csv").read_text().splitlines()
    text(home / "valid.csv", lines[0], lines[1].replace(",1.0", ",yes", 1))
    with pytest.raises(LayoutError, match="valid.csv, row 2: Cardiomegaly is no number: 'yes'"):
        import_dataset("chexpert", home, tmp_path / "m.csv")


def test_kermany_joins_the_small_val_and_carves_by_patient(imported):
    done, table = imported("kermany")
    assert len(table) == 104
    assert set(table["label"]) == {"NORM", "NTB"}
    assert table.loc["person3_bacteria_3", "findings"] == "PNEUMONIA|bacterial"
    assert table.loc["person1_virus_6", ["findings", "split", "patient"]].tolist() == [
        *("PNEUMONIA|viral", "test", "kermany-test-person1")
    ]
    assert table.loc["person1_bacteria_4872", "patient"] == table.loc["person1_virus_101", "patient"]
    assert table.loc["IM-0115-0001-0002", "patient"] == "kermany-train-IM-0115"
    assert table.loc["NORMAL2-IM-0383-0001", "patient"] == "kermany-train-NORMAL2-IM-0383"
    val = table[table["split"] == "val"]
    assert set(val["label"]) == {"NORM", "NTB"}
    assert (table["split"] == "test").sum() == 2
    assert any("official val (2 films) joined train" in note for note in done.notes)


def test_kermany_as_the_newest_version_names_it(tmp_path):
    home = tmp_path / "CellData" / "chest_xray"
    for number in range(1003233, 1003253):
        film(home / "train" / "NORMAL" / f"NORMAL-{number}-0001.jpeg")
        film(home / "train" / "PNEUMONIA" / f"BACTERIA-{number + 100}-0004.jpeg")
        film(home / "train" / "PNEUMONIA" / f"VIRUS-{number + 100}-0001.jpeg")
    film(home / "test" / "NORMAL" / "NORMAL-1003233-0002.jpeg")  # a patient of train
    film(home / "test" / "PNEUMONIA" / "VIRUS-99-0001.jpeg")
    done = import_dataset("kermany", tmp_path, tmp_path / "m.csv")
    table = done.manifest.table
    assert leaking_patients(done.manifest) == {}
    assert table[table["label"] == "NTB"].groupby("patient").size().max() == 2
    assert table["findings"].value_counts().to_dict() == {
        **{"PNEUMONIA|bacterial": 20, "PNEUMONIA|viral": 21},
        "": 20,
    }
    assert (table["patient"] == "kermany-1003233").sum() == 1
    assert any("1 films of train are of patients of test" in note for note in done.notes)


def test_kermany_says_what_is_missing(tmp_path):
    shutil.rmtree(TREES["kermany"](tmp_path) / "test")
    done = import_dataset("kermany", tmp_path, tmp_path / "m.csv")
    assert sum("holds no film" in note for note in done.notes) == 2


def test_own_labels_are_the_data_sets(imported):
    _, table = imported("kermany", labels="own")
    assert set(table["label"]) == {"NORMAL", "PNEUMONIA"}


def test_own_labels_of_a_set_without_classes_are_refused(imported):
    with pytest.raises(LayoutError, match="nih has no classes of its own"):
        imported("nih", labels="own")


def test_covidradiography_pairs_masks_of_another_size(imported):
    _, table = imported("covidradiography")
    assert (table["mask"] != "").all()
    assert dict(zip(table["stem"], table["label"], strict=True)) == {
        "COVID-1": "NTB",
        "Lung_Opacity-1": "NTB",
        "Normal-1": "NORM",
        "Viral Pneumonia-1": "NTB",
    }
    assert table.loc["COVID-1", "findings"] == "COVID-19"


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


def test_covidchestxray_takes_frontal_films(imported):
    _, table = imported("covidchestxray")
    assert dict(table["label"]) == {"a": "NTB", "c": "TB", "d": "NORM", "e": ""}
    assert table.loc["a", "findings"] == "Pneumonia|Viral|COVID-19"
    assert table.loc["a", ["age", "sex", "view", "licence"]].tolist() == ["65", "M", "PA", "CC BY 4.0"]
    assert table.loc["e", "findings"] == ""


def test_covidchestxray_takes_lateral_films_when_asked(imported):
    assert sorted(imported("covidchestxray", all_views=True)[1].index) == ["a", "b", "c", "d", "e"]


def test_rsna_has_a_row_a_film_and_a_box_an_opacity(imported):
    done, table = imported("rsna")
    assert dict(table["label"]) == {"aaa": "NORM", "bbb": "NTB", "ccc": "NTB"}
    assert [finding for finding, _ in done.manifest.boxes_of(table.loc["bbb", "image"])] == ["Lung Opacity"] * 2
    assert set(table["leakage"]) == {"nih"}


def test_rsna_without_classes_leaves_the_label_open(tmp_path):
    (rsna(tmp_path) / "stage_2_detailed_class_info.csv").unlink()
    table = import_dataset("rsna", tmp_path, tmp_path / "m.csv").manifest.table
    assert list(table["label"]) == ["", "NTB", ""]


def test_rsna_with_a_table_of_classes_that_is_cut_off(tmp_path):
    text(rsna(tmp_path) / "stage_2_detailed_class_info.csv", "patientId,class", "aaa,Normal", "bbb,")
    done = import_dataset("rsna", tmp_path, tmp_path / "m.csv")
    assert list(done.manifest.table["label"]) == ["NORM", "NTB", ""]
    assert any("1 films are not in stage_2_detailed_class_info.csv" in note for note in done.notes)


def test_vindr_goes_by_the_majority(imported):
    done, table = imported("vindr")
    assert dict(table["label"]) == {"a": "NORM", "b": "TB", "c": "NTB", "t": "NTB"}
    assert dict(table["findings"]) == {
        "a": "No finding",
        "b": "Cardiomegaly|Tuberculosis",
        "c": "",
        "t": "Cardiomegaly",
    }
    assert table.loc["t", "split"] == "test"
    assert done.manifest.boxes_of(table.loc["b", "image"]) == [
        ("Cardiomegaly", (11, 10, 20, 20))
    ]  # two of three drew it
    assert done.manifest.boxes_of(table.loc["t", "image"]) == [("Cardiomegaly", (5, 6, 10, 12))]


def test_vindr_spells_a_label_in_one_way(tmp_path):
    home = vindr(tmp_path)
    text(home / "annotations/image_labels_test.csv", "image_id,Other disease,No finding", "t,1,0")
    text(home / "annotations/image_labels_train.csv", "image_id,rad_id,Other diseases,No finding", "a,R0,1,0")
    (home / "annotations/annotations_train.csv").unlink()
    done = import_dataset("vindr", home, tmp_path / "m.csv")
    assert set(done.manifest.table["findings"]) == {"Other diseases"}
    assert any("annotations_train.csv is missing" in note for note in done.notes)


def test_boxes_count_a_reader_once():
    assert agreed([("R1", Box(0, 0, 10, 10)), ("R1", Box(1, 0, 10, 10))], 2) == []
    assert agreed([("R1", Box(0, 0, 10, 10)), ("R2", Box(2, 0, 10, 10))], 2) == [Box(1, 0, 10, 10)]
    assert agreed([], 1) == []


@pytest.mark.parametrize(
    ("said", "age", "sex"),
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
def test_ages_and_sexes(said, age, sex):
    assert (age_of(said), sex_of(said)) == (age, sex)


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

    code = "import sys, data.layouts\nprint({'pandas', 'numpy', 'cv2', 'PIL'} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
