"""Tables as spreadsheets, other computers and other programs write them; and what is none."""

from __future__ import annotations

import json
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_pipeline.data.manifest import ManifestError, read_manifest
from cxr_pipeline.data.names import printable
from cxr_pipeline.data.tables import TableError, read_table
from cxr_pipeline.run.inputs import InputError, find_inputs

PLAIN = "image,label,split\nfilms/a.png,TB,train\nfilms/b.png,NORM,test\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "films").mkdir()
    for name in ("a", "b"):
        cv2.imencode(".png", np.eye(40, dtype=np.uint8) * 255)[1].tofile(tmp_path / "films" / f"{name}.png")
    return tmp_path


def excel(path, rows):
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


FORMS = {
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "sep line": b"sep=;\n" + PLAIN.replace(",", ";").encode(),
    "quoted sep line": b'"sep=;"\r\n' + PLAIN.replace(",", ";").replace("\n", "\r\n").encode(),
    "BOM": b"\xef\xbb\xbf" + PLAIN.encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16 without mark": PLAIN.encode("utf-16-le"),
    "old Mac line ends": PLAIN.replace("\n", "\r").encode(),
    "trailing comma on every row": PLAIN.replace("\n", ",\n").encode(),
    "trailing comma on the rows alone": PLAIN.replace("TB,train", "TB,train,")
    .replace("NORM,test", "NORM,test,")
    .encode(),
    "blank lines": b"\n\n" + PLAIN.replace("\n", "\n\n").encode(),
    "blanks": PLAIN.replace(",", " , ").encode(),
    "quotes": b'"image","label","split"\n"films/a.png","TB","train"\n"films/b.png","NORM","test"\n',
    "capitals": PLAIN.replace("image,label,split", "Image,LABEL,Split").encode(),
    "back slashes": PLAIN.replace("/", "\\").encode(),
    "dotted": PLAIN.replace("films/", "./films/").encode(),
    "a Windows path": PLAIN.replace("films/", "C:\\Users\\me\\set\\films\\").encode(),
    "a path of another computer": PLAIN.replace("films/", "/home/me/set/films/").encode(),
    "without endings": PLAIN.replace(".png", "").encode(),
    "endings in capitals": PLAIN.replace(".png", ".PNG").encode(),
    "folders in capitals": PLAIN.replace("films/", ".\\FILMS\\").encode(),
    "the end mark of DOS": PLAIN.encode() + b"\x1a",
    "a title above": b"Films of 2020\n" + PLAIN.encode(),
    "a title and comments above": b"Films; of the clinic, 2020\n# by hand, twice\n\n"
    + PLAIN.replace(",", ";").encode(),
    "a sep line and a title": b"sep=;\nFilms, of, 2020, ours\n" + PLAIN.replace(",", ";").encode(),
    "a title in UTF-16": ("Films of 2020\r\n" + PLAIN).encode("utf-16"),
    "an index column": b",image,label,split\n0,films/a.png,TB,train\n1,films/b.png,NORM,test\n",
    "other words for splits": PLAIN.replace(",train", ",Training").replace(",test", ",TEST").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_films(folder, form):
    path = folder / "m.csv"
    path.write_bytes(FORMS[form])
    table = read_manifest(path).table
    films = {(folder / "films" / name).resolve() for name in ("a.png", "b.png")}
    assert {(folder / image).resolve() for image in table["image"]} == films
    assert list(table["label"]) == ["TB", "NORM"]
    assert list(table["split"]) == ["train", "test"]
    assert [(folder / one.path).resolve() for one in find_inputs([path])] == sorted(films)  # `run` reads it alike


def test_excel(folder):
    rows = [line.split(",") for line in PLAIN.splitlines()]
    excel(folder / "m.xlsx", [[], *rows, [None, None], ["films/a", 7.0, None]])
    with pytest.raises(ManifestError, match=r"row 6: films/a.png stands in row 3 already"):
        read_manifest(folder / "m.xlsx")
    assert len(find_inputs([folder / "m.xlsx"])) == 2
    read = read_table(folder / "m.xlsx", ["image"])
    assert read.rows[-1] == {"image": "films/a", "label": "7", "split": ""}
    assert read.numbers == [3, 4, 6]
    (folder / "m.xlsx").write_bytes((folder / "m.xlsx").read_bytes()[:900])
    with pytest.raises(TableError, match="damaged"):
        read_table(folder / "m.xlsx", ["image"])


def test_excel_with_a_title_above_or_the_table_on_another_sheet(folder):
    import openpyxl

    rows = [line.split(",") for line in PLAIN.splitlines()]
    excel(folder / "named.xlsx", rows)
    (folder / "named.xlsx").rename(folder / "named.csv")
    assert len(read_table(folder / "named.csv", ["image"]).rows) == 2
    excel(folder / "title.xlsx", [["Films of 2020"], [], *rows])
    read = read_table(folder / "title.xlsx", ["image"])
    assert [row["image"] for row in read.rows] == ["films/a.png", "films/b.png"]
    assert read.numbers == [4, 5]
    book = openpyxl.Workbook()
    book.active.append(["About", "file"])  # nearly a header: the sheet with the very column wins
    sheet = book.create_sheet("films")
    for row in rows:
        sheet.append(row)
    book.save(folder / "second.xlsx")
    assert list(read_manifest(folder / "second.xlsx").table["label"]) == ["TB", "NORM"]


def test_numbers_and_errors_below_a_title(folder):
    (folder / "m.csv").write_text("Films of 2020\n\nimage,label\nfilms/a.png,TB\nfilms,TB\n")
    with pytest.raises(ManifestError, match="row 5: image films is a folder"):
        read_manifest(folder / "m.csv")
    (folder / "m.csv").write_text("Films of 2020\nfilename,label\na.png,TB\n")
    with pytest.raises(ManifestError, match="Columns there: filename, label. Did you mean `filename`"):
        read_manifest(folder / "m.csv")
    (folder / "m.csv").write_text("Study\nFile;Diagnosis\na.png;TB\n")
    assert read_table(folder / "m.csv", likely=["image", "file", "study"]).columns == ["File", "Diagnosis"]
    (folder / "m.csv").write_text("name,label\na.png,TB\n")  # no row is like a header: the first counts
    assert read_table(folder / "m.csv", likely=["image", "file"]).columns == ["name", "label"]


def test_boxes_follow_their_films_to_the_mended_names(folder):
    (folder / "m.csv").write_text("Image\nfilms\\a\n")
    (folder / "boxes.csv").write_text("image;x;y;w;h\nfilms\\a;1;2;3;4\n")
    manifest = read_manifest(folder / "m.csv")
    assert len(manifest.boxes_of("films/a.png")) == 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (json.dumps([{"image": "a.png"}] * 200_000).encode(), "JSON"),
        (json.dumps({"images": list(range(500_000))}).encode(), "JSON"),
        (b"\x89PNG\r\n\x1a\n" + bytes(5_000_000), "picture"),
        (bytes(128) + b"DICM" + bytes(5_000_000), "DICOM"),
        (b"PK\x03\x04" + bytes(5_000_000), "ZIP"),
        (b"<html>" + b"x" * 5_000_000, "HTML"),
        (b"\xd0\xcf\x11\xe0" + bytes(999), "old Excel"),
        (b"a" * 5_000_000, "over 65536 characters"),
        (b"a," * 30_000 + b"\n", "30001 cells"),
        (b"name,label\n" + b"x,y\n" * 2_000_000, "no column `image`. Columns there: name, label"),
        (bytes(range(1, 256)) * 9 + bytes(40), "no text"),
        (b"", "empty"),
        (b"image,label,image\na.png,TB,b.png\n", "twice"),
    ],
)
def test_what_is_no_table_is_refused_at_once_and_shortly(tmp_path, content, match):
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(ManifestError, match=match) as caught:
        read_manifest(path)
    assert time.monotonic() - begun < 2
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    with pytest.raises(InputError, match=match):
        find_inputs([path])


