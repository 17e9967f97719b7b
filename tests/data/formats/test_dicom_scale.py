"""The grey scale of DICOM: any sound header against a computation of the test's own, and each contradiction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from cxr_pipeline.data.radiograph import read
from cxr_pipeline.data.synthetic import make_film
from tests.data.test_dicom import dicom

FILM = make_film(11, size=(72, 90)).pixels
TWELVE = np.round(FILM * 4095).astype(np.uint16)
TWELVE[0, :2] = 0, 4095


def table(entries, descriptor) -> Dataset:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = descriptor, np.asarray(entries).astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return item


@given(
    bits=st.sampled_from([8, 10, 12, 16]),
    slope=st.sampled_from([None, 1.0, 0.5, 2.0, -1.0, -3.0]),
    intercept=st.integers(-2000, 2000),
    window=st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    inverted=st.booleans(),
    padded=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_sound_header(tmp_path_factory, bits, slope, intercept, window, inverted, padded):
    top = (1 << bits) - 1
    stored = np.round(FILM * top).astype(np.uint16)
    stored[0, :2] = 0, top
    tags = {"PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2"}
    rescaled = stored.astype(float)
    if slope is not None:
        tags |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
        rescaled = rescaled * slope + intercept
    low, high = rescaled.min(), rescaled.max()
    expected = (rescaled - low) / (high - low)
    if window is not None:
        centre, width = round((low + high) / 2), round((high - low) / 2)
        tags |= {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": window}
        shift = {"LINEAR": (0.5, 1), "LINEAR_EXACT": (0, 0), "SIGMOID": (0, 0)}[window]
        away = (rescaled - centre + shift[0]) / (width - shift[1])
        expected = 1 / (1 + np.exp(-4 * away)) if window == "SIGMOID" else np.clip(away + 0.5, 0, 1)
    if inverted:
        expected = 1 - expected
    if padded:
        tags |= {"PixelPaddingValue": 0}
        expected[stored == 0] = 0
    film = read(dicom(tmp_path_factory.mktemp("d") / "a.dcm", stored, bits, **tags))
    np.testing.assert_allclose(film.pixels, expected, atol=2e-3)
    assert film.warnings == []


ALONE = {"RescaleIntercept": -1024}
CONTRADICTIONS = [
    (TWELVE, ALONE, "RescaleIntercept"),
    (TWELVE, {"RescaleIntercept": -9000, "WindowCenter": -6952, "WindowWidth": 4096}, "RescaleIntercept"),
    (TWELVE, {"RescaleSlope": None or "", "RescaleIntercept": ""}, None),
    (TWELVE, {"WindowCenter": 0, "WindowWidth": 0}, "WindowWidth"),
    (TWELVE, {"WindowCenter": 2048, "WindowWidth": -5}, "WindowWidth"),
    (TWELVE, {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": ""}, None),
    (TWELVE, {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "CURVE"}, "VOILUTFunction"),
    (TWELVE, {"WindowCenter": 90000, "WindowWidth": 10}, "WindowCenter"),
    (TWELVE, {"VOILUTSequence": Sequence([table(np.arange(4096) // 4, [4096, 0, 16])])}, "LUTDescriptor"),
    (TWELVE, {"VOILUTSequence": Sequence([table(np.arange(4096) // 16, [4096, 0, 16])])}, "LUTDescriptor"),
    (TWELVE, {"VOILUTSequence": Sequence([table(np.arange(4096) // 16, [4096, 0, 8])])}, None),
    (TWELVE, {"VOILUTSequence": Sequence([Dataset()])}, "VOILUTSequence"),
    (
        TWELVE,
        {"ModalityLUTSequence": Sequence([table(np.arange(4096) * 16, [4096, 0, 16])]), "RescaleSlope": 100},
        "RescaleSlope",
    ),
    (TWELVE << 4, {"HighBit": 15, "BitsStored": 12}, None),
    (TWELVE, {"HighBit": 15, "BitsStored": 12}, "HighBit"),
    (TWELVE, {"BitsStored": 16, "HighBit": 15}, "BitsStored"),
    (TWELVE, {"BitsStored": 10, "HighBit": 9}, "BitsStored"),
    (TWELVE, {"PixelRepresentation": 1}, "PixelRepresentation"),
    (TWELVE, {"PhotometricInterpretation": None}, "PhotometricInterpretation"),
]


@pytest.mark.parametrize(("stored", "tags", "named"), CONTRADICTIONS)
def test_contradictions_give_the_same_film_and_name_the_tag(tmp_path, stored, tags, named):
    film = read(dicom(tmp_path / "a.dcm", stored.astype(np.uint16), 12, **tags))
    np.testing.assert_allclose(film.pixels, TWELVE / 4095, atol=6e-3)
    if named is None:
        assert film.warnings == []
    else:
        assert any(named in warning for warning in film.warnings), film.warnings


def test_a_range_of_padding_is_black(tmp_path):
    stored = TWELVE.copy() // 2
    stored[:, :9] = 4050
    film = read(dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=4095, PixelPaddingRangeLimit=4000))
    assert film.pixels[:, :9].max() == 0
    np.testing.assert_allclose(film.pixels[:, 9:], stored[:, 9:] / 4095, atol=1e-3)


@pytest.mark.parametrize(
    "tags", [{"PixelSpacing": [0.4, 0.2]}, {"ImagerPixelSpacing": [0.4, 0.2]}, {"PixelAspectRatio": [2, 1]}]
)
def test_squeezed_films_say_so(tmp_path, tags):
    film = read(dicom(tmp_path / "a.dcm", TWELVE[::2].copy(), **tags))
    assert film.aspect == 2
    assert next(iter(tags)).removeprefix("Imager") in film.warnings[0]


@pytest.mark.parametrize(
    ("tags", "lateral"),
    [
        ({"PatientOrientation": ["A", "F"]}, True),
        ({"PatientOrientation": ["L", "F"]}, False),
        ({"SeriesDescription": "Thorax LAT"}, True),
        ({"SeriesDescription": "Chest PA and lateral"}, False),
        ({"ViewPosition": "LL"}, True),
        ({"ViewPosition": "PA", "SeriesDescription": "LAT"}, False),
    ],
)
def test_views_from_the_side(tmp_path, tags, lateral):
    assert bool(read(dicom(tmp_path / "a.dcm", TWELVE, **tags)).meta.get("lateral")) == lateral


@pytest.mark.parametrize(
    ("tags", "age"),
    [
        ({"PatientBirthDate": "20150101", "StudyDate": "20200101"}, 5),
        ({"PatientBirthDate": "20150101"}, None),
        ({"PatientBirthDate": "18000101", "StudyDate": "20200101"}, None),
        ({"PatientAge": "006M"}, 0.5),
    ],
)
def test_age(tmp_path, tags, age):
    found = read(dicom(tmp_path / "a.dcm", TWELVE, **tags)).meta.get("age_years")
    assert found == (pytest.approx(age, abs=0.02) if age else None)


@pytest.mark.parametrize("part", ["CHEST/ABDOMEN", "CHEST ABDOMEN", "Thorax", "ABDOMEN_CHEST", "PULMON"])
def test_parts_that_show_the_chest_too(tmp_path, part):
    assert read(dicom(tmp_path / "a.dcm", TWELVE, BodyPartExamined=part)).size == TWELVE.shape
