"""A film's heat map on the grid that it was found on, and drawn onto a film of any size."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.stages.base import Record

CELLS = 64  # of the small map's long side; what the network itself sees has 9 to 18
_STEP = 8  # grey levels that become one: nobody sees it, and the PNG takes half the bytes


def grid_heat(record: Record) -> np.ndarray | None:
    """The heat map (h, w) float32 [0, 1] on the grid of `record.frame`; at native size where there is no frame."""
    if record.heat is not None:
        return record.heat
    if record.heatmap is None or record.frame is None:
        return record.heatmap
    return np.clip(record.frame.to_grid(record.heatmap), 0, 1)


def heat_at(record: Record, height: int, width: int) -> np.ndarray | None:
    """The heat map of the whole film at (height, width), float32 [0, 1]; None where there is none.

    It is drawn from its own grid at once: a native map of a large film would only be made to be shrunk.
    """
    heat = grid_heat(record)
    if heat is None:
        return None
    if record.frame is None:
        return cv2.resize(heat, (width, height), interpolation=cv2.INTER_AREA)
    native = record.film.size
    down, across = height / native[0], width / native[1]
    x0, y0 = round(record.frame.box.x * across), round(record.frame.box.y * down)
    x1 = round((record.frame.box.x + record.frame.box.w) * across)
    y1 = round((record.frame.box.y + record.frame.box.h) * down)
    box = Box(x0, y0, max(1, x1 - x0), max(1, y1 - y0))
    inside = box.intersect(Box(0, 0, width, height))
    if inside.area <= 0:
        return np.zeros((height, width), np.float32)
    return np.clip(Frame((height, width), box, heat.shape[:2]).to_native(heat), 0, 1)


def small_heat(record: Record) -> str | None:
    """The heat map of the whole film as a grey PNG with a long side of `CELLS`, in base64: the journal keeps it.

    A report can then show it, whatever the run writes as files. 0.5 to 0.9 KB a film.
    """
    height, width = record.film.size
    scale = min(1.0, CELLS / max(height, width))
    heat = heat_at(record, max(1, round(height * scale)), max(1, round(width * scale)))
    if heat is None:
        return None
    grey = np.minimum(np.round(heat * (255 / _STEP)) * _STEP, 255).astype(np.uint8)
    return base64.b64encode(cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()).decode("ascii")
