"""Headers and encodings of DICOM that archives really write: each gives the film, or is named."""

from __future__ import annotations

import struct
import zlib

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from cxr_pipeline.data.formats.dicom_file import _file_header
from cxr_pipeline.data.radiograph import RadiographError, read
from cxr_pipeline.data.synthetic import make_film
from tests.data.test_dicom import dicom

FILM = make_film(11, size=(96, 112)).pixels
V = np.round((0.2 + 0.8 * FILM) * 4095).astype(np.uint16)  # no film is black over most of it
V[0, :2] = 0, 4095
PLAIN = V / 4095
V8 = np.round(PLAIN * 255).astype(np.uint8)
SIGNED = (V.astype(np.int32) - 2048).astype(np.int16)
A = np.arange(4096)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
EIGHT = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
NEVER = {"RescaleSlope": 1, "RescaleIntercept": 0}


def lut(entries, descriptor, **more):
    item = Dataset()
    if descriptor is not None:
        item.LUTDescriptor = descriptor
    if entries is not None:
        item.LUTData = entries if isinstance(entries, bytes) else np.asarray(entries).astype("<u2").tobytes()
        item["LUTData"].VR = "OW"
    for name, value in more.items():
        setattr(item, name, value)
    return Sequence([item])


def bits(stored, high=None):
    return {"BitsStored": stored, "HighBit": stored - 1 if high is None else high}


def groups():
    macros = Dataset()
    for macro, tags in {
        "PixelValueTransformationSequence": {"RescaleSlope": -1, "RescaleIntercept": 4095},
        "FrameVOILUTSequence": WINDOW,
    }.items():
        one = Dataset()
        for name, value in tags.items():
            setattr(one, name, value)
        setattr(macros, macro, Sequence([one]))
    return Sequence([macros])