@pytest.mark.parametrize("name", ["Image Path", "filename", "file", "imagee"])
def test_the_nearest_column_is_named(tmp_path, name):
    (tmp_path / "m.csv").write_text(f"{name},label\na.png,TB\n")
    with pytest.raises(ManifestError, match=f"Did you mean `{name}`"):
        read_manifest(tmp_path / "m.csv")


def test_faults_of_rows_have_the_spreadsheets_numbers(folder):
    (folder / "m.csv").write_text("\nimage,label\n\nfilms/a.png,tb\nfilms,TB\nfilms/b.png,TB,more\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(folder / "m.csv", classes=["TB", "NORM"])
    assert caught.value.faults == [
        "row 6: 3 cells, and the header has 2. Put cells that hold a separator into quotes",
        "row 5: image films is a folder. Name a file in each row",
        "row 4: label 'tb' is not one of TB, NORM. Write 'TB'",
    ]


def test_a_name_that_may_mean_two_files_is_asked_for(folder):
    (folder / "films" / "a.jpg").write_bytes(b"x")
    (folder / "m.csv").write_text("image\nfilms/a\n")
    with pytest.raises(ManifestError, match=r"may be any of a.jpg, a.png"):
        read_manifest(folder / "m.csv")


def test_a_table_far_from_its_films_gets_one_sentence(tmp_path):
    (tmp_path / "m.csv").write_text("image\n" + "".join(f"films/{n}.png\n" for n in range(5000)))
    with pytest.raises(ManifestError, match="none of its 5000 films exists") as caught:
        read_manifest(tmp_path / "m.csv")
    assert len(caught.value.faults) == 1


def test_terminal_codes_in_cells_are_spelled_out(tmp_path):
    (tmp_path / "m.csv").write_text("image,split\n\x1b]0;owned\x07.png,\x1b[31mred\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "m.csv")
    assert "\x1b" not in str(caught.value)
    assert "\x07" not in str(caught.value)
    assert "\\x1b]0;owned" in str(caught.value)


@given(st.text())
def test_printable_text_holds_no_codes_and_keeps_letters(text):
    shown = printable(text)
    assert not any((ord(letter) < 32 and letter not in "\t\n") or 127 <= ord(letter) < 160 for letter in shown)
    if text.isascii() and text.isprintable():
        assert shown == text


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_table_or_one_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "m.csv"
    path.write_bytes(content)
    try:
        read_table(path, ["image"])
    except TableError as error:
        assert 0 < len(str(error)) < 500


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text('abc,;\t"\n\r\0é ', max_size=6), min_size=1, max_size=4), max_size=5))
def test_any_cells_give_a_table_or_one_error(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "m.csv"
    path.write_text("image,label\n" + "\n".join(",".join(row) for row in rows), encoding="utf-8", newline="")
    try:
        read_manifest(path)
    except ManifestError as error:
        assert len(str(error)) < 20_000
