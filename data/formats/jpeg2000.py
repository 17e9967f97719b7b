"""JPEG 2000 as a file of its own: JP2 containers and bare codestreams."""

from __future__ import annotations

from typing import ClassVar

from cxr_pipeline.data.formats import grey
from cxr_pipeline.data.formats.base import Decoded, Format, RadiographError, check_size
from cxr_pipeline.data.formats.codecs import decode_j2k, j2k_header


class Jpeg2000(Format):
    """JPEG 2000 (ISO 15444), 8 to 16 bits."""

    name: ClassVar[str] = "jpeg2000"
    label: ClassVar[str] = "JPEG 2000"
    suffixes: ClassVar[tuple[str, ...]] = (".jp2", ".j2k", ".j2c", ".jpf", ".jpx")

    def matches(self, head: bytes) -> bool:
        """By the signature of a JP2 file, or the start of a codestream."""
        return head.startswith((b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"))

    def decode(self, raw: bytes, name: str) -> Decoded:
        """Samples by OpenJPEG."""
        header = j2k_header(raw)
        if header is None:
            raise RadiographError(name, "the JPEG 2000 file has no size in its header. Export it again", "damaged")
        check_size(name, header.height, header.width, header.components, 1 if header.bits <= 8 else 2)
        return grey.film(decode_j2k(raw), name)
