"""DICOM: the order of the transforms, every transfer syntax, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from cxr_pipeline.data.radiograph import RadiographError, read
from cxr_pipeline.data.synthetic import make_film

FILM = make_film(11, size=(72, 90)).pixels


def dicom(path: Path, values: np.ndarray, bits: int = 12, **tags) -> Path:
    """A CR film with the stored values given."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, generate_uid()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    film = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    film.SOPClassUID, film.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    film.Modality, film.PhotometricInterpretation, film.SamplesPerPixel = "CR", "MONOCHROME2", 1
    film.Rows, film.Columns = values.shape[:2]
    film.BitsAllocated = 8 if bits <= 8 else 16
    film.BitsStored, film.HighBit, film.PixelRepresentation = bits, bits - 1, int(values.dtype.kind == "i")
    film.PixelData = values.astype(("i" if values.dtype.kind == "i" else "u") + str(film.BitsAllocated // 8)).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(film, name)
        else:
            setattr(film, name, value)
    film.save_as(path, enforce_file_format=True)
    return path


@given(bits=st.sampled_from([8, 10, 12, 16]), inverted=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_depth_and_monochrome1(tmp_path_factory, bits, inverted, seed):
    top = (1 << bits) - 1
    values = np.random.default_rng(seed).integers(0, top + 1, (40, 50)).astype(np.uint16)
    tags = {"PhotometricInterpretation": "MONOCHROME1"} if inverted else {}
    film = read(dicom(tmp_path_factory.mktemp("d") / "a.dcm", values, bits, **tags))
    expected = values / top
    np.testing.assert_allclose(film.pixels, 1 - expected if inverted else expected, atol=1 / top)
    assert film.bits == bits


def test_window_is_applied_to_rescaled_values_and_inverted_last(tmp_path):
    values = np.round(FILM * 4095).astype(np.uint16)
    # Rescaled to -1000 .. 3095; the window keeps 0 .. 2000 of it.
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1000, "WindowCenter": [1000, 5], "WindowWidth": [2001, 9]}
    film = read(dicom(tmp_path / "a.dcm", values, **tags))
    expected = np.clip((values - 1000.0) / 2000, 0, 1)
    np.testing.assert_allclose(film.pixels, expected, atol=2e-3)
    tags |= {"PhotometricInterpretation": "MONOCHROME1"}
    np.testing.assert_allclose(read(dicom(tmp_path / "b.dcm", values, **tags)).pixels, 1 - expected, atol=2e-3)


def test_voi_lut_sequence(tmp_path):
    values = np.round(FILM * 255).astype(np.uint16)
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (np.arange(256) ** 2).astype("<u2").tobytes()
    film = read(dicom(tmp_path / "a.dcm", values, 8, VOILUTSequence=Sequence([table])))
    np.testing.assert_allclose(film.pixels, np.minimum(values.astype(float) ** 2, 65535) / 65535, atol=1e-4)


def test_modality_lut_sequence_comes_before_the_window(tmp_path):
    values = np.round(FILM * 255).astype(np.uint16)
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [256, 0, 16], "US"
    table.LUTData = (255 - np.arange(256)).astype("<u2").tobytes()
    window = {"WindowCenter": 128, "WindowWidth": 256}
    film = read(dicom(tmp_path / "a.dcm", values, 8, ModalityLUTSequence=Sequence([table]), **window))
    low, high = film.pixels[values == values.max()], film.pixels[values == values.min()]
    assert low.max() < high.min()  # the table turns grey levels round


def test_signed_values(tmp_path):
    values = np.round((FILM - 0.5) * 4000).astype(np.int16)
    film = read(dicom(tmp_path / "a.dcm", values, 12))
    np.testing.assert_allclose(film.pixels, (values + 2048) / 4095, atol=1e-3)


def test_padding_is_black(tmp_path):
    values = np.round(FILM * 3000).astype(np.uint16)
    values[:10] = 4095
    film = read(dicom(tmp_path / "a.dcm", values, PixelPaddingValue=4095))
    assert film.pixels[:10].max() == 0


def test_what_the_file_says_of_the_film(tmp_path):
    values = np.round(FILM * 4095).astype(np.uint16)
    tags = {"ImagerPixelSpacing": [0.2, 0.3], "PatientAge": "045Y", "ViewPosition": "PA", "BodyPartExamined": "CHEST"}
    film = read(dicom(tmp_path / "a.dcm", values, **tags))
    assert film.spacing == (0.2, 0.3)
    assert film.format == "dicom"
    assert (film.meta["age_years"], film.meta["view"], film.meta["modality"]) == (45, "PA", "CR")


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_lossless_transfer_syntaxes(tmp_path, syntax):
    values = np.round(FILM * 4095).astype(np.uint16)
    path = dicom(tmp_path / "a.dcm", values)
    film = pydicom.dcmread(path)
    try:
        film.compress(syntax)
    except Exception as error:  # an encoder that is not installed
        pytest.skip(f"cannot make such a file: {error}")
    film.save_as(path)
    np.testing.assert_allclose(read(path).pixels, values / 4095, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape"),
    [  # bundled with pydicom; what OpenCV cannot do and pylibjpeg can
        ("JPEG2000.dcm", None),
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100)),
        ("SC_rgb_rle_16bit.dcm", (100, 100)),
    ],
)
def test_compressed_files_of_pydicom(name, shape):
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} is not on this machine")
    try:
        film = read(path)
    except RadiographError as error:
        assert error.refused  # another modality, told from the header
    else:
        assert film.size == shape


