"""Compressed streams that stand alone or inside DICOM: what their headers say, and their samples by imagecodecs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
_END_MARK = b"\xff\xd9"
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


class StreamHeader(NamedTuple):
    """What a JPEG, JPEG-LS or JPEG 2000 stream says of itself. `process` is the start-of-frame marker of a JPEG."""

    height: int
    width: int
    components: int
    bits: int
    process: int = 0
    signed: bool = False

    @property
    def unusual(self) -> bool:
        """Whether it is a JPEG of more than 8 bits, or a lossless one."""
        return self.bits > 8 or self.process in (0xC3, 0xC7, 0xCB, 0xCF, 0xF7)


def jpeg_header(raw: bytes) -> StreamHeader | None:
    """The first frame header of a JPEG or JPEG-LS stream; None where there is none."""
    at = 2
    while at + 4 <= len(raw):
        if raw[at] != 0xFF:
            return None
        marker = raw[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        length = int.from_bytes(raw[at + 2 : at + 4], "big")
        if marker in _SOF and at + 10 <= len(raw):
            height, width = int.from_bytes(raw[at + 5 : at + 7], "big"), int.from_bytes(raw[at + 7 : at + 9], "big")
            return StreamHeader(height, width, raw[at + 9], raw[at + 4], marker)
        if marker == 0xDA or length < 2:
            return None
        at += 2 + length
    return None


def j2k_header(raw: bytes) -> StreamHeader | None:
    """The size segment of a JPEG 2000 codestream, also within a JP2 container; None where there is none."""
    start = raw.find(b"\xff\x4f\xff\x51", 0, 1 << 16)
    if start < 0 or len(raw) < start + 43:
        return None
    at = start + 8
    right, bottom, left, top = (int.from_bytes(raw[at + 4 * i : at + 4 * i + 4], "big") for i in range(4))
    depth = raw[start + 42]
    components = int.from_bytes(raw[start + 40 : start + 42], "big")
    return StreamHeader(bottom - top, right - left, components, (depth & 0x7F) + 1, signed=bool(depth & 0x80))


def decode_jpeg(raw: bytes, *, as_stored: bool = False) -> np.ndarray:
    """Samples of a JPEG of 8 to 16 bits, baseline, extended or lossless, or of a JPEG-LS stream.

    Args:
        raw: the stream.
        as_stored: leave the colours as they are stored (YCbCr stays YCbCr).

    Returns:
        (H, W) or (H, W, 3), uint8 or uint16.

    Raises:
        RuntimeError, ValueError: the stream is damaged or of a kind that nobody decodes.
    """
    import imagecodecs

    header = jpeg_header(raw)
    if header is not None and header.process == 0xF7:
        # CharLS reads on for ever where a stream ends without an end mark; with one, it notices what is missing.
        return imagecodecs.jpegls_decode(raw if raw.endswith(_END_MARK) else raw + _END_MARK)
    lossless = header is not None and header.process == 0xC3
    if (as_stored or lossless) and header is not None and header.components == 3:  # lossless ones are never turned
        return imagecodecs.jpeg8_decode(raw, colorspace="YCBCR", outcolorspace="YCBCR")
    # Lossless ones too: the other decoders that know them, ljpeg and jpegsof3, crash on damaged streams.
    return imagecodecs.jpeg8_decode(raw)


def decode_j2k(raw: bytes) -> np.ndarray:
    """Samples of a JPEG 2000 stream or JP2 file: (H, W) or (H, W, C), 8 to 32 bits, signed where it says so.

    Raises:
        RuntimeError: the stream is damaged.
    """
    import imagecodecs

    return np.asarray(imagecodecs.jpeg2k_decode(raw))
