"""`overlays/<id>.jpg`: the film with its lung outline, heat and boxes, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import cv2
import numpy as np

from cxr_pipeline.results.drawing import LONGEST, Made, overlay
from cxr_pipeline.results.outputs.base import JudgedFilm, Output, judged_so_far
from cxr_pipeline.stages.base import REFUSED

_QUALITY = 85


class Overlays(Output):
    """An overlay of every film that was judged, and of refused ones with a mask, to see why."""

    name: ClassVar[str] = "overlays"
    detail: int | None = LONGEST
    about: ClassVar[str] = "the film with outline, heat and boxes, JPEG of at most 1024 px"
    default: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = (".jpg",)

    def files(self, film: JudgedFilm) -> Mapping[str, bytes]:
        """The overlay as JPEG."""
        record = film.record
        if not judged_so_far(record) and (record.status != REFUSED or record.mask is None):
            return {}
        made = Made.of(film.image, film.identity.about, film.identity.version)
        return {".jpg": overlay_jpeg(overlay(record, made))}


def overlay_jpeg(image: np.ndarray) -> bytes:
    """An overlay (H, W, 3) uint8 BGR as the bytes of its file.

    Raises:
        ValueError: OpenCV cannot encode it.
    """
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError(f"OpenCV cannot encode an image of shape {image.shape} as JPEG")
    return data.tobytes()
