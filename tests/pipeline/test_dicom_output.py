"""`--outputs dicom`: what is written reads back to the same mask and figures, conforms, and names the patient."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

from cxr_pipeline.dicom.headers import HeaderError, film_header
from cxr_pipeline.results.outputs.base import JudgedFilm
from cxr_pipeline.results.outputs.dicom import DicomAnswers
from cxr_pipeline.stages.measure import sides
from tests.pipeline import dicom_films
from tests.pipeline.dicom_films import HEADER, assert_conforms, judged_record, output_of, some_film, tool, write
from tests.pipeline.test_results import identity

hd = pytest.importorskip("highdicom")
KINDS = ("seg", "sr", "sc", "pr")
CARRIED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime")
CARRIED += ("AccessionNumber", "StudyID", "ReferringPhysicianName", "IssuerOfPatientID", "PatientAge")


def judged(path, upto="measure", headers=None, one=None, **changes):
    """The files of a film by kind as paths beside it, its record, and the warnings."""
    one = one or judged_record(path, upto=upto)
    seen = JudgedFilm(one, one.id, str(path), "", path.parent, identity(about={"weights": "some/where/tb"}, **changes))
    files = DicomAnswers(headers).files(seen)
    out = {}
    for suffix, data in files.items():
        kind = suffix[1:].removesuffix(".dcm")
        out[kind] = path.parent / f"{path.stem}{suffix}"
        out[kind].write_bytes(data)
    return out, one, seen.warnings


@pytest.fixture
def answers(tmp_path):
    return judged(write(tmp_path / "film.dcm"))


def test_all_four_conform(answers):
    files, _, warnings = answers
    assert set(files) == set(KINDS)
    assert warnings == []
    for path in files.values():
        assert_conforms(path)


def test_they_belong_to_the_same_patient_and_study_in_series_of_their_own(answers):
    files, _, _ = answers
    read = {kind: pydicom.dcmread(path) for kind, path in files.items()}
    for one in read.values():
        assert {name: str(one.get(name, "")) for name in CARRIED} == {name: HEADER[name] for name in CARRIED}
    series = {str(one.SeriesInstanceUID) for one in read.values()}
    assert len(series) == 4
    assert HEADER["SeriesInstanceUID"] not in series
    assert {str(one.Modality) for one in read.values()} == {"SEG", "SR", "OT", "PR"}
    assert all("esearch use only" in one.SeriesDescription for one in read.values())


def test_the_segmentation_is_the_mask_with_the_patients_own_sides(answers):
    files, one, _ = answers
    seg = hd.seg.segread(files["seg"])
    pixels = seg.get_pixels_by_source_instance([HEADER["SOPInstanceUID"]])[0]
    right, left = sides(one.mask)
    names = [seg.get_segment_description(number).segment_label for number in seg.segment_numbers]
    assert names == ["Right lung", "Left lung"]
    np.testing.assert_array_equal(pixels[..., 0], right)
    np.testing.assert_array_equal(pixels[..., 1], left)
    # A frontal film as it hangs: the patient's right lung is on the left of the picture.
    assert np.nonzero(pixels[..., 0])[1].mean() < np.nonzero(pixels[..., 1])[1].mean()
    codes = [seg.get_segment_description(number).segmented_property_type.value for number in seg.segment_numbers]
    assert codes == ["3341006", "44029006"]
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(value) for value in measures.PixelSpacing] == [0.4, 0.4]


def test_dcmtk_reads_the_same_segmentation(answers):
    files, one, _ = answers
    said = output_of(
        tool("dcmdump"), "+L", "+P", "0062,0005", "+P", "0028,0010", "+P", "0028,0011", "+P", "0028,0008", files["seg"]
    )
    assert "[Right lung]" in said
    assert "[Left lung]" in said
    assert f"US {one.mask.shape[0]}" in said
    assert f"US {one.mask.shape[1]}" in said
    packed = pydicom.dcmread(files["seg"]).PixelData
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")[: 2 * one.mask.size]
    np.testing.assert_array_equal(bits.reshape(2, *one.mask.shape).any(axis=0), one.mask > 0)


def groups(path):
    content = hd.sr.srread(path).content
    return content.get_image_measurement_groups(), content.get_planar_roi_measurement_groups()


def test_the_report_says_what_results_csv_says(answers):
    files, one, _ = answers
    (film,), others = groups(files["sr"])
    numbers = {found.name.value: found.value for found in film.get_measurements()}
    assert numbers["P_TB"] == round(one.probabilities["TB"], 4)
    assert numbers["SCORE"] == pytest.approx(one.tb_score, abs=0.05)
    assert numbers["LUNG_AREA_RATIO"] == one.measures["lung_area_ratio"]
    words = {found.name.value: found.value.meaning for found in film.get_qualitative_evaluations()}
    assert words["LABEL"] in {"Tuberculosis", "Normal", "NTB"}
    lung = next(group for group in others if group.finding_type.value == "3341006")
    sizes = {(found.name.meaning, found.unit.value): found.value for found in lung.get_measurements()}
    assert sizes["Area", "{pixels}"] == one.measures["right_lung_px"]
    assert sizes["Area", "mm2"] == one.measures["right_lung_mm2"]
    assert lung.referenced_segmentation_frame[0].ReferencedSOPSequence[0].ReferencedSegmentNumber == 1
    assert (
        lung.referenced_segmentation_frame.referenced_sop_instance_uid == pydicom.dcmread(files["seg"]).SOPInstanceUID
    )


def test_the_report_draws_each_region_on_the_film_with_side_and_zone(answers):
    files, one, _ = answers
    assert one.regions
    _, others = groups(files["sr"])
    found = [group for group in others if group.finding_type.value == "REGION"]
    assert len(found) == len(one.regions)
    for group, region in zip(found, one.regions, strict=True):
        corners = group.roi.value
        x, y, w, h = region.box
        np.testing.assert_allclose([corners[:, 0].min(), corners[:, 1].min()], [x, y], atol=1e-3)
        np.testing.assert_allclose([corners[:, 0].max(), corners[:, 1].max()], [x + w, y + h], atol=1e-3)
        (site,) = group.finding_sites
        assert site.laterality.meaning.lower() == region.side
        assert site.topographical_modifier is None
        assert site.value.meaning == f"{region.zone.capitalize()} zone of lung"


def test_dcmtk_reads_the_same_report(answers):
    files, one, _ = answers
    said = output_of(tool("dsrdump"), "+Pl", files["sr"])
    assert "Research use only" in said
    assert f'"{round(one.probabilities["TB"], 4)}"' in said
    assert said.count("POLYLINE") == len(one.regions)
    assert 'Device Observer Model Name")="weights tb"' in said
    assert "UNVERIFIED" in said
    assert "PRELIMINARY" in said


def test_the_overlay_is_a_picture_that_refers_to_the_film(answers):
    from cxr_pipeline.results.drawing import layout, overlay

    files, one, _ = answers
    sc = pydicom.dcmread(files["sc"])
    np.testing.assert_array_equal(sc.pixel_array, overlay(one)[..., ::-1])
    assert sc.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert sc.SourceImageSequence[0].ReferencedSOPInstanceUID == HEADER["SOPInstanceUID"]
    height = layout(*one.mask.shape)[0]
    assert float(sc.PixelSpacing[0]) == pytest.approx(0.4 * one.mask.shape[0] / height)
    assert list(sc.PatientOrientation) == ["L", "F"]


def test_the_presentation_state_outlines_the_mask_and_the_regions(answers):
    import cv2

    files, one, _ = answers
    pr = pydicom.dcmread(files["pr"])
    lungs, boxes = pr.GraphicAnnotationSequence
    drawn = np.zeros(one.mask.shape, np.uint8)
    for item in lungs.GraphicObjectSequence:
        points = np.array(item.GraphicData).reshape(-1, 2)
        cv2.drawContours(drawn, [np.floor(points).astype(np.int32)], -1, 1, cv2.FILLED)
    np.testing.assert_array_equal(drawn, one.mask > 0)
    corners = np.array(boxes.GraphicObjectSequence[0].GraphicData).reshape(-1, 2)
    np.testing.assert_allclose(corners[0], one.regions[0].box[:2], atol=1e-3)
    assert list(pr.DisplayedAreaSelectionSequence[0].DisplayedAreaBottomRightHandCorner) == [96, 72]
    reference = pr.ReferencedSeriesSequence[0].ReferencedImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == HEADER["SOPInstanceUID"]


def test_dcmtk_shows_the_film_through_the_presentation_state(answers, tmp_path):
    files, _, _ = answers
    picture = tmp_path / "shown.pgm"
    said = output_of(tool("dcmp2pgm"), "-p", files["pr"], tmp_path / "film.dcm", picture)
    assert picture.is_file(), said
    assert picture.read_bytes().startswith(b"P5")


def test_monochrome1_is_shown_inverted(tmp_path):
    files, _, _ = judged(write(tmp_path / "film.dcm", PhotometricInterpretation="MONOCHROME1"))
    assert pydicom.dcmread(files["pr"]).PresentationLUTShape == "INVERSE"


def test_the_same_film_weights_and_version_give_the_same_bytes(tmp_path):
    path = write(tmp_path / "film.dcm")
    once, again = ({k: v.read_bytes() for k, v in judged(path)[0].items()} for _ in range(2))
    assert once == again


@pytest.mark.parametrize("changes", [{"version": "2"}, {"segment": "other"}])
def test_other_weights_or_another_version_give_other_uids(tmp_path, changes):
    path = write(tmp_path / "film.dcm")
    uids = [{str(pydicom.dcmread(f).SOPInstanceUID) for f in judged(path, **c)[0].values()} for c in ({}, changes)]
    assert len(uids[0]) == 4
    assert not uids[0] & uids[1]


def test_another_film_gives_other_uids(tmp_path):
    one, other = write(tmp_path / "a.dcm"), write(tmp_path / "b.dcm", SOPInstanceUID="1.2.3.4.4")
    uids = [{str(pydicom.dcmread(f).SOPInstanceUID) for f in judged(path)[0].values()} for path in (one, other)]
    assert not uids[0] & uids[1]


ODD = {
    "no spacing": {"ImagerPixelSpacing": None},
    "oblong pixels": {"ImagerPixelSpacing": ["0.8", "0.4"]},
    "no dates": {"StudyDate": None, "StudyTime": None},
    "wrong date": {"StudyDate": "2024-13-40", "StudyTime": "noon"},
    "wrong sex and age": {"PatientSex": "FEMALE", "PatientAge": "old"},
    "no type 2 elements": dict.fromkeys(["StudyID", "PatientBirthDate", "ReferringPhysicianName", "AccessionNumber"]),
    "no orientation": {"PatientOrientation": None},
    "turned": {"PatientOrientation": ["R", "F"]},
    "latin 1": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"},
    "japanese": {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
    "window of width 0": {"WindowCenter": "1000", "WindowWidth": "0"},
    "two windows": {"WindowCenter": ["1000", "900"], "WindowWidth": ["500", "600"]},
    "rescale": {"RescaleSlope": "2", "RescaleIntercept": "-1024", "RescaleType": "OD"},
    "no patient ID": {"PatientID": None},
    "secondary capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
    "digital": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX", "ImageLaterality": "U"},
    "lossy before": {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "10",
        "LossyImageCompressionMethod": "ISO_10918_1",
    },
    "with a place in space": {"FrameOfReferenceUID": "1.2.3.9", "PositionReferenceIndicator": ""},
}


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
def test_odd_headers_are_answered_and_conform(tmp_path, changes):
    files, one, warnings = judged(write(tmp_path / "film.dcm", **changes))
    assert set(files) == set(KINDS), warnings
    for path in files.values():
        assert_conforms(path)
    np.testing.assert_array_equal(
        hd.seg.segread(files["seg"]).get_pixels_by_source_instance([HEADER["SOPInstanceUID"]])[0].any(axis=-1),
        one.mask > 0,
    )


def test_names_in_any_script_arrive(tmp_path):
    files, _, _ = judged(write(tmp_path / "film.dcm", **ODD["japanese"]))
    for path in files.values():
        assert str(pydicom.dcmread(path).PatientName) == "Yamada^Tarou=山田^太郎"


def test_where_sides_are_not_sure_none_is_named(tmp_path):
    files, _, warnings = judged(write(tmp_path / "film.dcm", **ODD["turned"]))
    seg = hd.seg.segread(files["seg"])
    assert {seg.get_segment_description(n).segmented_property_type.meaning for n in seg.segment_numbers} == {"Lung"}
    _, others = groups(files["sr"])
    assert all(site.laterality is None for group in others for site in group.finding_sites)
    assert any("no side" in text for text in warnings)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"StudyInstanceUID": None}, "StudyInstanceUID (0020,000D)"),
        ({"SOPInstanceUID": None}, "SOPInstanceUID (0008,0018)"),
        ({"SeriesInstanceUID": "none"}, "SeriesInstanceUID (0020,000E)"),
        ({"PatientID": "x" * 70}, "PatientID (0010,0020)"),
        ({"PatientID": "A\\B"}, "PatientID (0010,0020)"),
    ],
)
def test_a_header_that_names_no_study_or_patient_costs_the_answer_and_not_the_film(tmp_path, changes, said):
    path = tmp_path / "film.dcm"
    made = dicom_films.dataset(**changes)
    pydicom.dcmwrite(path, made)
    files, one, (warning,) = judged(path)
    assert files == {}
    assert one.ok
    assert said in warning
    assert str(made.get("PatientID")) not in warning  # results.csv need not hold identifiers


def test_an_answer_that_cannot_be_made_costs_itself_alone_and_quotes_nobody(tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("Doe^Jane is no name")

    monkeypatch.setattr("cxr_pipeline.dicom.report.report", fails)
    files, _, (warning,) = judged(write(tmp_path / "film.dcm"))
    assert set(files) == {*KINDS} - {"sr"}
    assert "Structured Report" in warning
    assert "ValueError at" in warning
    assert "Doe" not in warning


def test_a_colour_film_has_no_grey_presentation_state(tmp_path):
    grey = np.frombuffer(dicom_films.dataset().PixelData, np.uint16) // 16
    changes = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "BitsAllocated": 8}
    changes |= {"BitsStored": 8, "HighBit": 7, "PixelData": np.repeat(grey.astype(np.uint8), 3).tobytes()}
    files, _, _ = judged(write(tmp_path / "film.dcm", **changes))
    assert set(files) == {"seg", "sr", "sc"}
    for path in files.values():
        assert_conforms(path)


def test_an_empty_mask_gives_no_segmentation_and_a_report_all_the_same(tmp_path):
    path = write(tmp_path / "film.dcm")
    one = judged_record(path)
    one.mask[:] = 0
    files, _, warnings = judged(path, one=one)
    assert "seg" not in files
    assert warnings == []
    assert_conforms(files["sr"])


def test_a_heart_is_a_segment_of_its_own(tmp_path):
    path = write(tmp_path / "film.dcm")
    one = judged_record(path)
    one.heart_mask = np.zeros_like(one.mask)
    one.heart_mask[30:60, 40:60] = 1  # over a part of a lung
    files, _, _ = judged(path, one=one)
    assert_conforms(files["seg"])
    seg = hd.seg.segread(files["seg"])
    assert seg.get_segment_description(3).segmented_property_type.meaning == "Heart"
    pixels = seg.get_pixels_by_source_instance([HEADER["SOPInstanceUID"]])[0]
    np.testing.assert_array_equal(pixels[..., 2], one.heart_mask)


@pytest.mark.parametrize("upto", ["segment", "classify"])
def test_a_shorter_chain_says_what_it_knows(tmp_path, upto):
    files, _, warnings = judged(write(tmp_path / "film.dcm"), upto=upto)
    assert set(files) == set(KINDS), warnings
    for path in files.values():
        assert_conforms(path)


def test_refused_films_get_no_answer(tmp_path):
    path = write(tmp_path / "film.dcm")
    assert judged(path, one=judged_record(path).refuse("no_lungs: none"))[0] == {}


def test_a_file_that_changed_since_it_was_judged_is_not_answered(tmp_path):
    path = write(tmp_path / "film.dcm")
    seen = JudgedFilm(judged_record(path), "a", str(path), "0" * 64, tmp_path, identity())
    assert DicomAnswers().files(seen) == {}
    assert "has changed" in seen.warnings[0]


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    from cxr_pipeline.cli.main import cli
    from cxr_pipeline.dicom import maker

    monkeypatch.setattr(maker, "_there", lambda name: False)
    done = CliRunner().invoke(cli, ["run", str(some_film()), "--out", str(tmp_path / "out"), "--outputs", "dicom"])
    assert isinstance(done.exception, maker.ExtraError)
    assert "cxr-pipeline[dicom]" in str(done.exception)


def test_an_unreadable_header_is_said():
    with pytest.raises(HeaderError, match="SeriesInstanceUID"):
        film_header(dicom_films.dataset(SeriesInstanceUID=None), (72, 96))


def test_all_leaves_out_what_must_be_named():
    from cxr_pipeline.results.outputs import chosen

    assert not {"dicom", "fhir"} & {one.name for one in chosen("all")}
    assert {"dicom", "fhir", "masks"} <= {one.name for one in chosen("all,dicom,fhir")}
    json.dumps([one.key for one in chosen("dicom")])
