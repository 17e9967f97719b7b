"""A film for a reader's screen: its grey levels in 16 bit, so that window and level show what the film holds."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.geometry import resize
from cxr_pipeline.report.films import outline
from cxr_pipeline.results.reader import film_bytes
from cxr_pipeline.run.isolation import IsolatedReader
from cxr_pipeline.run.reading import file_hash

LONGEST = 1600  # pixels of the long side that a page gets: 5 MB at 16 bit, from this machine to itself
_KEPT = 4  # films in memory, so that a step back is at once


class ChangedError(CxrError, ValueError):
    """A film that is not the one that was judged any more."""


@dataclass(frozen=True)
class Shown:
    """A film for the screen: `levels` (h, w) uint16, and the levels `low` and `high` that a window starts with."""

    levels: np.ndarray
    low: int
    high: int


class Pictures:
    """Reads films in processes of their own, as a run does. Close it at the end."""

    def __init__(self) -> None:
        self._reader = IsolatedReader()
        # A helper ends with the thread that began it, and a server's threads come and go: all films by one that stays.
        self._thread = ThreadPoolExecutor(1, "films")
        self._kept: OrderedDict[str, Shown] = OrderedDict()

    def close(self) -> None:
        """End the helper processes."""
        self._reader.close()
        self._thread.shutdown()

    def film(self, film: dict[str, Any]) -> Shown:
        """The pixels of a film of the sample.

        Raises:
            ChangedError: its file has changed since it was judged.
            RadiographError: it cannot be read.
        """
        return self._thread.submit(self._film, film).result()

    def _film(self, film: dict[str, Any]) -> Shown:
        if film["id"] in self._kept:
            return self._kept[film["id"]]
        if film["sha256"] and file_hash(film["image"]) != film["sha256"]:
            raise ChangedError("the file of this film has changed since it was judged. Put the first one back")
        pixels = self._reader(film["image"], id=film["id"]).pixels
        scale = min(1.0, LONGEST / max(pixels.shape))
        if scale < 1:
            pixels = resize(pixels, *(max(1, round(side * scale)) for side in pixels.shape))
        low, high = np.percentile(pixels[::4, ::4], [0.5, 99.5])
        levels = np.clip(pixels * 65535 + 0.5, 0, 65535).astype("<u2")
        shown = Shown(levels, round(65535 * float(low)), max(round(65535 * float(high)), round(65535 * float(low)) + 1))
        self._kept[film["id"]] = shown
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return shown


def lungs(folder: Path, entry: dict[str, Any]) -> str:
    """The outline of the lungs as an SVG path in native pixels; empty where the run left no mask."""
    data = film_bytes(folder, entry, "masks")
    mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    return outline(mask) if mask is not None else ""
