"""`pipeline deidentify`: nothing that identifies is left, what belongs together still does, and pixels stay."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from PIL import Image
from pydicom.dataset import Dataset

from cxr_pipeline.cli.main import cli
from cxr_pipeline.data.radiograph import read
from cxr_pipeline.dicom.burntin import blanked, find_text
from cxr_pipeline.dicom.deidentify import DeidentifyError, deidentified, deidentify, rules
from cxr_pipeline.dicom.pictures import PictureError, cleaned_picture
from tests.pipeline import dicom_films
from tests.pipeline.dicom_films import output_of, tool, write
from tests.pipeline.fake_chain import film

pytest.importorskip("dicomanonymizer")
SECRET = b"a secret of this very site"
IDENTIFYING = ("Doe", "Jane", "P-0042", "ACC7", "House", "1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3", "19700203", "20240506")


def of(path, **how):
    return deidentified(path.read_bytes(), path.name, rules(SECRET, **how))


def dataset_of(outcome):
    return pydicom.dcmread(io.BytesIO(outcome.data))


def nested():
    """Names where the library's table does not look: in sequences that stay, private elements, the file's header."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "51185008", "SCT", "Chest"
    item.OperatorsName = "Doe^Operator"
    item.add_new((0x0009, 0x0010), "LO", "PRIVATE")
    item.add_new((0x0009, 0x1001), "LO", "Doe again")
    return {"AnatomicRegionSequence": [item], "ImageComments": "film of Jane Doe", "InstitutionName": "St. Elsewhere"}


def test_nothing_of_the_header_identifies(tmp_path):
    path = write(tmp_path / "film.dcm", **nested())
    outcome = of(path)
    assert outcome.report["status"] == "ok"
    for word in IDENTIFYING:
        assert word.encode() not in outcome.data, word
    assert b"Elsewhere" not in outcome.data
    made = dataset_of(outcome)
    assert made.PatientIdentityRemoved == "YES"
    assert made.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert made.AnatomicRegionSequence[0].CodeMeaning == "Chest"
    assert made.PatientID == made.PatientName == outcome.report["patient"]


def test_pixels_and_what_they_need_stay(tmp_path):
    path = write(tmp_path / "film.dcm", ImagerPixelSpacing=["0.4", "0.4"], WindowCenter="2000", WindowWidth="4000")
    (tmp_path / "out.dcm").write_bytes(of(path).data)
    before, after = read(path), read(tmp_path / "out.dcm")
    np.testing.assert_array_equal(after.pixels, before.pixels)
    assert after.spacing == before.spacing
    assert after.meta["view"] == "PA"


def test_dcmtk_reads_it_and_dciodvfy_finds_what_it_found_before(tmp_path):
    path = write(tmp_path / "film.dcm")
    (tmp_path / "out.dcm").write_bytes(of(path).data)
    assert "Doe" not in output_of(tool("dcmdump"), tmp_path / "out.dcm")

    def errors(file):
        return {line for line in output_of(tool("dciodvfy"), file).splitlines() if line.startswith("Error")}

    assert errors(tmp_path / "out.dcm") <= errors(path)


def test_films_of_a_patient_and_study_still_belong_together(tmp_path):
    same = [dataset_of(of(write(tmp_path / f"{n}.dcm", SOPInstanceUID=f"1.2.{n}"))) for n in (1, 2)]
    other = dataset_of(of(write(tmp_path / "3.dcm", PatientID="P-0043", StudyInstanceUID="1.9")))
    assert same[0].PatientID == same[1].PatientID != other.PatientID
    assert same[0].StudyInstanceUID == same[1].StudyInstanceUID != other.StudyInstanceUID
    assert same[0].SOPInstanceUID != same[1].SOPInstanceUID
    assert same[0].file_meta.MediaStorageSOPInstanceUID == same[0].SOPInstanceUID


def test_dates_go_or_are_moved_by_one_number_of_days(tmp_path):
    days = ("20240506", "20240516")
    paths = [write(tmp_path / f"{day}.dcm", StudyDate=day, AcquisitionDate=day) for day in days]
    assert all(str(dataset_of(of(path)).get("StudyDate", "")) == "" for path in paths)
    from datetime import datetime

    moved = [datetime.strptime(dataset_of(of(path, keep_intervals=True)).StudyDate, "%Y%m%d") for path in paths]
    assert (moved[1] - moved[0]).days == 10
    assert moved[0] != datetime(2024, 5, 6)


