"""`pipeline data check` through the command line."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest

from cxr_pipeline.cli.main import _call
from cxr_pipeline.data.synthetic import make_film

HEADER = "image,label,patient,source,split\n"


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        film = make_film(number, label="NORM", size=(160, 150)).pixels
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.round(film * 255).astype(np.uint8))
        if number == 0:
            cv2.imwrite(str(tmp_path / "copy.png"), np.round(film**1.5 * 200).astype(np.uint8))
    return tmp_path


def write(folder, *rows):
    (folder / "m.csv").write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return str(folder / "m.csv")


def test_a_clean_manifest_is_0(folder, capsys):
    manifest = write(folder, "0.png,TB,a,x,train", "1.png,NORM,b,x,test")
    assert _call(["data", "check", manifest]) == 0
    assert "Clean" in capsys.readouterr().out


def test_a_copy_in_another_split_is_found_and_listed(folder, capsys):
    manifest = write(folder, "0.png,TB,a,x,train", "copy.png,TB,b,y,test", "1.png,NORM,c,x,test")
    assert _call(["data", "check", manifest, "--out", str(folder / "pairs.csv")]) == 1
    printed = capsys.readouterr().out
    assert "1 pair(s) of films that look like one, in different splits" in printed
    (row,) = csv.DictReader((folder / "pairs.csv").open())
    assert (row["image_1"], row["image_2"], row["leak"]) == ("0.png", "copy.png", "splits")


def test_all_faults_are_told_at_once(folder, capsys):
    (folder / "bad.png").write_text("no image")
    manifest = write(folder, "0.png,TB,a,x,train", "1.png,NORM,a,x,test", "gone.png,TB,b,x,train", "bad.png,TB,c,x,val")
    assert _call(["data", "check", manifest]) == 1
    printed = capsys.readouterr().out
    for part in ("gone.png does not exist", "a: test, train", "bad.png"):
        assert part in printed
    assert "Not clean" in printed


def test_without_images_only_the_table_is_read(folder, capsys):
    manifest = write(folder, "0.png,TB,a,x,train", "copy.png,TB,b,y,test")
    assert _call(["data", "check", manifest, "--no-images"]) == 0
    assert "look like one" not in capsys.readouterr().out


def test_wrong_masks_and_boxes_are_reported(folder, capsys):
    mask = np.zeros((160, 150), np.uint8)
    cv2.imwrite(str(folder / "empty_mask.png"), mask)
    mask[40:140, 20:60] = mask[40:140, 90:130] = 255
    cv2.imwrite(str(folder / "mask.png"), mask)
    (folder / "m.csv").write_text(
        "image,label,patient,split,mask\n0.png,TB,a,train,mask.png\n1.png,NORM,b,train,empty_mask.png\n"
    )
    (folder / "boxes.csv").write_text("image,x,y,w,h\n0.png,100,20,51,10\n0.png,100,20,80,10\n")
    assert _call(["data", "check", str(folder / "m.csv")]) == 1
    printed = capsys.readouterr().out
    assert "1 mask(s) that cannot be learned from:\n  1.png: the mask is empty" in printed
    assert "1 box(es) outside their films:\n  0.png: the box x 100, y 20, w 80" in printed
    assert "mend the rows, masks and boxes above" in printed


def test_masks_that_are_wrong_stop_a_training(folder, capsys):
    cv2.imwrite(str(folder / "mask.png"), np.full((160, 150), 255, np.uint8))
    (folder / "m.csv").write_text(
        "image,label,patient,split,mask\n"
        + "".join(
            f"{n}.png,{label},p{n},{split},mask.png\n"
            for n, (label, split) in enumerate([("TB", "train"), ("NORM", "train"), ("TB", "val"), ("NORM", "val")])
        )
    )
    arguments = ["train", "--stage", "segment", "--data", str(folder / "m.csv"), "--out", str(folder / "w")]
    arguments += ["--set", "segment.encoder_weights=null", "--set", "segment.start=null"]
    assert _call(arguments) == 2
    printed = capsys.readouterr().err
    assert "4 of 4 lung masks cannot be learned from" in printed
    assert "0.png: the mask is full" in printed
    assert not (folder / "w").exists()


def test_labels_of_masks_can_be_named(folder, capsys):
    labels = np.zeros((160, 150), np.uint8)
    labels[40:140, 20:60], labels[40:140, 90:130], labels[0:9, 0:9] = 7, 7, 3
    labels[150:158, 10:90] = 5
    cv2.imwrite(str(folder / "mask.png"), labels)
    (folder / "m.csv").write_text("image,label,patient,split,mask\n0.png,TB,a,train,mask.png\n")
    assert _call(["data", "check", str(folder / "m.csv"), "--mask-labels", "7"]) == 0
    assert _call(["data", "check", str(folder / "m.csv"), "--mask-labels", "3"]) == 1
    assert "one lung" in capsys.readouterr().out
