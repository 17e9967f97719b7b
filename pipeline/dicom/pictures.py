"""PNG and JPEG without metadata: what a decoder needs stays, byte for byte; all else goes."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.dicom.burntin import blanked, find_text

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"sRGB", b"cHRM", b"sBIT", b"bKGD", b"pHYs")
_ADOBE = 0xEE  # says how colours are coded
_QUALITY = 95


class PictureError(CxrError, ValueError):
    """A picture that is damaged or cut off."""


def picture_kind(raw: bytes) -> str | None:
    """How names of such files end: "png" or "jpg"; None where it is neither."""
    return "png" if raw.startswith(_PNG) else "jpg" if raw.startswith(_JPEG) else None


def cleaned_picture(raw: bytes, text: str = "blank") -> tuple[bytes, list[Box]]:
    """A picture without metadata, and where burnt-in text was found.

    Pixels are left as they are, unless text is blanked: then the picture is packed again.

    Args:
        raw: a PNG or JPEG.
        text: "blank" fills text, "flag" only finds it, "keep" does not look.

    Raises:
        PictureError: it is damaged.
    """
    kind = picture_kind(raw)
    clean = _png(raw) if kind == "png" else _jpeg(raw)
    pixels = cv2.imdecode(np.frombuffer(clean, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise PictureError("the picture is damaged or cut off. Export it again")
    if text == "keep":
        return clean, []
    boxes = find_text(pixels if pixels.ndim == 2 else pixels[..., :3].mean(axis=2))
    if not boxes or text == "flag":
        return clean, boxes
    return _packed(blanked(pixels, boxes), kind, _orientation(raw)), boxes


def _packed(pixels: np.ndarray, kind: str | None, orientation: int) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if kind == "jpg" else []
    done, data = cv2.imencode(f".{kind}", pixels, options)
    if not done:
        raise PictureError(f"it cannot be packed again as {kind}")
    out = data.tobytes()
    return _jpeg(out, orientation) if kind == "jpg" else out


def _png(raw: bytes) -> bytes:
    """The chunks that decoders need."""
    out, at = [_PNG], len(_PNG)
    while at + 12 <= len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        name, end = raw[at + 4 : at + 8], at + 12 + length
        if end > len(raw):
            break
        if name in _CHUNKS:
            if zlib.crc32(raw[at + 4 : end - 4]) != struct.unpack(">I", raw[end - 4 : end])[0]:
                raise PictureError("a part of the PNG is damaged. Export it again")
            out.append(raw[at:end])
        if name == b"IEND":
            return b"".join(out)
        at = end
    raise PictureError("the PNG is cut off. Copy it again")


def _jpeg(raw: bytes, orientation: int | None = None) -> bytes:
    """The segments that decoders need, and the orientation alone of what EXIF says."""
    turned = _orientation(raw) if orientation is None else orientation
    out, at = [b"\xff\xd8"], 2
    if turned != 1:
        out.append(_exif(turned))
    while at + 2 <= len(raw):
        if raw[at] != 0xFF:
            raise PictureError("the JPEG is damaged. Export it again")
        marker = raw[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            return b"".join([*out, b"\xff\xd9"])  # what follows the end mark may be anything
        if at + 4 > len(raw):
            break
        end = at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
        if marker == 0xDA:  # a scan: its head, then coded data up to the next mark
            end = _scan_end(raw, end)
            out.append(raw[at:end])
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == _ADOBE:
            out.append(raw[at:end])
        elif marker == 0xE0 and raw[at + 4 : at + 9] == b"JFIF\0":
            out.append(b"\xff\xe0\0\x10" + raw[at + 4 : at + 16] + b"\0\0")  # without its small picture
        at = end
    raise PictureError("the JPEG is cut off. Copy it again")


def _scan_end(raw: bytes, at: int) -> int:
    """Where the coded data of a scan end: at a mark that is neither a stuffed byte nor a restart."""
    while True:
        at = raw.find(b"\xff", at)
        if at < 0 or at + 1 >= len(raw):
            raise PictureError("the JPEG is cut off. Copy it again")
        if raw[at + 1] != 0 and not 0xD0 <= raw[at + 1] <= 0xD7 and raw[at + 1] != 0xFF:
            return at
        at += 1 if raw[at + 1] == 0xFF else 2


def _orientation(raw: bytes) -> int:
    """EXIF orientation of a JPEG, 1 to 8."""
    if not raw.startswith(_JPEG):
        return 1
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as image:
            found = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _exif(orientation: int) -> bytes:
    body = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">H", orientation) + b"\0\0\0\0\0\0"
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