def test_the_preamble_and_the_files_own_header_go_too(tmp_path):
    path = write(tmp_path / "film.dcm")
    raw = bytearray(path.read_bytes())
    raw[:8] = b"Jane Doe"
    path.write_bytes(raw)
    assert b"Jane" not in of(path).data


def test_a_report_or_a_damaged_file_is_left_out_and_said(tmp_path):
    path = write(tmp_path / "film.dcm", PixelData=None)
    outcome = of(path)
    assert (outcome.data, outcome.report["status"]) == (b"", "left out")
    assert "no pixels" in outcome.report["note"]
    (tmp_path / "x.txt").write_text("Jane Doe")
    assert of(tmp_path / "x.txt").report["status"] == "left out"


def lettered(size=(900, 800), words="DOE, JANE", at=(30, 60), plate=True):
    """A synthetic film (H, W) uint8 with a plate of a name, and the place of the name."""
    picture = film(0, size=size, lungs=0.35)
    (w, h), base = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 2)
    x, y = at
    if plate:
        cv2.rectangle(picture, (x - 8, y - h - 8), (x + w + 8, y + base + 8), 235, cv2.FILLED)
    cv2.putText(picture, words, at, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 10 if plate else 255, 2, cv2.LINE_AA)
    return picture, np.s_[y - h : y + 2, x : x + w]


def covered(shape, boxes):
    out = np.zeros(shape, bool)
    for box in boxes:
        out[int(box.y) : int(box.y + box.h), int(box.x) : int(box.x + box.w)] = True
    return out


@pytest.mark.parametrize("at", [(30, 60), (560, 60), (30, 870), (560, 870)])
@pytest.mark.parametrize("turn", [0, 1])
def test_a_plate_with_a_name_is_found_in_any_corner_and_turned(at, turn):
    picture, place = lettered(at=at)
    mask = np.zeros(picture.shape, bool)
    mask[place] = True
    found = covered(np.rot90(picture, turn).shape, find_text(np.rot90(picture, turn)))
    assert found[np.rot90(mask, turn)].mean() > 0.9


def test_a_film_without_text_and_a_side_marker_are_left_alone():
    assert find_text(film(1, size=(900, 800), lungs=0.35)) == []
    assert find_text(lettered(words="R", plate=False)[0]) == []
    assert find_text(np.zeros((100, 100))) == []


def test_blanked_text_is_gone_and_the_rest_is_as_it_was():
    picture, place = lettered()
    boxes = find_text(picture)
    clean = blanked(picture, boxes)
    assert np.ptp(clean[place].astype(int)) < 10
    outside = ~covered(picture.shape, boxes)
    np.testing.assert_array_equal(clean[outside], picture[outside])
    assert find_text(clean) == []


@pytest.mark.parametrize("kind", ["plain", "monochrome1", "signed", "rle"])
def test_text_in_a_dicom_film_is_blanked(tmp_path, kind):
    picture, place = lettered()
    changes = {
        "plain": {},
        "monochrome1": {"PhotometricInterpretation": "MONOCHROME1"},
        "signed": {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15},
        "rle": {},
    }[kind]
    made = dicom_films.dataset(size=picture.shape, PixelData=(picture.astype(np.uint16) * 16).tobytes(), **changes)
    if kind == "rle":
        made.compress(pydicom.uid.RLELossless)
    pydicom.dcmwrite(tmp_path / "film.dcm", made, enforce_file_format=True)
    outcome = of(tmp_path / "film.dcm")
    assert outcome.report["text"].startswith("blanked ")
    pixels = dataset_of(outcome).pixel_array
    assert np.ptp(pixels[place].astype(int)) < 200
    outside = ~covered(picture.shape, find_text(picture))
    np.testing.assert_array_equal(pixels[outside], picture[outside].astype(int) * 16)
    codes = [item.CodeValue for item in dataset_of(outcome).DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113101"]


def test_flagged_films_are_put_aside_as_they_are(tmp_path):
    picture, _ = lettered()
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture)
    outcome = of(path, text="flag")
    assert outcome.name.startswith("flagged/F")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(outcome.data, np.uint8), -1), picture)
    assert of(path, text="keep").report["text"] == "not looked for"


