"""HEIC, the pictures of telephones."""

from __future__ import annotations

from typing import ClassVar

from cxr_pipeline.data.formats import grey
from cxr_pipeline.data.formats.base import Decoded, Format, check_size
from cxr_pipeline.data.formats.pictures import loaded, opened


class Heic(Format):
    """HEIC and HEIF, with pillow-heif."""

    name: ClassVar[str] = "heic"
    label: ClassVar[str] = "HEIC"
    suffixes: ClassVar[tuple[str, ...]] = (".heic", ".heif")
    requires: ClassVar[tuple[str, ...]] = ("pillow_heif",)

    def matches(self, head: bytes) -> bool:
        """By the brand of its container."""
        return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc")

    def decode(self, raw: bytes, name: str) -> Decoded:
        """Samples of the main picture; pillow-heif has turned it upright."""
        import pillow_heif

        pillow_heif.register_heif_opener()
        image = opened(raw, "HEIF", self.label, name)
        check_size(name, image.height, image.width, len(image.getbands()))
        return grey.film(loaded(image, name), name)
