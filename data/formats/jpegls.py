"""JPEG-LS as a file of its own."""

from __future__ import annotations

from typing import ClassVar

from cxr_pipeline.data.formats import grey
from cxr_pipeline.data.formats.base import Decoded, Format, RadiographError, check_size
from cxr_pipeline.data.formats.codecs import decode_jpeg, jpeg_header


class JpegLs(Format):
    """JPEG-LS (ISO 14495), lossless and near-lossless, 8 to 16 bits."""

    name: ClassVar[str] = "jpegls"
    label: ClassVar[str] = "JPEG-LS"
    suffixes: ClassVar[tuple[str, ...]] = (".jls",)

    def matches(self, head: bytes) -> bool:
        """By the frame header of JPEG-LS, near the start of a JPEG."""
        if not head.startswith(b"\xff\xd8\xff"):
            return False
        header = jpeg_header(head)
        return header is not None and header.process == 0xF7

    def decode(self, raw: bytes, name: str) -> Decoded:
        """Samples by CharLS."""
        header = jpeg_header(raw)
        if header is None:
            raise RadiographError(name, "the JPEG-LS file has no frame header. Export it again", "damaged")
        check_size(name, header.height, header.width, header.components, 1 if header.bits <= 8 else 2)
        return grey.film(decode_jpeg(raw), name)