def png_with(text, picture):
    raw = cv2.imencode(".png", picture)[1].tobytes()
    chunk = b"tEXt" + b"Comment\0" + text
    extra = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return raw[:33] + extra + raw[33:] + b"Jane Doe after the end"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_png_loses_its_metadata_and_no_pixel(kind):
    picture = (film(0, size=(300, 280), lungs=0.35).astype(kind)) * (257 if kind is np.uint16 else 1)
    clean, boxes = cleaned_picture(png_with(b"Jane Doe", picture))
    assert b"Jane" not in clean
    assert boxes == []
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(clean, np.uint8), -1), picture)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"orientation": 6}])
def test_a_jpeg_loses_its_metadata_and_no_pixel(options):
    image = Image.fromarray(film(0, size=(300, 280), lungs=0.35))
    exif = Image.Exif()
    exif[0x010E] = "film of Jane Doe"
    orientation = options.pop("orientation", 1)
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, comment=b"Jane Doe", **options)
    clean, _ = cleaned_picture(file.getvalue() + b"Jane Doe after the end")
    assert b"Jane" not in clean
    back = Image.open(io.BytesIO(clean))
    np.testing.assert_array_equal(np.asarray(back), np.asarray(Image.open(io.BytesIO(file.getvalue()))))
    assert back.getexif().get(0x0112, 1) == orientation
    assert back.info.get("comment") is None


def test_text_in_pictures_is_blanked():
    picture, place = lettered()
    for suffix in (".png", ".jpg"):
        clean, boxes = cleaned_picture(cv2.imencode(suffix, picture)[1].tobytes())
        assert boxes
        assert np.ptp(cv2.imdecode(np.frombuffer(clean, np.uint8), -1)[place].astype(int)) < 30


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_that_is_cut_off_is_said(suffix):
    raw = cv2.imencode(suffix, film(0, size=(300, 280), lungs=0.35))[1].tobytes()
    with pytest.raises(PictureError, match="cut off"):
        cleaned_picture(raw[: len(raw) // 2])


def test_the_command_writes_films_report_and_key(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_SITE_SECRET", SECRET.decode())
    folder = tmp_path / "films of Jane Doe"
    folder.mkdir()
    write(folder / "doe.dcm")
    write(folder / "doe again.dcm", seed=3)  # the same UID, other pixels
    cv2.imwrite(str(folder / "doe.png"), film(0, size=(300, 280), lungs=0.35))
    (folder / "notes.txt").write_text("Jane Doe")
    done = CliRunner().invoke(cli, ["deidentify", str(folder), "--out", str(tmp_path / "out")], standalone_mode=False)
    assert done.return_value == 1, done.output  # one was left out
    films = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert len(films) == 4  # with the report
    for path in films:
        assert b"Doe" not in path.read_bytes()
        assert "doe" not in str(path.relative_to(tmp_path / "out")).lower()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    assert sorted(row["status"] for row in rows) == ["left out", "ok", "ok", "ok"]
    key = list(csv.DictReader(io.StringIO((tmp_path / "out-key.csv").read_text())))
    assert {row["source"].rpartition("/")[2] for row in key} == {"doe.dcm", "doe again.dcm", "doe.png", "notes.txt"}
    assert {row["file"] for row in key if row["file"]} == {row["file"] for row in rows if row["file"]}
    assert (tmp_path / "out-key.csv").stat().st_mode & 0o077 == 0


def test_a_folder_with_other_files_is_not_written_into(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("mine")
    with pytest.raises(DeidentifyError, match="not empty"):
        deidentify([write(tmp_path / "film.dcm")], tmp_path / "out", rules(SECRET))


def test_a_folder_within_the_films_is_not_taken_for_films(tmp_path):
    write(tmp_path / "film.dcm")
    counts = deidentify([tmp_path], tmp_path / "share", rules(SECRET))
    assert (counts.ok, counts.left_out) == (1, 0)
    assert len(list((tmp_path / "share").rglob("*.dcm"))) == 1


def test_the_key_of_an_earlier_call_is_not_written_over(tmp_path, monkeypatch):
    film = write(tmp_path / "film.dcm")
    deidentify([film], tmp_path / "out", rules(SECRET))
    (tmp_path / "out").rename(tmp_path / "sent")
    with pytest.raises(DeidentifyError, match="out-key.csv"):
        deidentify([film], tmp_path / "out", rules(SECRET))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    deidentify([film], Path(), rules(SECRET))
    assert (tmp_path / "here-key.csv").is_file()
