"""The reader: every format to the same film, every bad file to one clear error."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_pipeline.data.formats import base
from cxr_pipeline.data.radiograph import RadiographError, looks_like_image, read
from cxr_pipeline.data.synthetic import make_film

FILM = make_film(7, size=(80, 100)).pixels
EIGHT = np.round(FILM * 255).astype(np.uint8)
SIXTEEN = np.round(FILM * 65535).astype(np.uint16)
COLOUR = np.dstack([EIGHT, np.roll(EIGHT, 9, 0), np.roll(EIGHT, 9, 1)])  # BGR
GREY_OF_COLOUR = cv2.cvtColor(COLOUR, cv2.COLOR_BGR2GRAY) / 255


def save(path: Path, array: np.ndarray, **options) -> Path:
    """With OpenCV for PNG, with Pillow otherwise."""
    if path.suffix == ".png":
        cv2.imencode(".png", array)[1].tofile(path)
    else:
        image = array if isinstance(array, Image.Image) else Image.fromarray(array)
        image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}) | options)
    return path


@pytest.mark.parametrize(
    ("name", "array", "expected", "tolerance", "bits"),
    [
        ("a.png", EIGHT, EIGHT / 255, 1e-6, 8),
        ("a.png", SIXTEEN, FILM, 1e-4, 16),
        ("a.tif", EIGHT, EIGHT / 255, 1e-6, 8),
        ("a.tif", SIXTEEN, FILM, 1e-4, 16),
        ("a.tif", FILM, FILM, 1e-6, 32),  # float
        ("a.bmp", EIGHT, EIGHT / 255, 1e-6, 8),
        ("a.jpg", EIGHT, FILM, 0.06, 8),
        ("a.png", COLOUR, GREY_OF_COLOUR, 0.005, 8),
        ("a.bmp", COLOUR[..., ::-1], GREY_OF_COLOUR, 0.005, 8),
        ("a.tif", COLOUR[..., ::-1], GREY_OF_COLOUR, 0.005, 8),
        ("a.png", COLOUR.astype(np.uint16) * 257, GREY_OF_COLOUR, 0.005, 16),
    ],
)
def test_formats_and_depths(tmp_path, name, array, expected, tolerance, bits):
    film = read(save(tmp_path / name, np.ascontiguousarray(array)))
    assert film.pixels.dtype == np.float32
    assert film.size == film.pixels.shape == expected.shape
    assert film.bits == bits
    assert film.id == "a"
    np.testing.assert_allclose(film.pixels, expected, atol=tolerance)


@given(bits=st.sampled_from([8, 10, 12, 14, 16]), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_every_depth_in_a_sixteen_bit_file_fills_the_range(tmp_path_factory, bits, seed):
    top = (1 << bits) - 1
    values = np.random.default_rng(seed).integers(0, top + 1, (40, 48)).astype(np.uint16)
    values[0, :2] = 0, top
    for suffix in (".png", ".tif"):
        film = read(save(tmp_path_factory.mktemp("depth") / f"a{suffix}", values))
        assert film.bits == bits
        np.testing.assert_allclose(film.pixels, values / top, atol=1.0 / top)


def test_alpha_is_black_where_transparent(tmp_path):
    alpha = np.full_like(EIGHT, 255)
    alpha[:20] = 0
    film = read(save(tmp_path / "a.png", np.dstack([EIGHT] * 3 + [alpha])))
    assert film.pixels[:20].max() == 0
    np.testing.assert_allclose(film.pixels[20:], EIGHT[20:] / 255, atol=0.005)


def test_palette_one_bit_and_cmyk(tmp_path):
    film = read(save(tmp_path / "p.bmp", Image.fromarray(EIGHT).convert("P")))
    np.testing.assert_allclose(film.pixels, EIGHT / 255, atol=0.005)
    black_white = Image.fromarray(np.where(EIGHT > 127, 255, 0).astype(np.uint8)).convert("1")
    for name in ("b.tif", "b.bmp"):
        np.testing.assert_allclose(read(save(tmp_path / name, black_white)).pixels, EIGHT > 127, atol=0.005)
    black_white.save(tmp_path / "b.png")
    np.testing.assert_allclose(read(tmp_path / "b.png").pixels, EIGHT > 127, atol=0.005)
    film = read(save(tmp_path / "c.jpg", Image.fromarray(EIGHT).convert("RGB").convert("CMYK"), quality=95))
    np.testing.assert_allclose(film.pixels, EIGHT / 255, atol=0.06)


@pytest.mark.parametrize("depth", [8, 16])
def test_tiff_where_zero_is_white_comes_out_as_displayed(tmp_path, depth):
    array, top = (EIGHT, 255) if depth == 8 else (SIXTEEN, 65535)
    path = save(tmp_path / "a.tif", (top - array).astype(array.dtype), tiffinfo={})
    raw = bytearray(path.read_bytes())
    at = raw.find(struct.pack("<HHII", 262, 3, 1, 1))  # photometric interpretation: 1, zero is black
    assert at > 0
    raw[at : at + 12] = struct.pack("<HHII", 262, 3, 1, 0)
    path.write_bytes(raw)
    np.testing.assert_allclose(read(path).pixels, array / top, atol=1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    image = Image.fromarray(EIGHT)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    image.save(path, exif=exif, **({"quality": 98} if suffix == ".jpg" else {}))
    turned = {
        1: EIGHT,
        2: EIGHT[:, ::-1],
        3: EIGHT[::-1, ::-1],
        4: EIGHT[::-1],
        5: EIGHT.T,
        6: np.rot90(EIGHT, -1),
        7: EIGHT[::-1, ::-1].T,
        8: np.rot90(EIGHT, 1),
    }[orientation]
    np.testing.assert_allclose(read(path).pixels, turned / 255, atol=0.06 if suffix == ".jpg" else 1e-6)


def test_the_content_and_not_the_name_tells_the_format(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(cv2.imencode(".png", EIGHT)[1].tobytes())
    assert read(path).format == "png"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.97])
def test_a_cut_off_file_is_noticed(tmp_path, suffix, share):
    path = save(tmp_path / f"a{suffix}", EIGHT)
    raw = path.read_bytes()
    path.write_bytes(raw[: max(16, int(share * len(raw)))])
    with pytest.raises(RadiographError, match=rf"^a\{suffix}: .*(cut off|damaged)"):
        read(path)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path):
    path = save(tmp_path / "a.png", EIGHT)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(RadiographError, match="checksum"):
        read(path)


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("empty.png", b"", "empty_file", "empty"),
        ("text.png", b"patient: none\n" * 40, "not_an_image", "Allowed are DICOM, PNG, .* and NumPy"),
        ("dot.png", cv2.imencode(".png", np.array([[3]], np.uint8))[1].tobytes(), "too_small", "1x1"),
        ("grey.png", cv2.imencode(".png", np.full((64, 64), 90, np.uint8))[1].tobytes(), "flat", "same grey level"),
        ("bomb.png", png_header(60_000, 60_000), "too_large", "3600 megapixels"),
        ("broken.gif", b"GIF89a" + b"\0" * 99, "damaged", "header"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, code, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RadiographError, match=says) as caught:
        read(path)
    assert str(caught.value).startswith(name + ": ")
    assert caught.value.code == code


def test_missing_folder_and_forbidden(tmp_path):
    with pytest.raises(RadiographError, match=r"^no\.png: there is no such file"):
        read(tmp_path / "no.png")
    with pytest.raises(RadiographError, match="folder"):
        read(tmp_path)
    if os.geteuid() != 0:  # root may read everything
        path = save(tmp_path / "a.png", EIGHT)
        path.chmod(0)
        with pytest.raises(RadiographError, match="permission"):
            read(path)


def test_bombs_of_other_formats_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MAX_PIXELS", 5_000)
    for suffix in (".jpg", ".tif", ".bmp", ".png"):
        with pytest.raises(RadiographError, match="megapixels"):
            read(save(tmp_path / f"a{suffix}", EIGHT))


def test_pages_and_values_that_are_no_film(tmp_path):
    pages = [Image.fromarray(EIGHT)] * 3
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(RadiographError, match="3 pages") as caught:
        read(tmp_path / "pages.tif")
    assert caught.value.refused
    broken = FILM.copy()
    broken[3, 3] = np.nan
    with pytest.raises(RadiographError, match="not a number"):
        read(save(tmp_path / "nan.tif", broken))


@given(
    content=st.binary(max_size=300),
    magic=st.sampled_from(
        [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", b"", b"\0" * 128 + b"DICM"]
    ),
)
@settings(max_examples=150, deadline=None)
def test_nothing_but_radiograph_error_comes_out(tmp_path_factory, content, magic):
    path = tmp_path_factory.getbasetemp() / "fuzz.png"
    path.write_bytes(magic + content)
    with pytest.raises(RadiographError):
        read(path)


def test_folder_walks_take_films_only(tmp_path):
    films = {name: b"" for name in ("a.PNG", "b.jpeg", "c.dcm")}  # by name, whatever they hold
    films |= {name: bytes(128) + b"DICM" for name in ("1.2.840.113", "noname", "IM1.img")}
    pixels = np.zeros((40, 40), np.uint8)
    for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp", ".jp2"):
        content = cv2.imencode(suffix, pixels)[1].tobytes()
        films |= {f"without {suffix[1:]}": content, f"other{suffix}.part": content}
    others = {"a.pdf": b"%PDF-1.7", "b.zip": b"PK\x03\x04", "empty": b"", "short": b"I"}
    others |= {"notes.txt": b"some words", "table.csv": b"BMI,age\n21,40\n"}  # which begins like a BMP
    for name, content in (films | others).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    assert {p.name for p in tmp_path.iterdir() if looks_like_image(p)} == set(films)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_folder_walk_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert not looks_like_image(tmp_path / "pipe")


@pytest.mark.real
def test_real_films_are_read(real_data):
    for path in sorted((real_data / "native").iterdir()):
        film = read(path)
        assert min(film.size) > 400
        assert film.pixels.std() > 0.05


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_png_whose_rows_run_out_is_damaged_though_its_checksums_are_right(tmp_path, kind):
    film = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (64, 48)).astype(kind)
    whole = cv2.imencode(".png", film)[1].tobytes()
    at = whole.index(b"IDAT")
    end = at + 4 + int.from_bytes(whole[at - 4 : at], "big")
    (tmp_path / "a.png").write_bytes(whole)
    np.testing.assert_allclose(read(tmp_path / "a.png").pixels, film / np.iinfo(kind).max, atol=1e-6)
    rows = zlib.compress(zlib.decompress(whole[at + 4 : end])[:900])
    chunk = len(rows).to_bytes(4, "big") + b"IDAT" + rows + zlib.crc32(b"IDAT" + rows).to_bytes(4, "big")
    (tmp_path / "b.png").write_bytes(whole[: at - 4] + chunk + whole[end + 4 :])
    with pytest.raises(RadiographError, match="damaged") as caught:
        read(tmp_path / "b.png")
    assert caught.value.code == "damaged"
