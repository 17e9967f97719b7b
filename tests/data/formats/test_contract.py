"""What every registered format keeps to; a new one is picked up from the registry."""

from __future__ import annotations

import io
import time
from importlib.util import find_spec

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cxr_pipeline.data import formats
from cxr_pipeline.data.formats import base
from cxr_pipeline.data.formats.base import RadiographError
from cxr_pipeline.data.formats.codecs import decode_jpeg
from cxr_pipeline.data.radiograph import read
from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.run.isolation import IsolatedReader
from tests.data.test_dicom import dicom

FILM = np.round(make_film(5, size=(72, 96)).pixels * 255).astype(np.uint8)


def by_pillow(kind, **options):
    out = io.BytesIO()
    Image.fromarray(FILM).save(out, kind, **options)
    return out.getvalue()


def nifti():
    import nibabel

    return nibabel.Nifti1Image(np.ascontiguousarray(FILM[::-1].T), np.eye(4)).to_bytes()


def npy():
    out = io.BytesIO()
    np.save(out, FILM)
    return out.getvalue()


def heic():
    import pillow_heif

    pillow_heif.register_heif_opener()
    return by_pillow("HEIF", quality=-1)


# A sound file of each format, made from FILM: add one line for a new format.
EXAMPLES = {
    "dicom": lambda: None,
    "png": lambda: cv2.imencode(".png", FILM)[1].tobytes(),
    "jpeg": lambda: by_pillow("JPEG", quality=97),
    "jpegls": lambda: imagecodecs.jpegls_encode(FILM),
    "jpeg2000": lambda: imagecodecs.jpeg2k_encode(FILM, level=0),
    "tiff": lambda: by_pillow("TIFF"),
    "bmp": lambda: by_pillow("BMP"),
    "webp": lambda: by_pillow("WEBP", lossless=True),
    "gif": lambda: by_pillow("GIF"),
    "heic": heic,
    "nifti": nifti,
    "npy": npy,
}


@pytest.mark.parametrize("kind", formats.formats(), ids=lambda kind: kind.name)
class TestEveryFormat:
    @pytest.fixture
    def path(self, kind, tmp_path):
        if kind.missing():
            pytest.skip(f"{kind.missing()} is not installed")
        path = tmp_path / "film"
        if kind.name == "dicom":
            return dicom(path, FILM.astype(np.uint16), 8)
        path.write_bytes(EXAMPLES[kind.name]())
        return path

    def test_it_is_told_by_content_and_read(self, kind, path):
        film = read(path)
        assert film.format == kind.name
        assert film.pixels.dtype == np.float32
        np.testing.assert_allclose(film.pixels, FILM / 255, atol=0.08)
        assert formats.looks_like_image(path)

    def test_a_file_cut_in_half_is_named(self, kind, path):
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2])
        with pytest.raises(RadiographError) as caught:
            read(path)
        assert not caught.value.refused

    def test_a_bomb_is_refused_before_it_is_decoded(self, kind, path, monkeypatch):
        monkeypatch.setattr(base, "MAX_PIXELS", 5000)
        with pytest.raises(RadiographError, match="megapixels"):
            read(path)
        monkeypatch.setattr(base, "MAX_PIXELS", 10**8)
        monkeypatch.setattr(base, "MAX_BYTES", 5000)
        with pytest.raises(RadiographError, match="limit"):
            read(path)

    def test_what_it_says_of_itself(self, kind):
        assert kind.name.isalnum()
        assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in kind.suffixes)
        assert kind.suffixes <= tuple(formats.suffixes()) or set(kind.suffixes) <= formats.suffixes()
        assert kind.label in formats.labels()
        assert not kind.matches(b"")

    def test_without_its_extra_the_message_names_it(self, kind, path, monkeypatch):
        monkeypatch.setattr(type(kind), "requires", ("no_such_module",))
        with pytest.raises(RadiographError, match=rf"{kind.label}.*no_such_module.*\[formats\]"):
            read(path)


@pytest.mark.parametrize(
    ("start", "says"), [(b"%PDF-1.4", "PDF"), (b"PK\x03\x04", "ZIP"), (b"NRRD0005", "NRRD"), (b"8BPS", "Photoshop")]
)
def test_what_is_no_film_is_named_as_what_it_is(tmp_path, start, says):
    (tmp_path / "a.png").write_bytes(start + bytes(500))
    with pytest.raises(RadiographError, match=says):
        read(tmp_path / "a.png")


def tiff(path, array, **options):
    tifffile.imwrite(path, array, **options)
    return path


@pytest.mark.skipif(not find_spec("nibabel"), reason="needs nibabel")
def test_nifti_hangs_as_its_affine_says(tmp_path):
    import nibabel

    down = np.ascontiguousarray(FILM.T)
    colours = np.zeros(down.shape, [(name, "u1") for name in "RGB"])
    for name in "RGB":
        colours[name] = down[:, ::-1]
    for name, array, affine in [
        ("upwards", down[:, ::-1], np.eye(4)),
        ("as_simpleitk", down, np.diag([-0.2, -0.2, 1, 1])),
        ("coronal", down[:, None, ::-1], np.eye(4)),
        ("colours", colours, np.eye(4)),
    ]:
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{name}.nii")
        np.testing.assert_allclose(read(tmp_path / f"{name}.nii").pixels, FILM / 255, atol=0.004, err_msg=name)