@pytest.mark.parametrize(
    ("tags", "code", "refused"),
    [
        ({"Modality": "CT"}, "not_a_radiograph", True),
        ({"BodyPartExamined": "HAND"}, "not_a_chest", True),
        ({"BodyPartExamined": "LSPINE"}, "not_a_chest", True),
        ({"NumberOfFrames": 2, "PixelData": bytes(2 * 2 * FILM.size)}, "multi_frame", True),
        ({"PixelData": None}, "no_pixels", False),
        ({"Rows": None}, "damaged", False),
        ({"Rows": 60000, "Columns": 60000}, "too_large", False),
        ({"PixelData": b"\0" * 100}, "damaged", False),  # cut off
    ],
)
def test_what_is_no_film_is_named(tmp_path, tags, code, refused):
    path = dicom(tmp_path / "a.dcm", np.round(FILM * 4095).astype(np.uint16), **tags)
    with pytest.raises(RadiographError, match=r"^a\.dcm: ") as caught:
        read(path)
    assert (caught.value.code, caught.value.refused) == (code, refused)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_cut_off_dicom_is_noticed(tmp_path, share):
    path = dicom(tmp_path / "a.dcm", np.round(FILM * 4095).astype(np.uint16))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(RadiographError):
        read(path)


def test_every_odd_file_of_pydicom_is_read_or_named(capfd):
    folder = Path(pydicom.__file__).parent / "data"
    seen = 0
    for base, _, names in os.walk(folder):
        for name in names:
            if name.endswith((".py", ".pyc")):
                continue
            seen += 1
            try:
                film = read(Path(base) / name)
            except RadiographError:
                continue
            assert film.pixels.min() >= 0
            assert film.pixels.max() <= 1
    assert seen > 50
    assert capfd.readouterr().err == ""


@pytest.mark.real
def test_real_dicom_files(real_data):
    chest = read(real_data / "dicom" / "chest_mono2_jpeg.dcm")
    assert chest.size == (1024, 1024)
    height, width = chest.size
    # Lungs are dark and the middle is bright: neither inverted nor left raw.
    assert chest.pixels[height // 3 : height // 2, width // 4].mean() < chest.pixels[height // 2, width // 2]
    with pytest.raises(RadiographError, match="EXTREMITY") as caught:
        read(real_data / "dicom" / "extremity_j2k.dcm")
    assert caught.value.refused
