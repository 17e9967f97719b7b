"""One film of a job: through the chain, and as a picture for screens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.data.geometry import resize
from cxr_pipeline.data.radiograph import Radiograph, RadiographError, stretched
from cxr_pipeline.stages.apply import apply, crashed
from cxr_pipeline.stages.base import FAILED, REFUSED, Record, Stage
from cxr_pipeline.web.uploads import Upload

SHOWN_SIDE = 1600  # pixels of film.png's long side: it is for screens; the results have their native size

_log = logging.getLogger("cxr.web")


@dataclass
class UploadedFilm:
    """A film of a job. `row` and `boxes` are filled in once it is done; `crashed` where the chain raised on it."""

    id: str
    upload: Upload
    state: str = "waiting"
    row: dict[str, str] = field(default_factory=dict)
    boxes: list[dict[str, Any]] | None = None
    problem: RadiographError | None = None
    crashed: bool = False


def through(film: UploadedFilm, reader: Callable[..., Radiograph], stages: Sequence[Stage]) -> tuple[Record, str]:
    """A film through the chain; whatever goes wrong becomes a record that says so.

    Args:
        film: gets `problem` where the file cannot be read, `crashed` where something raised that should not.
        reader: as `data.radiograph.read`.
        stages: the chain.

    Returns:
        The record, and the traceback where something raised that should not: for who runs the server, not for callers.
    """
    try:
        if film.upload.problem is not None:
            raise film.upload.problem
        record = Record(reader(film.upload.path, id=film.id))
    except RadiographError as error:
        film.problem = error
        status = REFUSED if error.refused else FAILED
        return Record(None, status, f"{film.id}: {error.reason}", id=film.id), ""
    except Exception as error:
        record = crashed(Record(None, id=film.id), "reading", error)
    else:
        record.film.source = film.id
        (record,) = apply(stages, [record])
    crash = record.crash
    if crash is None:
        return record, ""
    film.crashed = True
    _log.error("%s raised %s", crash.step, crash.place)  # not its message: that may quote a film's header
    text = f"{crash.step}: {crash.kind}. The log of the server says where"
    return Record(record.radiograph, FAILED, text, id=film.id), crash.trace


def screen_png(pixels: np.ndarray) -> bytes:
    """A film (H, W) float as an 8-bit PNG for screens, its grey levels stretched, at most `SHOWN_SIDE` a side."""
    scale = min(1.0, SHOWN_SIDE / max(pixels.shape))
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    image = stretched(resize(pixels, height, width) if scale < 1 else pixels)
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
