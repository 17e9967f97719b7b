"""Films of every format, and files that are nearly such films: bytes changed, cut out, put in, cut off and mixed up."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cxr_pipeline.data.synthetic import make_film
from tests.data.formats.test_contract import EXAMPLES
from tests.data.test_dicom import dicom

FILM = np.round(make_film(5, size=(72, 96)).pixels * 255).astype(np.uint8)
DEEP = FILM.astype(np.uint16) * 257
_ODD = (0, 1, 0x7F, 0x80, 0xFF)
_NUMBERS = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def films() -> dict[str, bytes]:
    """A sound file of every format, and of the kinds that other code decodes."""
    made = {name: make() for name, make in EXAMPLES.items() if name != "dicom"}
    made |= {
        "png16": _by_pillow(DEEP, "PNG"),
        "tiff_deflate": _tiff(DEEP, compression="zlib", predictor=True),
        "tiff_lzw_tiled": _tiff(FILM, compression="lzw", tile=(32, 32)),
        "tiff_planes": _tiff(np.stack([DEEP] * 3), photometric="rgb", planarconfig="separate"),
        "jpeg_lossless": imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=16),
        "jpeg12": imagecodecs.jpeg8_encode(DEEP >> 4, bitspersample=12),
        "jpegls16": imagecodecs.jpegls_encode(DEEP),
        "j2k_bare": imagecodecs.jpeg2k_encode(DEEP, level=0, codecformat="j2k"),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = dicom(Path(folder, "a.dcm"), DEEP >> 4)
        made["dicom"] = path.read_bytes()
        for name, syntax, stream in (
            ("dicom_j2k", JPEG2000Lossless, imagecodecs.jpeg2k_encode(DEEP >> 4, level=0, bitspersample=12)),
            ("dicom_jls", JPEGLSLossless, imagecodecs.jpegls_encode(DEEP >> 4)),
            ("dicom_jpegll", JPEGLosslessSV1, imagecodecs.jpeg8_encode(DEEP >> 4, lossless=True, bitspersample=12)),
            ("dicom_jpeg", JPEGBaseline8Bit, imagecodecs.jpeg8_encode(FILM)),
        ):
            film = pydicom.dcmread(io.BytesIO(made["dicom"]))
            film.file_meta.TransferSyntaxUID, film.PixelData = syntax, encapsulate([stream])
            film["PixelData"].is_undefined_length, film["PixelData"].VR = True, "OB"
            made[name] = _saved(film)
        film = pydicom.dcmread(io.BytesIO(made["dicom"]))
        film.compress(RLELossless)
        made["dicom_rle"] = _saved(film)
    return made


def _by_pillow(array: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def _tiff(array: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def _saved(film: pydicom.Dataset) -> bytes:
    out = io.BytesIO()
    film.save_as(out)
    return out.getvalue()


def mutants(raw: bytes, count: int, seed: int, others: list[bytes]) -> Iterator[bytes]:
    """`count` files made of `raw` by one to four changes each, most of them near its start, where headers are."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        made = bytearray(raw)
        for _ in range(int(draw.integers(1, 5))):
            change = _CHANGES[int(draw.integers(len(_CHANGES)))]
            made = change(made, draw, others) or made
        yield _with_checksums(bytes(made)) if draw.random() < 0.7 else bytes(made)


def _with_checksums(raw: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have, so that more than these are tried; others as they are."""
    if not raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return raw
    at, out = 8, [raw[:8]]
    while at + 12 <= len(raw):
        end = at + 12 + int.from_bytes(raw[at : at + 4], "big")
        if end > len(raw):
            break
        out.append(raw[at : end - 4] + zlib.crc32(raw[at + 4 : end - 4]).to_bytes(4, "big"))
        at = end
    return b"".join(out) + raw[at:]


def _place(data: bytearray, draw: np.random.Generator) -> int:
    near = draw.random() < 0.7
    return int(draw.integers(0, max(1, min(len(data), 1024) if near else len(data))))


def _bytes(data: bytearray, draw: np.random.Generator, others: list[bytes]) -> bytearray:
    for _ in range(int(draw.integers(1, 9))):
        data[_place(data, draw)] = int(draw.choice(_ODD)) if draw.random() < 0.5 else int(draw.integers(256))
    return data


def _number(data: bytearray, draw: np.random.Generator, others: list[bytes]) -> bytearray:
    order, size = "<>"[int(draw.integers(2))], "HI"[int(draw.integers(2))]
    number = int(draw.choice(_NUMBERS)) & (0xFFFF if size == "H" else 0xFFFFFFFF)
    at, packed = _place(data, draw), struct.pack(order + size, number)
    data[at : at + len(packed)] = packed
    return data


def _cut_out(data: bytearray, draw: np.random.Generator, others: list[bytes]) -> bytearray:
    at = _place(data, draw)
    del data[at : at + int(draw.integers(1, 65))]
    return data or bytearray(b"\0")


def _put_in(data: bytearray, draw: np.random.Generator, others: list[bytes]) -> bytearray:
    at = _place(data, draw)
    data[at:at] = draw.bytes(int(draw.integers(1, 65)))
    return data


def _twice(data: bytearray, draw: np.random.Generator, others: list[bytes]) -> bytearray:
    at, length = _place(data, draw), int(draw.integers(1, 257))
    data[at:at] = data[at : at + length] * int(draw.integers(1, 5))
    return data


def _cut_off(data: bytearray, draw: np.random.Generator, others: list[bytes]) -> bytearray:
    return data[: max(1, int(draw.integers(len(data))))]


def _mixed(data: bytearray, draw: np.random.Generator, others: list[bytes]) -> bytearray:
    other = others[int(draw.integers(len(others)))]
    at, length = _place(data, draw), int(draw.integers(1, 513))
    start = int(draw.integers(0, len(other)))
    data[at : at + length] = other[start : start + length]
    return data


_CHANGES: tuple[Callable[[bytearray, np.random.Generator, list[bytes]], bytearray], ...] = (
    *(_bytes, _bytes, _number, _number),
    *(_cut_out, _put_in, _twice, _cut_off, _mixed),
)
