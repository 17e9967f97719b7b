"""Small pictures of films, kept by the run that judges them for the report at its end: no film is decoded twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from cxr_pipeline.data.radiograph import Radiograph
    from cxr_pipeline.stages.base import Record

log = logging.getLogger("cxr.report")

EMBEDDED = 2000  # films in a report's page itself, about 20 KB each; it must open on a small machine too
LONGEST = 384  # of the embedded film, in pixels; long sides of 256, 384, 512: 9, 16, 24 KB as text
QUALITY = 80  # of its JPEG


def small(image: np.ndarray) -> np.ndarray:
    """The image with a long side of at most `LONGEST` pixels."""
    from cxr_pipeline.data.geometry import resize

    scale = min(1.0, LONGEST / max(image.shape[:2]))
    return resize(image, *(max(1, round(side * scale)) for side in image.shape[:2]))


def jpeg(image: np.ndarray) -> bytes:
    """An image (H, W) or (H, W, 3) uint8, as the bytes of a JPEG file."""
    import cv2

    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def picture(film: Radiograph) -> bytes:
    """A film as a small JPEG, its grey levels stretched for looking.

    Of a large film means of squares are looked at, as a run holds it: whoever reads it again gets the same bytes.
    """
    from cxr_pipeline.data.formats.small import means
    from cxr_pipeline.data.radiograph import stretched
    from cxr_pipeline.stages.base import DETAIL

    by = film.step(DETAIL) // (film.small.scale if film.small else 1)
    return jpeg(small(film.shown if by <= 1 else stretched(means(film.pixels, by))))


def outline(mask: np.ndarray) -> str:
    """The outer contours of a mask (H, W) uint8 as an SVG path in its pixels, to about a pixel of the embedded film."""
    import cv2

    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    slack = 0.7 * max(1.0, max(mask.shape) / LONGEST)
    path = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, slack, True)[:, 0]
        if len(points) > 2:
            path.append("M" + " ".join(f"{x},{y}" for x, y in points) + "Z")
    return "".join(path)


class Kept(NamedTuple):
    """What the report shows of a film: its picture as JPEG, and the outlines of its lungs, empty without a mask."""

    film: bytes
    lungs: str


class Pictures:
    """The pictures of the films that one run has judged. Several threads may keep and ask at once.

    Args:
        most: further films are not kept, so that memory stays small: the report reads them again.
    """

    def __init__(self, most: int = EMBEDDED) -> None:
        self._most = most
        self._held: dict[tuple[str, str], Kept] = {}

    def keep(self, sha256: str, record: Record) -> None:
        """Keep what is shown of a film with the content `sha256`. It is no reason to stop a run."""
        from cxr_pipeline.stages.base import DETAIL

        film = record.radiograph
        if film is None or len(self._held) >= self._most:
            return
        decoded_small = film.small if film.counted is None else None
        if decoded_small is not None and (decoded_small.rough or decoded_small.scale != film.step(DETAIL)):
            return  # read again by the report, it looks otherwise
        try:
            lungs = "" if record.mask is None else outline(record.mask)
            self._held[film.id, sha256] = Kept(picture(film), lungs)
        except Exception as error:  # such as too little memory: the report reads the film again
            log.warning("%s: no picture for the report was kept (%s)", film.id, error)

    def of(self, row: Mapping[str, str]) -> Kept | None:
        """What was kept of the film that a row of the results tells of; None where nothing was."""
        return self._held.get((row["id"], row.get("sha256", "")))
