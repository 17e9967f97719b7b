"""One film of a job: through the chain, and as a picture for screens."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.data.geometry import resize
from cxr_pipeline.data.radiograph import Radiograph, RadiographError
from cxr_pipeline.results.drawing import stretched
from cxr_pipeline.stages.base import FAILED, REFUSED, Record, Stage
from cxr_pipeline.web.uploads import Upload

SHOWN_SIDE = 1600  # pixels of film.png's long side: it is for screens; the results have their native size

_log = logging.getLogger("cxr.web")


@dataclass
class Film:
    """A film of a job. `row` and `boxes` are there once it is done; `crashed` where the chain raised on it."""

    id: str
    upload: Upload
    state: str = "waiting"
    row: dict[str, str] | None = None
    boxes: list[dict[str, Any]] | None = None
    problem: RadiographError | None = None
    crashed: bool = False


def through(film: Film, reader: Callable[..., Radiograph], stages: Sequence[Stage]) -> tuple[Record, str]:
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
        return _unread(film, REFUSED if error.refused else FAILED, f"{film.id}: {error.reason}"), ""
    except Exception as error:
        return _crashed(film, _unread(film, FAILED, ""), "reading", error)
    record.radiograph.source = film.id
    for stage in stages:
        try:
            (record,) = stage.run([record])
        except Exception as error:
            return _crashed(film, Record(record.radiograph), stage.name, error)
    return record, ""


def _unread(film: Film, status: str, error: str) -> Record:
    return Record(Radiograph(np.zeros((1, 1), np.float32), film.id, film.id, (0, 0)), status, error)


def _crashed(film: Film, record: Record, step: str, error: Exception) -> tuple[Record, str]:
    film.crashed = True
    _log.error("%s raised %s", step, where(error))
    text = f"{step}: {type(error).__name__}. The log of the server says where"
    return replace(record, status=FAILED, error=text), "".join(traceback.format_exception(error))


def where(error: BaseException) -> str:
    """The type of an error and the line that raised it. Not its text: that may quote a film's header."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"


def screen_png(pixels: np.ndarray) -> bytes:
    """A film (H, W) float as an 8-bit PNG for screens, its grey levels stretched, at most `SHOWN_SIDE` a side."""
    scale = min(1.0, SHOWN_SIDE / max(pixels.shape))
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    image = stretched(resize(pixels, height, width) if scale < 1 else pixels)
    return cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
