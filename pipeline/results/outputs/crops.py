"""`crops/<id>.png`: the lung box of the film, at its own size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from cxr_pipeline.results.outputs.base import CROP_PNG, JudgedFilm, Output, grey_png, judged_so_far, levels


class Crops(Output):
    """The lung box of every film that has one and was not refused."""

    name: ClassVar[str] = "crops"
    about: ClassVar[str] = "the lung box, 8-bit PNG at the film's own size"
    suffixes: ClassVar[tuple[str, ...]] = (".png",)

    def files(self, film: JudgedFilm) -> Mapping[str, bytes]:
        """The pixels of the lung box as PNG, 0 to 255 of the film's own range."""
        record = film.record
        if record.lung_box is None or not judged_so_far(record):
            return {}
        x, y, w, h = (int(v) for v in record.lung_box)
        return {".png": grey_png(levels(record.film.pixels[y : y + h, x : x + w]), CROP_PNG)}
