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


@given(
    signed=st.booleans(),
    bits=st.sampled_from([10, 12, 16]),
    deep=st.sampled_from([8, 12, 16]),
    kind=st.sampled_from(["modality", "voi", "both"]),
    start=st.integers(0, 40),
    inverted=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_sound_table(tmp_path_factory, signed, bits, deep, kind, start, inverted):
    """Lookup tables that start within the film's values; below their first entry and past the last, those count."""
    low = -(1 << (bits - 1)) if signed else 0
    stored = np.round(FILM * ((1 << bits) - 1)).astype(np.int64) + low
    stored[0, :2] = low, low + (1 << bits) - 1
    top, share = (1 << deep) - 1, np.linspace(0, 1, (1 << bits) - start)
    bent = np.round(share**1.5 * top)
    place = np.clip(stored - (low + start), 0, len(bent) - 1)
    expected = bent[place]
    # Words of two bytes, also for entries of 8 bits. The first value mapped is unsigned in the header, as are its bits.
    first = table(bent, [len(bent) % (1 << 16), (low + start) % (1 << 16), deep])
    first["LUTDescriptor"].VR = "US"
    tags = {"PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2"}
    if kind == "voi":
        tags["VOILUTSequence"] = Sequence([first])
    else:
        tags["ModalityLUTSequence"] = Sequence([first])
    if kind == "both":
        dark = np.round(np.sqrt(np.linspace(0, 1, 1 << deep)) * 4095)
        tags["VOILUTSequence"] = Sequence([table(dark, [(1 << deep) % (1 << 16), 0, 12])])
        expected, top = dark[expected.astype(int)], 4095
    expected = expected / top
    film = read(dicom(tmp_path_factory.mktemp("d") / "a.dcm", stored.astype("i2" if signed else "u2"), bits, **tags))
    np.testing.assert_allclose(film.pixels, 1 - expected if inverted else expected, atol=2e-3)
    assert film.warnings == []


@given(
    bits=st.sampled_from([10, 12, 16]),
    slope=st.sampled_from([None, 1.0, 0.5, -2.0]),
    windowed=st.booleans(),
    padding=st.sampled_from([None, "value", "range", "range downwards"]),
    inverted=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_signed_film_and_its_padding(tmp_path_factory, bits, slope, windowed, padding, inverted):
    half = 1 << (bits - 1)
    stored = np.round(FILM * (2 * half - 1)).astype(np.int64) - half
    stored = np.maximum(stored, 20 - half)  # what is lower is padding
    stored[0, :3] = half - 1, 20 - half, half - 1
    tags = {"PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2"}
    if padding is not None:
        stored[:, -9:] = -half
        stored[:5, -9:] = -half + (0 if padding == "value" else 7)
        ends = (-half, -half + 7) if padding != "range downwards" else (-half + 7, -half)
        tags["PixelPaddingValue"] = ends[0] if padding != "value" else -half
        if padding != "value":
            tags["PixelPaddingRangeLimit"] = ends[1]
    low, high = -half, half - 1
    rescaled = stored.astype(float)
    if slope is not None:
        tags |= {"RescaleSlope": slope, "RescaleIntercept": 7}
        rescaled, low, high = rescaled * slope + 7, *sorted((low * slope + 7, high * slope + 7))
    expected = (rescaled - low) / (high - low)
    if windowed:
        centre, width = round((low + high) / 2), round((high - low) / 2)
        tags |= {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": "LINEAR_EXACT"}
        expected = np.clip((rescaled - centre) / width + 0.5, 0, 1)
    if inverted:
        expected = 1 - expected
    if padding is not None:
        expected[:, -9:] = 0
    film = read(dicom(tmp_path_factory.mktemp("d") / "a.dcm", stored.astype("i2"), bits, **tags))
    np.testing.assert_allclose(film.pixels, expected, atol=2e-3)
    assert film.warnings == []


@given(
    row=st.sampled_from(["L", "R", "A", "P", "H", "F", "LF", "RH", "AL", ""]),
    column=st.sampled_from(["F", "H", "L", "R", "A", "FA", "HP", ""]),
    spacing=st.sampled_from([None, "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"]),
    high=st.integers(1, 40),
    wide=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_any_orientation_and_shape_of_pixels(tmp_path_factory, row, column, spacing, high, wide):
    tags = {"PatientOrientation": [row, column] if row and column else ""}
    if spacing is not None:
        tags[spacing] = [high, wide] if spacing == "PixelAspectRatio" else [high / 100, wide / 100]
    film = read(dicom(tmp_path_factory.mktemp("d") / "a.dcm", TWELVE, **tags))
    np.testing.assert_allclose(film.pixels, TWELVE / 4095, atol=1e-4)  # neither changes a pixel of the film itself
    ratio = high / wide if spacing is not None else 1.0
    if not 0.25 <= ratio <= 4:
        assert film.aspect == 1.0  # what cannot be is not believed, and named
    elif abs(ratio - 1) > 0.05:
        assert film.aspect == pytest.approx(ratio)
    if film.aspect != 1 or abs(ratio - 1) > 0.05:
        assert any(spacing.removeprefix("Imager") in warning for warning in film.warnings)
    known = bool(row and column)
    from_the_side = known and row[0] in "AP" and column[0] in "FH"
    upright = known and row[0] == "L" and column[0] == "F"
    assert bool(film.meta.get("lateral")) == from_the_side
    turned = any("PatientOrientation" in warning for warning in film.warnings)
    assert turned == (known and not from_the_side and not upright)


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
        ({"AcquisitionDeviceProcessingDescription": "CHEST LATERAL"}, True),
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


@pytest.mark.parametrize(
    "part", ["CHEST/ABDOMEN", "CHEST ABDOMEN", "Thorax", "ABDOMEN_CHEST", "PULMON", "TÓRAX/ABDOMEN"]
)
def test_parts_that_show_the_chest_too(tmp_path, part):
    assert read(dicom(tmp_path / "a.dcm", TWELVE, BodyPartExamined=part)).size == TWELVE.shape
