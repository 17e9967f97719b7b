"""`heatmaps/<id>.png`: where the evidence lies, on the network's own grid, or at the film's own size where asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from cxr_pipeline.results.heat import grid_heat
from cxr_pipeline.results.outputs.base import HEAT_PNG, JudgedFilm, Output, grey_png, judged_so_far, levels


class Heatmaps(Output):
    """The heat map of every film that has one. Its place on the film is the frame in regions.json.

    Args:
        native: draw it at the film's own size, 0 outside of the frame.
    """

    name: ClassVar[str] = "heatmaps"
    detail: int | None = 1  # it looks at no pixel of the film
    about: ClassVar[str] = "where the evidence lies, 8-bit PNG on the network's grid; its frame is in regions.json"
    suffixes: ClassVar[tuple[str, ...]] = (".png",)

    def __init__(self, native: bool = False) -> None:
        self.native = native

    @property
    def key(self) -> str:
        """The name, and whether the maps are of the film's own size."""
        return f"{self.name} native" if self.native else self.name

    def files(self, film: JudgedFilm) -> Mapping[str, bytes]:
        """The heat map as PNG, 0 to 255; relative: each film's maximum is 255."""
        record = film.record
        if not judged_so_far(record):
            return {}
        heat = record.heatmap if self.native else grid_heat(record)
        return {} if heat is None else {".png": grey_png(levels(heat), HEAT_PNG)}