# name: stored values, tags beyond the plain film's. All of them are the same film.
HEADERS = {
    "slope without intercept": (V, {"RescaleSlope": 2}),
    "slope 0": (V, {"RescaleSlope": 0, "RescaleIntercept": 0, **WINDOW}),
    "two slopes": (V, {"RescaleSlope": [1, 2], "RescaleIntercept": [0, 5], **WINDOW}),
    "tiny slope": (V, {"RescaleSlope": 0.001, "RescaleIntercept": 0}),
    "window of the stored values beside a slope": (V, {"RescaleSlope": 0.001, "RescaleIntercept": 0, **WINDOW}),
    "negative slope": (4095 - V, {"RescaleSlope": -1, "RescaleIntercept": 4095}),
    "negative slope with window": (4095 - V, {"RescaleSlope": -1, "RescaleIntercept": 4095, **WINDOW}),
    "negative slope, negative window": (
        4095 - V,
        {"RescaleSlope": -1, "RescaleIntercept": 0, "WindowCenter": -2048, "WindowWidth": 4096},
    ),
    "negative slope, window of the stored values": (
        4095 - V,
        {"RescaleSlope": -1, "RescaleIntercept": 0, **WINDOW},
    ),
    "MONOCHROME1 and negative slope": (
        V,
        {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": -1, "RescaleIntercept": 4095, **WINDOW},
    ),
    "MONOCHROME1 with VOI LUT": (
        4095 - V,
        {"PhotometricInterpretation": "MONOCHROME1", "VOILUTSequence": lut(A * 16, [4096, 0, 16])},
    ),
    "Modality LUT beside a slope": (
        V,
        {"ModalityLUTSequence": lut(A * 16, [4096, 0, 16]), "RescaleSlope": 0.01, "RescaleIntercept": 0},
    ),
    "Modality LUT of 10 bits that says 16": (V, {"ModalityLUTSequence": lut(A // 4, [4096, 0, 16])}),
    "Modality LUT of bytes in words": (V, {"ModalityLUTSequence": lut(A // 16, [4096, 0, 8])}),
    "Modality LUT shorter than it says": (V, {"ModalityLUTSequence": lut(A * 16, [5000, 0, 16])}),
    "Modality LUT half as long as it says": (V, {"ModalityLUTSequence": lut(A * 16, [8192, 0, 16])}),
    "Modality LUT that inverts": (4095 - V, {"ModalityLUTSequence": lut((4095 - A) * 16, [4096, 0, 16])}),
    "Modality LUT without data": (V, {"ModalityLUTSequence": lut(None, [4096, 0, 16])}),
    "Modality LUT without descriptor": (V, {"ModalityLUTSequence": lut(A * 16, None)}),
    "Modality LUT of no item": (V, {"ModalityLUTSequence": Sequence([])}),
    "Modality LUT, window of the stored values": (V, {"ModalityLUTSequence": lut(A * 16, [4096, 0, 16]), **WINDOW}),
    "both LUTs": (
        V,
        {
            "ModalityLUTSequence": lut(A * 16, [4096, 0, 16]),
            "VOILUTSequence": lut(np.arange(65536), [0, 0, 16]),
        },
    ),
    "VOI LUT of bytes": (V, {"VOILUTSequence": lut((A // 16).astype(np.uint8).tobytes(), [4096, 0, 8])}),
    "VOI LUT of bytes in words": (V, {"VOILUTSequence": lut(A // 16, [4096, 0, 8])}),
    "VOI LUT of 12 bits that says 16": (V, {"VOILUTSequence": lut(A, [4096, 0, 16])}),
    "VOI LUT of 16 bits that says 8": (V, {"VOILUTSequence": lut(A * 16, [4096, 0, 8])}),
    "VOI LUT of 14 bits": (V, {"VOILUTSequence": lut(A * 4, [4096, 0, 14])}),
    "VOI LUT of signed values": (SIGNED, {"VOILUTSequence": lut(A * 16, [4096, -2048, 16])}),
    "VOI LUT of one grey level": (V, {"VOILUTSequence": lut(A * 0 + 500, [4096, 0, 16]), **WINDOW}),
    "VOI LUT without descriptor": (V, {"VOILUTSequence": lut(A * 16, None), **WINDOW}),
    "two VOI LUTs": (
        V,
        {
            "VOILUTSequence": Sequence(
                [*lut(A * 16, [4096, 0, 16]), *lut(np.minimum(A * 64, 65535), [4096, 0, 16], LUTExplanation="HARD")]
            )
        },
    ),
    "several windows, the first of no width": (V, {"WindowCenter": [0, 2048], "WindowWidth": [0, 4096]}),
    "window without width": (V, {"WindowCenter": 2048}),
    "window far from the film": (V, {"WindowCenter": 60000, "WindowWidth": 100}),
    "window of another depth": (V, {"WindowCenter": 32768, "WindowWidth": 65536}),
    "window of 8 bits": (V, {"WindowCenter": 128, "WindowWidth": 256}),
    "window of 12 bits over 8": (V8.astype(np.uint16), {**EIGHT, **WINDOW, "PixelData": V8.tobytes()}),
    "window of width 1": (V, {"WindowCenter": 2048, "WindowWidth": 1}),
    "function in small letters": (V, {**WINDOW, "VOILUTFunction": "linear"}),
    "BitsStored 14": (V, bits(14)),
    "BitsStored 8, more in the data": (V, bits(8)),
    "left aligned in 16 bits": (V << 4, bits(16)),
    "HighBit 11 of 16": (V, bits(16, 11)),
    "no HighBit": (V, {"HighBit": None}),
    "no BitsStored": (V, {"BitsStored": None}),
    "8 bits in 16": (V // 16, bits(8)),
    "signed": (SIGNED, {}),
    "signed without its sign bits": ((SIGNED & 0xFFF).astype(np.uint16), {"PixelRepresentation": 1}),
    "signed called unsigned": (SIGNED, {**bits(16), "PixelRepresentation": 0}),
    "unsigned called signed": ((V.astype(np.uint32) * 16).astype(np.uint16), {**bits(16), "PixelRepresentation": 1}),
    "padding over all of it": (V, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}),
    "three samples of one": (V, {"SamplesPerPixel": 3}),
    "no SamplesPerPixel": (V, {"SamplesPerPixel": None}),
    "RGB of one sample": (V, {"PhotometricInterpretation": "RGB"}),
    "photometric in small letters": (V, {"PhotometricInterpretation": "monochrome2"}),
    "NumberOfFrames 0": (V, {"NumberOfFrames": 0}),
    "more pixel data than it needs": (V, {"PixelData": V.tobytes() + bytes(5000)}),
    "pixels of 32 bits": (V, {"BitsAllocated": 32, **bits(32), "PixelData": V.astype("<u4").tobytes()}),
    "frames of which there is one": (V, {"NumberOfFrames": 3}),
    "VOI LUT of bytes that says 16": (V, {"VOILUTSequence": lut((A // 16).astype(np.uint8).tobytes(), [4096, 0, 16])}),
    "intercept alone, window of the shifted values": (
        V,
        {"RescaleIntercept": -1024, "WindowCenter": 1024, "WindowWidth": 4096},
    ),
    "intercept alone, window of the stored values": (V, {"RescaleIntercept": -1024, **WINDOW}),
    "intercept alone, VOI LUT of the stored values": (
        V,
        {"RescaleIntercept": -1024, "VOILUTSequence": lut(A * 16, [4096, 0, 16])},
    ),
    "functional groups of one frame": (4095 - V, {"NumberOfFrames": 1, "SharedFunctionalGroupsSequence": groups()}),
    "spacing of 0": (V, {"PixelSpacing": [0, 0]}),
    "spacing that cannot be": (V, {"PixelSpacing": [1, 100]}),
    "12 bits packed": (
        V,
        {
            "BitsAllocated": 12,
            "PixelData": np.packbits((V.ravel()[:, None] >> np.arange(12)) & 1, bitorder="little").tobytes(),
        },
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers_give_the_film(tmp_path, name):
    values, tags = HEADERS[name]
    film = read(dicom(tmp_path / "a.dcm", values, **tags))
    np.testing.assert_allclose(film.pixels, PLAIN, atol=0.012)


@pytest.mark.parametrize(
    ("shift", "high", "padding"), [(0, 11, 65535), (4, 15, 65520)], ids=["beyond the bits stored", "left aligned"]
)
def test_padding_that_is_given_for_the_whole_word_is_black(tmp_path, shift, high, padding):
    values = V << shift
    values[:, :9] = padding
    film = read(dicom(tmp_path / "a.dcm", values, HighBit=high, PixelPaddingValue=padding))
    assert (film.pixels[:, :9] == 0).all()
    np.testing.assert_allclose(film.pixels[:, 9:], np.where(V == 4095, 0, PLAIN)[:, 9:], atol=0.012)


def test_a_film_whose_padding_says_more_than_the_bits_keeps_its_white(tmp_path):
    film = read(dicom(tmp_path / "a.dcm", V, PixelPaddingValue=65535))
    np.testing.assert_allclose(film.pixels, PLAIN, atol=0.012)


TEXTS = {  # elements as the bytes of another value representation, or of none that can be read
    "window with a comma": ("WindowCenter", "DS", b"2048,0"),
    "slope in letters": ("RescaleSlope", "DS", b"one "),
    "width in letters": ("WindowWidth", "DS", b"wide"),
    "birth date of another order": ("PatientBirthDate", "DA", b"01/02/2015"),
    "one spacing": ("PixelSpacing", "DS", b"0.2 "),
    "BitsStored as text": ("BitsStored", "IS", b"12"),
    "rows as text": ("Rows", "IS", b"96"),
    "modality in small letters": ("Modality", "CS", b"dx"),
    "photometric with a blank": ("PhotometricInterpretation", "CS", b" MONOCHROME2"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_values_that_are_no_values_give_the_film(tmp_path, name):
    keyword, vr, value = TEXTS[name]
    path = dicom(tmp_path / "a.dcm", V, **WINDOW, **NEVER)
    film = pydicom.dcmread(path)
    tag = Tag(pydicom.datadict.tag_for_keyword(keyword))
    film[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    film.save_as(path)
    np.testing.assert_allclose(read(path).pixels, PLAIN, atol=0.002)


def encodings():
    """The plain film in every encoding and cut, as pairs of a name and its bytes."""
    from io import BytesIO

    def of(syntax, **how):
        film = pydicom.dcmread(BytesIO(plain))
        film.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            film.PixelData = V.byteswap().tobytes()
        out = BytesIO()
        pydicom.dcmwrite(out, film, force_encoding=True, **how)
        return out.getvalue()

    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        plain = dicom(Path(folder, "a.dcm"), V).read_bytes()
    implicit = of(ImplicitVRLittleEndian, implicit_vr=True, little_endian=True)
    big = of(ExplicitVRBigEndian, implicit_vr=False, little_endian=False)
    private = of(UID("1.2.3.4.5"), implicit_vr=False, little_endian=True)
    end, end_implicit = _file_header(plain)[1], _file_header(implicit)[1]
    deflated = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflated.compress(plain[end:]) + deflated.flush()
    name = ExplicitVRLittleEndian.encode()
    head = plain[:end].replace(name + b"\0", b"1.2.840.10008.1.2.1.99", 1)
    at = plain.index(name) - 2  # the length of the transfer syntax grows
    head = head[:at] + struct.pack("<H", 22) + head[at + 2 :]
    return {
        "implicit": implicit,
        "big endian": big,
        "private transfer syntax": private,
        "deflated": head + body,
        "bare, explicit": plain[end:],
        "bare, implicit": implicit[end_implicit:],
        "without preamble": plain[128:],
        "file header without mark": plain[132:],
        "preamble of a TIFF": b"II*\0" + bytes(124) + plain[128:],
        "explicit that is implicit": plain[:end] + implicit[end_implicit:],
        "implicit that is explicit": implicit[:end_implicit] + plain[end:],
        "zeros after the end": plain + bytes(512),
        "junk after the end": plain + b"JUNK" * 50,
    }


ENCODINGS = encodings()


@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("name", ENCODINGS)
def test_odd_encodings_give_the_film_with_or_without_ending(tmp_path, name, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(ENCODINGS[name])
    np.testing.assert_allclose(read(path).pixels, PLAIN, atol=0.002)


def j2k(values, depth):
    return imagecodecs.jpeg2k_encode(values, level=0, bitspersample=depth, codecformat="j2k")


def lossless(values, depth):
    return imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=depth)


def halves(stream):
    middle = len(stream) // 4 * 2  # pieces have even lengths
    return [stream[:middle], stream[middle:]]


# name: fragments, transfer syntax, tags
STREAMS = {
    "JPEG 2000, header of 16 bits": ([j2k(V, 12)], JPEG2000Lossless, bits(16)),
    "JPEG 2000 of 16 bits, header of 12": ([j2k(V, 16)], JPEG2000Lossless, {}),
    "JPEG 2000 of 10 bits, header of 12": ([j2k(V // 4, 10)], JPEG2000Lossless, {}),
    "JPEG 2000 of 8 bits, header of 12": ([j2k(V8, 8)], JPEG2000Lossless, {}),
    "JPEG 2000 with another number of rows": ([j2k(V, 12)], JPEG2000Lossless, {"Rows": 90}),
    "JPEG 2000, signed": ([j2k(SIGNED, 12)], JPEG2000Lossless, {"PixelRepresentation": 1}),
    "JPEG 2000, signed and not said": ([j2k(SIGNED, 12)], JPEG2000Lossless, {}),
    "JP2 container": ([imagecodecs.jpeg2k_encode(V, level=0, bitspersample=12)], JPEG2000Lossless, {}),
    "JPEG 2000 called JPEG": ([j2k(V, 12)], JPEGLosslessSV1, {}),
    "JPEG 2000 called uncompressed": ([j2k(V, 12)], ExplicitVRLittleEndian, {}),
    "JPEG-LS called JPEG 2000": ([imagecodecs.jpegls_encode(V)], JPEG2000Lossless, {}),
    "JPEG-LS, header of 16 bits": ([imagecodecs.jpegls_encode(V)], JPEGLSLossless, bits(16)),
    "JPEG-LS in two pieces": (halves(imagecodecs.jpegls_encode(V)), JPEGLSLossless, {}),
    "JPEG-LS, near lossless": ([imagecodecs.jpegls_encode(V, level=2)], JPEGLSNearLossless, {}),
    "lossless JPEG": ([lossless(V, 12)], JPEGLosslessSV1, {}),
    "lossless JPEG of 16 bits": ([lossless(V, 16)], JPEGLosslessSV1, bits(16)),
    "lossless JPEG in pieces": (halves(lossless(V, 12)), JPEGLosslessSV1, {}),
    "JPEG of 12 bits": ([imagecodecs.jpeg8_encode(V, level=98, bitspersample=12)], JPEGExtended12Bit, {}),
    "JPEG": ([imagecodecs.jpeg8_encode(V8, level=98)], JPEGBaseline8Bit, EIGHT),
    "JPEG, header of 12 bits": ([imagecodecs.jpeg8_encode(V8, level=98)], JPEGBaseline8Bit, {}),
    "JPEG and zeros": ([imagecodecs.jpeg8_encode(V8, level=98) + bytes(200)], JPEGBaseline8Bit, EIGHT),
    "JPEG called lossless": ([imagecodecs.jpeg8_encode(V8, level=98)], JPEGLosslessSV1, EIGHT),
}


def compressed(path, fragments, syntax, tags, end=True):
    film = pydicom.dcmread(dicom(path, V, **tags))
    film.file_meta.TransferSyntaxUID = syntax
    items = [b"", *(one + bytes(len(one) % 2) for one in fragments)]
    film.PixelData = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(one)) + one for one in items)
    film["PixelData"].is_undefined_length, film["PixelData"].VR = True, "OB"
    pydicom.dcmwrite(path, film, implicit_vr=False, little_endian=True, force_encoding=True)
    if not end:
        path.write_bytes(path.read_bytes()[:-8])
    return path


@pytest.mark.parametrize("name", STREAMS)
def test_odd_streams_give_the_film(tmp_path, name):
    film = read(compressed(tmp_path / "a.dcm", *STREAMS[name]))
    np.testing.assert_allclose(film.pixels, PLAIN, atol=0.02)


def test_pixels_without_their_end_mark(tmp_path):
    film = read(compressed(tmp_path / "a.dcm", [j2k(V, 12)], JPEG2000Lossless, {}, end=False))
    np.testing.assert_allclose(film.pixels, PLAIN, atol=0.002)
    assert "sequence delimiter" in film.warnings[0]


@pytest.mark.parametrize(
    ("stream", "syntax"),
    [
        (j2k(V, 12), JPEG2000Lossless),
        (imagecodecs.jpegls_encode(V), JPEGLSLossless),
        (lossless(V, 12), JPEGLosslessSV1),
        (imagecodecs.jpeg8_encode(V8, level=98), JPEGBaseline8Bit),
    ],
)
def test_a_stream_cut_in_half_is_named(tmp_path, stream, syntax):
    with pytest.raises(RadiographError) as caught:
        read(compressed(tmp_path / "a.dcm", [stream[: len(stream) // 2]], syntax, {}))
    assert caught.value.code == "damaged"


def test_run_lengths_and_an_unknown_compression(tmp_path):
    film = pydicom.dcmread(dicom(tmp_path / "a.dcm", V))
    film.compress(RLELossless)
    film.save_as(tmp_path / "a.dcm")
    np.testing.assert_allclose(read(tmp_path / "a.dcm").pixels, PLAIN, atol=0.002)
    strange = compressed(tmp_path / "b.dcm", [b"STRANGE!" * 40], UID("1.2.840.10008.1.2.4.999"), {})
    with pytest.raises(RadiographError, match=r"TransferSyntaxUID \(0002,0010\) is 1\.2\.840\.10008\.1\.2\.4\.999"):
        read(strange)


def test_run_lengths_that_do_not_fit_are_named(tmp_path):
    film = pydicom.dcmread(dicom(tmp_path / "a.dcm", V))
    film.compress(RLELossless)
    film.save_as(tmp_path / "a.dcm")
    raw = bytearray((tmp_path / "a.dcm").read_bytes())
    raw[-600:] = b"\x7f" * 600  # each says that 128 bytes follow
    (tmp_path / "a.dcm").write_bytes(raw)
    with pytest.raises(RadiographError) as caught:
        read(tmp_path / "a.dcm")
    assert caught.value.code == "damaged"