def test_tiff_of_every_kind(tmp_path):
    wide = FILM.astype(np.uint16) * 257
    plain = FILM / 255
    rgb = np.stack([wide] * 3)
    for name, array, options in [
        ("planes", rgb, {"photometric": "rgb", "planarconfig": "separate"}),
        ("big", wide, {"bigtiff": True}),
        ("big_endian", wide, {"byteorder": ">"}),
        ("white_is_zero", 65535 - wide, {"photometric": "miniswhite"}),
        ("white_is_zero_of_12_bits", 65535 - wide // 16, {"photometric": "miniswhite"}),
        ("white_is_4095", 4095 - wide // 16, {"photometric": "miniswhite"}),
        ("float", plain.astype(np.float32), {}),
        ("double", plain.astype(np.float64), {}),
        ("uint32", wide.astype(np.uint32), {}),
        ("int32", wide.astype(np.int32), {}),
        ("deflate", wide, {"compression": "zlib", "predictor": True}),
        ("lzw", wide, {"compression": "lzw"}),
    ]:
        np.testing.assert_allclose(read(tiff(tmp_path / f"{name}.tif", array, **options)).pixels, plain, atol=0.004)
    signed = (wide.astype(np.int32) - 32768).astype(np.int16)
    spread = (plain - plain.min()) / np.ptp(plain)
    for kind in (np.int16, np.int32):
        film = read(tiff(tmp_path / "signed.tif", signed.astype(kind)))
        np.testing.assert_allclose(film.pixels, spread, atol=0.004)
        assert "whole range" in film.warnings[0]


def test_a_thumbnail_page_is_passed_over_and_a_second_film_is_not(tmp_path):
    with tifffile.TiffWriter(tmp_path / "thumb.tif") as file:
        file.write(FILM)
        file.write(FILM[::4, ::4], subfiletype=1)
    assert read(tmp_path / "thumb.tif").size == FILM.shape
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(FILM)
        file.write(FILM[::-1])
    with pytest.raises(RadiographError, match="2 pages") as caught:
        read(tmp_path / "two.tif")
    assert caught.value.refused


def test_neither_alpha_nor_a_marker_sets_the_depth_of_a_png(tmp_path):
    twelve = np.round(FILM / 255 * 4095).astype(np.uint16)
    alpha = np.full_like(twelve, 65535)
    cv2.imencode(".png", np.dstack([twelve] * 3 + [alpha]))[1].tofile(tmp_path / "alpha.png")
    np.testing.assert_allclose(read(tmp_path / "alpha.png").pixels, FILM / 255, atol=0.004)
    marked = twelve.copy()
    marked[2:8, 2:20] = 65535
    cv2.imencode(".png", marked)[1].tofile(tmp_path / "marked.png")
    film = read(tmp_path / "marked.png")
    np.testing.assert_allclose(film.pixels[10:], FILM[10:] / 255, atol=0.004)
    assert "marker" in film.warnings[0]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_a_cut_off_jpegls_ends(tmp_path, share):
    raw = imagecodecs.jpegls_encode(FILM)
    (tmp_path / "a.jls").write_bytes(raw[: round(share * len(raw))])
    began = time.monotonic()
    with pytest.raises(RadiographError):
        read(tmp_path / "a.jls")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_and_deep_jpeg(tmp_path, bits):
    deep = np.round(FILM / 255 * ((1 << bits) - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg8_encode(deep, lossless=True, bitspersample=bits))
    np.testing.assert_allclose(read(tmp_path / "a.jpg").pixels, FILM / 255, atol=0.01)


@pytest.mark.parametrize("options", [{"lossless": True}, {"level": 95}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_off_deep_jpeg_is_no_film_with_a_black_rest(tmp_path, options, share):
    raw = imagecodecs.jpeg8_encode(FILM.astype(np.uint16) << 4, bitspersample=12, **options)
    (tmp_path / "a.jpg").write_bytes(raw[: round(share * len(raw))])
    with pytest.raises(RadiographError) as caught:
        read(tmp_path / "a.jpg")
    assert caught.value.code == "truncated"


def test_a_lossless_jpeg_without_its_tables_crashes_no_decoder(tmp_path):
    raw = imagecodecs.jpeg8_encode(FILM.astype(np.uint16) << 8, lossless=True, bitspersample=16)
    assert raw.count(b"\xff\xc4") == 1
    (tmp_path / "a.jpg").write_bytes(raw.replace(b"\xff\xc4", b"\xff\xe4"))  # the Huffman table, as a note
    reader = IsolatedReader(seconds=60)  # a crash would end this process
    try:
        with pytest.raises(RadiographError) as caught:
            reader(tmp_path / "a.jpg")
    finally:
        reader.close()
    assert caught.value.code == "damaged"


@pytest.mark.parametrize("space", ["RGB", "YCBCR"])
def test_a_lossless_jpeg_keeps_its_colours(space):
    colours = np.stack([FILM, FILM[::-1], FILM[:, ::-1]], -1)
    raw = imagecodecs.jpeg8_encode(colours, lossless=True, colorspace=space, outcolorspace=space)
    np.testing.assert_array_equal(decode_jpeg(raw), colours)


def test_many_chunks_and_pages_cost_no_time(tmp_path, monkeypatch):
    from cxr_pipeline.data.formats import png

    monkeypatch.setattr(png, "MAX_CHUNKS", 3)
    (tmp_path / "a.png").write_bytes(EXAMPLES["png"]()[:-12] + b"\0\0\0\0tEXt\xbf\xa1\xfc\xcf" * 9)
    with pytest.raises(RadiographError):
        read(tmp_path / "a.png")
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for _ in range(40):
            file.write(FILM)
    with pytest.raises(RadiographError, match="more than 16 pages"):
        read(tmp_path / "pages.tif")
