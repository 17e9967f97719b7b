"""Importers of the sets of other findings: nih, chexpert, kermany, the two of COVID-19, rsna, vindr."""

from __future__ import annotations

import shutil

import pytest

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.layouts.base import LayoutError
from cxr_pipeline.data.layouts.chexpert import OBSERVATIONS
from cxr_pipeline.data.layouts.vindr import agreed
from cxr_pipeline.data.layouts.write import import_dataset
from cxr_pipeline.data.splits import leaking_patients
from tests.data.layout_trees import (
    TREES,
    chexpert,
    film,
    nih,
    rsna,
    text,
    vindr,
)


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
    ("table", "line", "message"),
    [
        ("BBox_List_2017.csv", "00000033_000.png,Mass,a,1,2,3,,,", "row 3: x is no number: 'a'"),
        ("BBox_List_2017.csv", "00000033_000.png,Mass", "row 3: six cells are needed"),
        ("Data_Entry_2017.csv", "00000041_000.png,Her", "row 83: no Patient ID"),
    ],
)
def test_nih_names_the_row_that_is_cut_off(table, line, message, tmp_path):
    home = nih(tmp_path)
    with (home / table).open("a") as file:
        file.write(line)
    with pytest.raises(LayoutError, match=f"{table}, {message}"):
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
