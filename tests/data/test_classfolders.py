"""Folders of classes as people lay them out."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.classfolders import split_of
from cxr_pipeline.data.manifest import ManifestError, read_manifest
from cxr_pipeline.data.walk import files_below


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(".png", np.eye(40, dtype=np.uint8) * 255)[1].tofile(path)


def read(root, **options):
    table = read_manifest(root, **options).table
    return {row.image: (row.label, row.split, row.mask) for row in table.itertuples()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Tuberculosis/1.png", "sick/2.png", "0/3.png"], {"Tuberculosis/1.png": ("Tuberculosis", "", "")}),
        (
            ["TRAIN/TB/1.png", "Valid/tb/2.png"],
            {"TRAIN/TB/1.png": ("TB", "train", ""), "Valid/tb/2.png": ("TB", "val", "")},
        ),
        (
            ["TB/train/1.png", "NORM/Test/2.png"],
            {"TB/train/1.png": ("TB", "train", ""), "NORM/Test/2.png": ("NORM", "test", "")},
        ),
        (["TB/images/1.png", "TB/masks/1.png", "NORM/images/2.png"], {"TB/images/1.png": ("TB", "", "TB/masks/1.png")}),
        (["images/TB/1.png", "masks/TB/1.png", "masks/NORM/1.png"], {"images/TB/1.png": ("TB", "", "masks/TB/1.png")}),
        (
            ["train/TB/images/1.png", "train/TB/mask/1_mask.png"],
            {"train/TB/images/1.png": ("TB", "train", "train/TB/mask/1_mask.png")},
        ),
        (["TB/1.png", "TB/1_mask.png"], {"TB/1.png": ("TB", "", "TB/1_mask.png")}),
        (["TB/a.png", "masks/a.png"], {"TB/a.png": ("TB", "", "masks/a.png")}),
        (
            ["TB/a.png", "leftMask/a.png", "rightMask/a.png", "heart_masks/a.png"],
            {"TB/a.png": ("TB", "", "leftMask/a.png|rightMask/a.png")},
        ),
        (["archive/set/train/TB/1.png"], {"archive/set/train/TB/1.png": ("TB", "train", "")}),
        (["TB/p1/1.png", "TB/p2/2.png"], {"TB/p1/1.png": ("TB", "", ""), "TB/p2/2.png": ("TB", "", "")}),
    ],
)
def test_forms_of_trees(tmp_path, names, expected):
    put(tmp_path, *names)
    rows = read(tmp_path)
    for image, row in expected.items():
        assert rows[image] == row
    assert not any("mask" in image for image in rows)
    assert len(rows) == sum("mask" not in name.lower() for name in names)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"),
        ("Train-Data", "TEST-Data"),
        ("train_images", "testing images"),
        ("train2017", "test2017"),
        ("trainset", "testset"),
        ("training dataset", "test dataset 2"),
        ("01_train", "02_test"),
        ("images_train", "images_test"),
    ],
)
def test_words_around_a_split_do_not_make_it_a_class(tmp_path, train, test):
    put(tmp_path, *(f"{split}/{label}/{n}.png" for n, split in enumerate((train, test)) for label in ("TB", "NORM")))
    splits = {image: row[:2] for image, row in read(tmp_path).items()}
    assert splits == {
        f"{train}/TB/0.png": ("TB", "train"),
        f"{train}/NORM/0.png": ("NORM", "train"),
        f"{test}/TB/1.png": ("TB", "test"),
        f"{test}/NORM/1.png": ("NORM", "test"),
    }


@pytest.mark.parametrize(
    "mask",
    [
        *("masks_lung/1.png", "mask_images/1.png", "gt/1.png", "GroundTruth/1.png", "labels/1.png", "seg/1.png"),
        *("Lung Masks (png)/1.png", "maskLungs/1.png", "masks/1.mask.png", "masks/1_lungmask.png", "masks/1mask.png"),
        *("images/1_gt.png", "images/1_mask_lungs.png"),
    ],
)
def test_masks_by_what_tools_call_them(tmp_path, mask):
    put(tmp_path, "TB/images/1.png", f"TB/{mask}", "NORM/images/2.png")
    assert read(tmp_path) == {"TB/images/1.png": ("TB", "", f"TB/{mask}"), "NORM/images/2.png": ("NORM", "", "")}


def test_a_folder_for_the_masks_of_each_lung(tmp_path):
    put(tmp_path, "TB/1.png", "NORM/2.png", "masks_left/TB/1.png", "masks_right/TB/1.png")
    assert read(tmp_path)["TB/1.png"] == ("TB", "", "masks_left/TB/1.png|masks_right/TB/1.png")


@pytest.mark.parametrize("name", ["masked", "Unmasked films", "segment 3", "legtb"])
def test_a_class_that_is_called_nearly_like_masks_is_one(tmp_path, name):
    put(tmp_path, f"{name}/1.png", "NORM/2.png")
    assert read(tmp_path)[f"{name}/1.png"] == (name, "", "")


@pytest.mark.parametrize("name", ["test positive", "tested", "trained", "value", "set", "data", "2017", "device"])
def test_a_class_that_begins_like_a_split_stays_one(name):
    assert split_of(name) is None


@pytest.mark.parametrize(
    ("names", "expected", "unclear"),
    [
        (["TB/1.png", "NORM/1.png", "masks/1.png"], {}, ["masks/1.png"]),
        (["TB/1.png", "NORM/1.png", "masks/TB/1.png"], {"TB/1.png": "masks/TB/1.png"}, []),
        (
            ["TB/1.png", "NORM/1.png", "masks/TB/1.png", "masks/1.png"],
            {"TB/1.png": "masks/TB/1.png", "NORM/1.png": "masks/1.png"},
            [],
        ),
        (["train/TB/1.png", "test/TB/1.png", "masks/train/1.png"], {"train/TB/1.png": "masks/train/1.png"}, []),
        (["TB/1.png", "masks/a/1.png", "masks/b/1.png"], {}, ["masks/a/1.png", "masks/b/1.png"]),
        (
            ["TB/p1/1.png", "TB/p1/1_mask.png", "TB/p2/1.png", "TB/p2/1_mask.png"],
            {"TB/p1/1.png": "TB/p1/1_mask.png", "TB/p2/1.png": "TB/p2/1_mask.png"},
            [],
        ),
    ],
)
def test_a_mask_that_fits_several_films_is_given_to_none_and_named(tmp_path, caplog, names, expected, unclear):
    put(tmp_path, *names)
    assert {image: row[2] for image, row in read(tmp_path).items() if row[2]} == expected
    assert ("given to none" in caplog.text) == bool(unclear)
    assert all(name in caplog.text for name in unclear)


def test_links_to_folders_are_followed_once(tmp_path):
    put(tmp_path, "far/1.png", "set/NORM/2.png")
    (tmp_path / "set" / "TB").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "self").symlink_to("self")
    assert {image: row[0] for image, row in read(tmp_path / "set").items()} == {"NORM/2.png": "NORM", "TB/1.png": "TB"}
    assert len(list(files_below(tmp_path / "set"))) == 2


def test_classes_that_differ_in_case_get_the_spelling_expected(tmp_path):
    put(tmp_path, "tb/1.png", "Norm/2.png")
    assert {row[0] for row in read(tmp_path, classes=["TB", "NTB", "NORM"]).values()} == {"TB", "NORM"}
    put(tmp_path, "Sick/3.png")
    with pytest.raises(ManifestError, match="--map 'Sick'=TB"):
        read_manifest(tmp_path, classes=["TB", "NTB", "NORM"])


def test_films_in_no_folder_of_a_class(tmp_path):
    put(tmp_path, "images/1.png", "masks/1.png")
    with pytest.raises(ManifestError, match="films lie in no folder of a class"):
        read_manifest(tmp_path)
    assert os.listdir(tmp_path)
