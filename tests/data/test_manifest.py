"""Manifests: all faults at once, with row numbers; folders in their place."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.manifest import ManifestError, read_manifest

CLASSES = ("TB", "NTB", "NORM")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abcd":
        cv2.imencode(".png", np.eye(40, dtype=np.uint8) * 255)[1].tofile(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write(folder, text, name="manifest.csv", encoding="utf-8"):
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


def test_only_image_is_needed(folder):
    manifest = read_manifest(write(folder, "image\nimages/a.png\nimages/b.png\n"))
    assert len(manifest) == 2
    row = manifest.table.iloc[0]
    assert (row["patient"], row["source"], row["label"], row["split"]) == ("images/a.png", "unknown", "", "")
    assert manifest.path(row["image"]).is_file()
    assert manifest.boxes_of(row["image"]) == []


def test_all_faults_are_told_at_once(folder):
    path = write(
        folder,
        "image,label,patient,split,mask\n"
        "images/a.png,TB,p1,train,\n"
        "images/zzz.png,TB,p2,train,\n"  # row 3: no such file
        "images/b.png,COVID,p3,train,\n"  # row 4: unknown label
        "images/c.png,TB,p1,test,\n"  # row 5: patient in two splits
        "images/d.png,TB,p4,holdout,masks/d.png\n"  # row 6: unknown split, no such mask
        ",TB,p5,train,\n"  # row 7: no image
        "images/a.png,TB,p1,train,\n",  # row 8: twice
    )
    write(
        folder,
        "image,finding,x,y,w,h\nimages/a.png,TB,1,1,0,5\nimages/q.png,TB,1,1,2,2\nimages/a.png,,x,1,2,2\n",
        "boxes.csv",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, classes=CLASSES)
    text = str(caught.value)
    assert len(caught.value.faults) == 10
    for expected in (
        "row 3: image images/zzz.png does not exist",
        "row 4: label 'COVID' is not one of TB, NTB, NORM",
        "row 5: patient 'p1' is in split 'test' here and 'train' in row 2",
        "row 6: split 'holdout' is not one of train, val, test, external",
        "row 6: mask masks/d.png does not exist",
        "row 7: no image",
        "row 8: images/a.png stands in row 2 already",
        "boxes.csv row 2",
        "boxes.csv row 3: image 'images/q.png'",
        "boxes.csv row 4",
    ):
        assert expected in text


def test_a_missing_column_names_those_there(folder):
    with pytest.raises(ManifestError, match="no column `image`. Columns there: file, label"):
        read_manifest(write(folder, "file,label\nimages/a.png,TB\n"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_spreadsheets_make_of_csv(folder, separator, encoding):
    path = write(folder, "image,label\nimages/a.png,TB\n".replace(",", separator), encoding=encoding)
    assert read_manifest(path, classes=CLASSES).table.loc[0, "label"] == "TB"


def test_text_that_is_no_table(folder):
    path = folder / "manifest.csv"
    path.write_bytes("image,label\nimages/ä.png,TB\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(path)
    with pytest.raises(ManifestError, match="no such file"):
        read_manifest(folder / "nowhere.csv")
    with pytest.raises(ManifestError, match="no rows"):
        read_manifest(write(folder, "image,label\n"))


def test_boxes_and_selection(folder):
    write(folder, "image,finding,x,y,w,h\nimages/b.png,Cavity,1.5,2,3,4\nimages/b.png,Nodule,5,6,7,8\n", "boxes.csv")
    path = write(
        folder, "image,label,source,split\nimages/a.png,TB,x,train\nimages/b.png,NORM,x,test\nimages/c.png,TB,y,test\n"
    )
    manifest = read_manifest(path)
    assert manifest.boxes_of("images/b.png") == [("Cavity", Box(1.5, 2, 3, 4)), ("Nodule", Box(5, 6, 7, 8))]
    assert list(manifest.select(split="test").table["image"]) == ["images/b.png", "images/c.png"]
    assert list(manifest.select(split="test", source=["x"]).table["image"]) == ["images/b.png"]
    assert len(manifest.select(labels="TB")) == 2
    assert len(manifest.select(has_mask=True)) == 0


def test_split_hash_knows_no_order_but_every_change(folder):
    rows = ["images/a.png,TB,train", "images/b.png,TB,test"]
    hashes = [
        read_manifest(write(folder, "image,label,split\n" + "\n".join(lines) + "\n")).split_hash()
        for lines in (rows, rows[::-1], [rows[0], rows[1].replace("test", "val")])
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_content_hash_knows_no_order_but_every_label(folder):
    def hashes(*lines):
        read = read_manifest(write(folder, "image,label,findings,split\n" + "\n".join(lines) + "\n"))
        return read.content_hash(labels=True), read.content_hash(labels=False)

    rows = ["images/a.png,TB,,train", "images/b.png,TB,Mass,test"]
    same = hashes(*rows)
    assert hashes(*rows[::-1]) == same
    for changed in ("images/b.png,NORM,Mass,test", "images/b.png,TB,Mass|Nodule,test"):
        assert hashes(rows[0], changed)[0] != same[0]
        assert hashes(rows[0], changed)[1] == same[1]
    assert hashes(rows[0], "images/b.png,TB,Mass,val")[1] != same[1]


def test_blanks_around_labels_and_findings_mean_nothing(folder):
    rows = "images/a.png, TB ,Mass | Nodule|,train \n"
    row = read_manifest(write(folder, "image,label,findings,split\n" + rows), classes=["TB"]).table.iloc[0]
    assert (row["label"], row["findings"], row["split"]) == ("TB", "Mass|Nodule", "train")


def test_labels_are_made_classes_once(folder):
    class_of = {"PNEU": ["Pneumonia"], "WELL": ["Normal"]}  # no class is among its own values
    rows = "images/a.png,Pneumonia\nimages/b.png,Normal\n"
    once = read_manifest(write(folder, "image,label\n" + rows)).relabelled(class_of)
    assert list(once.table["label"]) == ["PNEU", "WELL"]
    assert list(once.select(labels="PNEU").relabelled(class_of).table["label"]) == ["PNEU"]


def film(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(".png", np.eye(40, dtype=np.uint8) * 255)[1].tofile(path)


def test_one_folder_a_class(tmp_path):
    for name in ("TB/1.png", "NORM/2.png", "NORM/more/3.png"):
        film(tmp_path / name)
    manifest = read_manifest(tmp_path, classes=CLASSES)
    assert dict(zip(manifest.table["image"], manifest.table["label"], strict=True)) == {
        "NORM/2.png": "NORM",
        "NORM/more/3.png": "NORM",
        "TB/1.png": "TB",
    }
    film(tmp_path / "Pneumonia" / "4.png")
    with pytest.raises(ManifestError, match="'Pneumonia' is not one of the classes"):
        read_manifest(tmp_path, classes=CLASSES)


def test_one_folder_a_split_and_class(tmp_path):
    film(tmp_path / "train" / "TB" / "1.png")
    film(tmp_path / "test" / "NORM" / "2.png")
    table = read_manifest(tmp_path).table
    assert sorted(zip(table["split"], table["label"], strict=True)) == [("test", "NORM"), ("train", "TB")]


def test_a_folder_without_films_says_what_was_expected(tmp_path):
    (tmp_path / "stuff").mkdir()
    with pytest.raises(ManifestError, match="Found: stuff"):
        read_manifest(tmp_path, classes=CLASSES)


@pytest.mark.real
def test_the_real_manifest_is_sound(real_data):
    manifest = read_manifest(real_data, classes=CLASSES)
    assert len(manifest) > 9000
    assert len(manifest.boxes) > 1000
