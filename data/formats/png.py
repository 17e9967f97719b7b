"""PNG, of any depth and colour; every chunk's checksum is verified, because decoders forgive a cut file."""

from __future__ import annotations

import zlib
from typing import ClassVar

import cv2
import numpy as np

from cxr_pipeline.data.formats import grey
from cxr_pipeline.data.formats.base import Decoded, Format, RadiographError, check_size

_CHANNELS = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}  # by colour type; a palette unfolds to colour and alpha
MAX_CHUNKS = 100_000  # of 8 KB each, as most programs write them, this is 800 MB of film
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # all that decides the pixels


class Png(Format):
    """Portable Network Graphics."""

    name: ClassVar[str] = "png"
    label: ClassVar[str] = "PNG"
    suffixes: ClassVar[tuple[str, ...]] = (".png",)

    def matches(self, head: bytes) -> bool:
        """By its signature."""
        return head.startswith(b"\x89PNG\r\n\x1a\n")

    def decode(self, raw: bytes, name: str) -> Decoded:
        """Samples, and EXIF orientation: grey ones by imagecodecs, which takes 10 to 25 % less, others by OpenCV."""
        width, height = int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")
        if raw[12:16] != b"IHDR" or len(raw) < 33:
            raise RadiographError(name, "the PNG file is damaged or cut off. Export or copy it again", "damaged")
        check_size(name, height, width, _CHANNELS.get(raw[25], 4), max(1, raw[24] // 8))
        kept, orientation, has_alpha = _checked(raw, name)
        plain = raw[25] == 0 and raw[24] in (8, 16) and not has_alpha
        samples = _grey(kept) if plain else cv2.imdecode(np.frombuffer(kept, np.uint8), cv2.IMREAD_UNCHANGED)
        if samples is None:
            raise RadiographError(name, "the PNG file is damaged. Export or copy it again", "damaged")
        if samples.ndim == 3 and samples.shape[2] >= 3:
            samples = cv2.cvtColor(samples, cv2.COLOR_BGRA2RGBA if samples.shape[2] == 4 else cv2.COLOR_BGR2RGB)
        if samples.ndim == 3 and samples.shape[2] == 4 and not has_alpha:
            samples = samples[..., :3]
        return grey.film(samples, name, orientation=orientation)


def _grey(kept: bytes) -> np.ndarray | None:
    """Samples (H, W) uint8 or uint16 of a grey PNG; None where it is damaged."""
    import imagecodecs

    try:
        return imagecodecs.png_decode(kept)
    except RuntimeError:  # its error of every codec is one
        return None


def _checked(raw: bytes, name: str) -> tuple[bytes, int, bool]:
    """The chunks that decide the pixels, EXIF orientation, and whether there is transparency.

    Chunks of text and the like are left out of what the decoder gets: it has no use for them, and reads them slowly.
    """
    at, orientation, seen, count = 8, 1, b"", 0
    view = memoryview(raw)
    kept: list[bytes | memoryview[int]] = [raw[:8]]
    has_alpha = raw[25] in (4, 6)
    while seen != b"IEND":
        length = int.from_bytes(raw[at : at + 4], "big")
        end = at + 12 + length
        if len(raw) < at + 12 or end > len(raw):
            raise RadiographError(
                name, f"the file is cut off after {len(raw)} bytes. Export or copy it again", "truncated"
            )
        count += 1
        if count > MAX_CHUNKS:
            raise RadiographError(
                name, f"it is made of more than {MAX_CHUNKS} chunks. Save it again with another program", "too_large"
            )
        seen = raw[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(raw[end - 4 : end], "big"):
            raise RadiographError(name, "its data do not match their checksum. Export or copy it again", "damaged")
        if seen == b"eXIf":
            orientation = exif_orientation(b"Exif\x00\x00" + raw[at + 8 : end - 4])
        elif seen == b"acTL" and int.from_bytes(raw[at + 8 : at + 12], "big") > 1:
            raise RadiographError(name, "it is an animation. Give a film as one picture", "multi_frame", refused=True)
        elif seen == b"tRNS":
            has_alpha = True
        if seen in _NEEDED:
            kept.append(view[at:end])
        at = end
    return b"".join(kept), orientation, has_alpha


def exif_orientation(block: bytes) -> int:
    """The orientation (1 to 8) in a block of EXIF data; 1 where it says none."""
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(block)
        return int(exif.get(0x0112, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1
