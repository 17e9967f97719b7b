"""`pipeline data import table`, and trainings whose settings follow from a manifest of one's own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from cxr_pipeline.cli.main import _call
from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.manifests.owndata import roles, settings_of


def put(root, *names, size=(100, 200)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(".png", np.eye(*size, dtype=np.uint8) * 255)[1].tofile(path)


def call(*arguments):
    return _call([str(one) for one in arguments])


def dicom(path, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPInstanceUID = tags.get("SOPInstanceUID", "1.2")
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = FileDataset(str(path), Dataset(), file_meta=meta, preamble=bytes(128))
    film.Rows, film.Columns = 50, 40
    for name, value in tags.items():
        setattr(film, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    film.save_as(path, enforce_file_format=True)


def test_columns_are_named_and_labels_mapped(tmp_path, capsys):
    put(tmp_path, "films/deep/a.png", "films/b.png", "films/c.png", "films/d.png")
    (tmp_path / "t.csv").write_text(
        "File;Diagnosis;Person;Age\na;Tuberculosis;p1;30\nfilms\\b.png;no finding;p2;\nc.png;Mass;p3;61\n"
        "d;normal;p1;30\ngone;normal;p4;1\n"
    )
    out = tmp_path / "out" / "manifest.csv"
    options = ["--label", "diagnosis", "--patient", "Person", "--map", "tuberculosis=TB", "--map", "No Finding=NORM"]
    assert call("data", "import", "table", tmp_path / "t.csv", "--image", "File", "--out", out, *options) == 0
    table = read_manifest(out).table.set_index("label")
    assert sorted(table.index) == ["Mass", "NORM", "TB", "normal"]
    assert table.loc["TB", "image"] == str(tmp_path / "films/deep/a.png")
    assert table.loc["TB", "findings"] == "Tuberculosis"
    assert table.loc["TB", "Age"] == "30"
    assert table.loc["TB", "patient"] == table.loc["normal", "patient"] == "t-p1"
    printed = capsys.readouterr()
    assert "1 of 5 rows have no film" in printed.err
    assert "does not name stay as they are: Mass (1), normal (1)" in printed.err
    assert "pipeline train --data" in printed.out
    assert "classes=" in printed.out


def test_a_title_above_the_header_is_passed_over(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("Our films, 2020\nPicture;Diagnosis\na.png;TB\n")
    given = ("data", "import", "table", tmp_path / "t.csv", "--out", tmp_path / "m" / "m.csv")
    assert call(*given, "--image", "picture") == 0
    assert list(read_manifest(tmp_path / "m" / "m.csv").table["label"]) == ["TB"]
    (tmp_path / "t.csv").write_text("Our films, 2020\nFile;Diagnosis\na.png;NORM\n")
    assert call(*given, "--overwrite") == 0
    assert list(read_manifest(tmp_path / "m" / "m.csv").table["label"]) == ["NORM"]


def test_a_column_that_is_not_there_is_answered_with_the_nearest(tmp_path, capsys):
    put(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("picture,Diagnosis\na.png,x\n")
    assert call("data", "import", "table", tmp_path / "t.csv", "--out", tmp_path / "m.csv") == 2
    assert "no column `image`. Columns there: picture, Diagnosis" in capsys.readouterr().err
    arguments = ("data", "import", "table", tmp_path / "t.csv", "--image", "pictures", "--out", tmp_path / "m.csv")
    assert call(*arguments) == 2
    assert "Did you mean `picture`" in capsys.readouterr().err
    assert call("data", "import", "montgomery", tmp_path, "--label", "x", "--out", tmp_path / "m.csv") == 2
    assert "for `pipeline data import table` only" in capsys.readouterr().err
    assert call("data", "import", "montgomerie", tmp_path, "--out", tmp_path / "m.csv") == 2
    assert "Did you mean 'montgomery'" in capsys.readouterr().err


@pytest.mark.parametrize("tag", ["PatientID", "StudyInstanceUID", "SOPInstanceUID"])
def test_rows_find_their_films_by_a_dicom_tag(tmp_path, tag):
    for number in (1, 2):
        tags = {"PatientID": f"P{number}", "StudyInstanceUID": f"1.2.{number}", "SOPInstanceUID": f"1.2.{number}.7"}
        dicom(tmp_path / "pacs" / f"IM{number:04d}", **tags)
    dicom(tmp_path / "pacs" / "more" / "IM3", PatientID="P1", StudyInstanceUID="1.2.1", SOPInstanceUID="1.2.1.8")
    values = {
        "PatientID": ("P1", "P2"),
        "StudyInstanceUID": ("1.2.1", "1.2.2"),
        "SOPInstanceUID": ("1.2.1.7", "1.2.2.7"),
    }[tag]
    (tmp_path / "t.csv").write_text(f"{tag},label\n{values[0]},TB\n{values[1]},NORM\n")
    out = tmp_path / "m" / "m.csv"
    assert (
        call("data", "import", "table", tmp_path / "t.csv", "--films", tmp_path / "pacs", "--join", tag, "--out", out)
        == 0
    )
    labels = Counter(read_manifest(out).table["label"])
    assert labels == Counter({"TB": 1 if tag == "SOPInstanceUID" else 2, "NORM": 1})


VOC = (
    "<annotation><filename>a.png</filename><object><name>Cavity</name><bndbox><xmin>20</xmin><ymin>10</ymin>"
    "<xmax>60</xmax><ymax>30</ymax></bndbox></object></annotation>"
)
COCO = {
    "images": [{"id": 3, "file_name": "films/a.png"}, {"id": 4, "file_name": "other.png"}],
    "categories": [{"id": 1, "name": "Cavity"}],
    "annotations": [
        {"image_id": 3, "category_id": 1, "bbox": [20, 10, 40, 20]},
        {"image_id": 4, "category_id": 1, "bbox": [1, 1, 4, 2]},
    ],
}


@pytest.mark.parametrize("form", ["coco", "voc", "yolo", "corners", "sizes"])
def test_boxes_of_every_form_are_the_same(tmp_path, form):
    put(tmp_path, "films/a.png", "films/b.png")
    (tmp_path / "t.csv").write_text("image,label\nfilms/a.png,TB\nfilms/b.png,NORM\n")
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    if form == "coco":
        boxes = boxes / "all.json"
        boxes.write_text(json.dumps(COCO))
    elif form == "voc":
        (boxes / "a.xml").write_text(VOC)
    elif form == "yolo":
        (boxes / "classes.txt").write_text("Nodule\nCavity\n")
        (boxes / "a.txt").write_text("1 0.2 0.2 0.2 0.2\n")
        (boxes / "b.txt").write_text("")
    elif form == "corners":
        boxes = boxes / "b.csv"
        boxes.write_text("image,class,xmin,ymin,xmax,ymax\na,Cavity,20,10,60,30\nb,,,,,\n")
    else:
        boxes = boxes / "b.csv"
        boxes.write_text("Image;label;x;y;width;height\na.png;Cavity;20;10;40;20\n")
    out = tmp_path / "m" / "m.csv"
    assert call("data", "import", "table", tmp_path / "t.csv", "--boxes", boxes, "--out", out) == 0
    manifest = read_manifest(out)
    (image,) = set(manifest.boxes["image"])
    assert image.endswith("films/a.png")
    assert manifest.boxes_of(image) == [("Cavity", Box(20, 10, 40, 20))]


def test_an_xml_named_as_a_film_is_of_that_film_whatever_it_names(tmp_path, capsys):
    put(tmp_path, "films/p1.png", "films/p2.png", "films/b.png")
    (tmp_path / "t.csv").write_text("image,label\nfilms/p1.png,TB\nfilms/p2.png,TB\nfilms/b.png,TB\n")
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    (boxes / "p1.xml").write_text(VOC)  # names a.png, as does the next
    (boxes / "p2.xml").write_text(VOC.replace("<xmin>20<", "<xmin>30<"))
    (boxes / "case7.xml").write_text(VOC.replace("a.png", "b.png"))
    out = tmp_path / "m" / "m.csv"
    assert call("data", "import", "table", tmp_path / "t.csv", "--boxes", boxes, "--out", out) == 0
    manifest = read_manifest(out)
    found = {Path(image).stem: [box for _, box in manifest.boxes_of(image)] for image in set(manifest.boxes["image"])}
    assert found == {"p1": [Box(20, 10, 40, 20)], "p2": [Box(30, 10, 30, 20)], "b": [Box(20, 10, 40, 20)]}
    assert "left out" not in capsys.readouterr().err
    (boxes / "case8.xml").write_text(VOC)
    assert call("data", "import", "table", tmp_path / "t.csv", "--boxes", boxes, "--out", tmp_path / "n" / "m.csv") == 0
    assert "boxes of 1 films that the table does not hold are left out: a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.xml", '<!DOCTYPE x [<!ENTITY a "aa">]><annotation>&a;</annotation>', "entities"),
        ("a.xml", "<annotation>", "no XML"),
        ("a.json", "[1]", "no COCO"),
        ("a.txt", "0 30 40 20 10", "shares of the film"),
        ("a.csv", "image,z\na,1\n", "no columns x, y"),
    ],
)
def test_boxes_that_cannot_be_read_are_named(tmp_path, capsys, name, content, match):
    put(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text("image,label\na.png,TB\n")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / name).write_text(content)
    given = tmp_path / "boxes" / (name if name.endswith("csv") else "")
    assert call("data", "import", "table", tmp_path / "t.csv", "--boxes", given, "--out", tmp_path / "m" / "m.csv") == 2
    assert match in capsys.readouterr().err


def test_class_folders_with_masks_of_both_lungs(tmp_path, capsys):
    put(tmp_path / "set", "sick/1.png", "well/2.png")
    put(tmp_path / "left", "1.png", "2.png")
    put(tmp_path / "right", "1_mask.png", "2_mask.png")
    out = tmp_path / "m" / "m.csv"
    masks = ["--masks", tmp_path / "left", "--masks", tmp_path / "right"]
    assert call("data", "import", "table", tmp_path / "set", *masks, "--out", out) == 0
    table = read_manifest(out).table
    assert list(table["mask"]) == [f"{tmp_path}/left/{n}.png|{tmp_path}/right/{n}_mask.png" for n in (1, 2)]
    step = capsys.readouterr().out
    assert """--set 'classes=["sick", "well"]' --set 'positive="sick"' --set 'normal="well"'""" in step
    assert "segment.weights" not in step


def test_a_mask_of_two_films_is_given_to_none_and_named(tmp_path, capsys):
    put(tmp_path / "set", "sick/1.png", "well/1.png", "well/2.png", "sick/3.png", "well/3.png")
    put(tmp_path / "masks", "1.png", "2_mask.png", "sick/3.png", "well/3.png")
    out = tmp_path / "m" / "m.csv"
    assert call("data", "import", "table", tmp_path / "set", "--masks", tmp_path / "masks", "--out", out) == 0
    masks = {image[len(str(tmp_path)) :]: mask for image, mask in read_manifest(out).table[["image", "mask"]].values}
    assert masks == {
        "/set/sick/1.png": "",
        "/set/well/1.png": "",
        "/set/well/2.png": f"{tmp_path}/masks/2_mask.png",
        "/set/sick/3.png": f"{tmp_path}/masks/sick/3.png",
        "/set/well/3.png": f"{tmp_path}/masks/well/3.png",
    }
    printed = capsys.readouterr().err
    assert "1 mask(s) fit several films" in printed
    assert "masks/1.png. " in printed
    assert "2 of 5 films have no mask" in printed


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"Tuberculosis": 5, "Normal": 9}, ("Tuberculosis", "Normal")),
        ({"0": 5, "1": 2}, ("1", "0")),
        ({"sick": 5, "well": 2}, ("sick", "well")),
        ({"covid": 5, "pneumonia": 4, "healthy": 2}, ("pneumonia", "healthy")),
        ({"A": 5, "B": 2}, ("B", "A")),
        ({"A": 5, "B": 2, "C": 3}, ("B", None)),
        ({"No TB": 5, "TB": 8}, ("TB", "No TB")),
    ],
)
def test_the_roles_of_classes(counts, expected):
    assert roles(Counter(counts)) == expected


def test_settings_follow_from_two_folders(tmp_path):
    put(tmp_path / "set", "Tuberculosis/1.png", "Normal/2.png", "Normal/3.png")
    manifest = read_manifest(tmp_path / "set")
    tb = load_config("tb")
    follows = settings_of(manifest, tb)
    config = load_config("tb", follows.overrides)
    assert (config.classes, config.positive, config.normal) == (["Tuberculosis", "Normal"], "Tuberculosis", "Normal")
    assert config.classify.assumed_mix is None
    assert config.segment.weights == "tb"
    assert "Tuberculosis (1), Normal (2)" in follows.messages[0]
    # What the user says stands.
    given = ["positive=Normal", "normal=Tuberculosis", "segment.weights=null"]
    config = load_config("tb", (*settings_of(manifest, tb, given=given).overrides, *given))
    assert (config.positive, config.segment.weights) == ("Normal", None)
    assert settings_of(manifest, load_config("pneumonia"), own_config=True).overrides == ()
    assert "segment.weights=tb" not in settings_of(manifest, tb, stage="segment").overrides


def test_known_classes_keep_the_presets(tmp_path):
    put(tmp_path / "set", "TB/1.png", "NORM/2.png")
    overrides = settings_of(read_manifest(tmp_path / "set"), load_config("tb")).overrides
    assert overrides == ("classify.head=solved", "segment.weights=tb")


def test_another_network_does_not_take_what_belongs_to_the_presets_own(tmp_path):
    put(tmp_path / "set", "TB/1.png", "NORM/2.png")
    manifest = read_manifest(tmp_path / "set")

    def follow(*given):
        follows = settings_of(manifest, load_config("tb", given), given=given)
        return follows.messages, load_config("tb", (*follows.overrides, *given)).classify

    messages, section = follow("classify.network=efficientnetb0")
    assert (section.encoder_weights, section.pool, section.fit.epochs, section.fit.augment) == (
        "imagenet",
        "zones",
        4,
        True,
    )
    assert any("of the network efficientnetb0" in text and "classify.pool" in text for text in messages)
    _, section = follow("classify.network=efficientnetb0", "classify.encoder_weights=null", "classify.pool=all")
    assert (section.encoder_weights, section.pool, section.fit.epochs) == (None, "all", 4)
    assert follow("classify.network=efficientnetb0", "classify.fit.epochs=0")[1].fit.epochs == 0
    for same in ((), ("classify.network=chest",)):
        assert follow(*same)[1].encoder_weights == "chest"


def test_a_head_in_two_steps_needs_films_of_two_sources(tmp_path):
    names = ("a1", "a2", "b1", "b2", "c1")
    put(tmp_path, *(f"{name}.png" for name in names))
    rows = {"a1": "TB,a", "a2": "NORM,a", "b1": "TB,b", "b2": "NORM,b", "c1": "NTB,a"}

    def follow(*left, split="", **options):
        lines = [f"{name}.png,{rows[name]},{split}" for name in names if name not in left]
        (tmp_path / "m.csv").write_text("\n".join(["image,label,source,split", *lines]) + "\n")
        follows = settings_of(read_manifest(tmp_path / "m.csv"), load_config("tb"), **options)
        return "classify.head=solved" in follows.overrides

    assert not follow()  # source b can be left out: a has all that b has
    assert not follow("c1")
    assert follow("b1", "b2")  # one source
    assert follow("a1", "b2")  # the others lack the normal class, or the abnormal ones
    assert follow(split="val")  # no film of train
    assert not follow("b1", "b2", given=["classify.head=two_steps"])
    assert not follow("b1", "b2", own_config=True)
    assert not follow("b1", "b2", stage="segment")


def test_training_says_what_it_concluded(tmp_path, monkeypatch, capsys):
    import cxr_pipeline.train.training

    put(tmp_path / "set", "ill/1.png", "well/2.png")
    asked = []
    monkeypatch.setattr(cxr_pipeline.train.training, "train", lambda data, config, *_, **__: asked.append(config))
    assert call("train", "--data", tmp_path / "set", "--out", tmp_path / "w", "--set", "seed=5") == 0
    assert asked[0].classes == ["ill", "well"]
    assert asked[0].seed == 5
    printed = capsys.readouterr().err
    assert "classes of the manifest: ill (1), well (1)" in printed
    assert "segment.weights=tb" in printed
