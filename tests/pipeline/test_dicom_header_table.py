"""`--dicom-header`: films that are no DICOM go with their row of a table, and with no other."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from cxr_pipeline.dicom.films import HeaderTableError, read_headers
from cxr_pipeline.results.outputs.dicom import DicomAnswers
from cxr_pipeline.results.outputs.fhir import FhirBundles
from cxr_pipeline.results.outputs.identifiers import Identifiers
from tests.pipeline.dicom_films import assert_conforms, judged_record
from tests.pipeline.test_results import record

hd = pytest.importorskip("highdicom")

from tests.pipeline.test_dicom_output import KINDS, judged  # noqa: E402


def table_of(folder, text):
    path = folder / "headers.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_film_that_is_no_dicom_goes_with_its_row_of_the_table(tmp_path):
    import cv2

    path = tmp_path / "a.png"
    cv2.imwrite(str(path), (record().radiograph.pixels * 255).astype(np.uint8))
    rows = "image,PatientID,PatientName,AccessionNumber,PixelSpacing\na.png,P1,Müller^Ö,A1,0.3\\0.3\n"
    headers = read_headers(table_of(tmp_path, rows))
    one = judged_record(path)
    files, one, warnings = judged(path, headers=headers, one=one)
    assert set(files) == {"film", *KINDS}, warnings
    for file in files.values():
        assert_conforms(file)
    film = pydicom.dcmread(files["film"])
    np.testing.assert_array_equal(film.pixel_array, np.rint(one.radiograph.pixels * 255))
    pixels = hd.seg.segread(files["seg"]).get_pixels_by_source_instance([film.SOPInstanceUID])[0]
    np.testing.assert_array_equal(pixels.any(axis=-1), one.mask > 0)
    assert str(film.PatientName) == "Müller^Ö"
    assert [float(v) for v in film.PixelSpacing] == [0.3, 0.3]
    again = {kind: file.read_bytes() for kind, file in files.items()}
    assert {kind: file.read_bytes() for kind, file in judged(path, headers=headers, one=one)[0].items()} == again


def test_a_film_that_nobody_knows_gets_a_clear_word(tmp_path):
    import cv2

    path = tmp_path / "a.png"
    cv2.imwrite(str(path), (record().radiograph.pixels * 255).astype(np.uint8))
    assert "Give --dicom-header" in judged(path)[2][0]
    headers = read_headers(table_of(tmp_path, "image,PatientID\nb.png,P1\na.png,P1\n"))
    assert "lacks the study" in judged(path, headers=headers)[2][0]


def test_a_row_is_never_of_another_film_with_the_same_name(tmp_path):
    for folder in "abc":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "film.png").touch()
    films = [tmp_path / folder / "film.png" for folder in "abc"]
    with_paths = read_headers(table_of(tmp_path, "image,PatientID\na/film.png,P1\nb/film.png,P2\n"))
    assert [(with_paths.find(film) or {}).get("PatientID") for film in films] == ["P1", "P2", None]
    one_path = read_headers(table_of(tmp_path, "image,PatientID\na/film.png,P1\n"))
    assert one_path.find(films[1]) is None
    beside = read_headers(table_of(tmp_path / "a", "image,PatientID\nfilm.png,P1\n"))
    assert [(beside.find(film) or {}).get("PatientID") for film in films] == ["P1", None, None]
    by_name = read_headers(table_of(tmp_path, "image,PatientID\nfilm.png,P1\n"))
    assert by_name.for_films(films[:1]).find(films[0])["PatientID"] == "P1"
    assert by_name.for_films(films[:2]).find(films[0]) is None


def test_another_table_makes_the_answers_anew(tmp_path):
    keys = set()
    for patient in ("P1", "P2"):
        headers = read_headers(table_of(tmp_path, f"image,PatientID\na.png,{patient}\n"))
        keys |= {DicomAnswers(headers).key, FhirBundles(headers).key, Identifiers(None, headers).key}
    assert len(keys) == 6
    assert DicomAnswers().key == "dicom"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,PatientId\na.png,1\n", "did you mean PatientID"),
        ("image,StudyID\na.png,1\n", "no column PatientID"),
        ("image,PatientID\na.png,1\na.png,2\n", "row 3 names a.png again"),
        ("file,PatientID\na.png,1\n", "image"),
    ],
)
def test_a_wrong_table_of_headers_is_said(tmp_path, text, said):
    with pytest.raises(HeaderTableError, match=said):
        read_headers(table_of(tmp_path, text))
