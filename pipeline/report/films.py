"""What the report shows of one film: itself, its lung outline and its heat map, small enough to be embedded."""

from __future__ import annotations

import base64
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.report.pictures import Pictures, jpeg, outline, picture, small
from cxr_pipeline.results.drawing import layout
from cxr_pipeline.results.reader import film_bytes, film_file
from cxr_pipeline.run.reading import file_hash
from cxr_pipeline.stages.base import DETAIL

_LARGE = 10_000_000  # pixels; of films above it, which take 4 to 9 bytes a pixel to read, one is read at a time
_alone = threading.Lock()

Reader = Callable[..., Radiograph]


def pieces(folder: Path, entry: dict[str, Any], reader: Reader, pictures: Pictures | None = None) -> dict[str, Any]:
    """The embedded parts of a film, from an entry of the journal. `pictures` spares the films that it holds a reading.

    Keys, each only where there is something: `film` (JPEG) with `from`: "source" (kept by the run that judged it, or
    read from its file, which still is what was judged) or "overlay" (the overlay, with outline, heat and boxes drawn
    in), `lungs` (outlines as an SVG path in native pixels), `heat` (PNG, grey, of the whole film). Pictures are base64
    text.
    """
    row = entry["row"]
    size = size_of(row)
    if size is None:
        return {}
    out: dict[str, Any] = {}
    kept = pictures.of(row) if pictures is not None else None
    film = _source(row, size, reader) if kept is None else kept.film
    if film is not None:
        out |= {"film": _text(film), "from": "source"}
    else:
        drawn = _decoded(film_bytes(folder, entry, "overlays"), cv2.IMREAD_COLOR)
        if drawn is not None:
            h, w, _ = layout(*size)
            out |= {"film": _text(jpeg(small(drawn[:h, :w]))), "from": "overlay"}
    if kept is not None and film_file(entry, "masks") is not None:
        out["lungs"] = kept.lungs
    elif kept is None:
        mask = _decoded(film_bytes(folder, entry, "masks"), cv2.IMREAD_GRAYSCALE)
        if mask is not None and mask.shape == size:
            out["lungs"] = outline(mask)
    if entry.get("heat"):
        out["heat"] = entry["heat"]
    return out


def size_of(row: dict[str, str]) -> tuple[int, int] | None:
    """(height, width) of a row's film; None where it was not read."""
    return (int(row["height"]), int(row["width"])) if row.get("height") and row.get("width") else None


def turbo() -> str:
    """The 256 colours of the heat maps, the same as in the overlays: RGB bytes as base64."""
    levels = np.arange(256, dtype=np.uint8)[None]
    return _text(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[0, :, ::-1].tobytes())


def in_order(jobs: Iterable[Callable[[], Any]], workers: int) -> Iterator[Any]:
    """The results of jobs in their order, done in threads; a few wait at a time, so memory stays flat."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # our threads take a film each
    pool = ThreadPoolExecutor(workers, "cxr-report")
    try:
        waiting: deque[Future[Any]] = deque()
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _source(row: dict[str, str], size: tuple[int, int], reader: Reader) -> bytes | None:
    """The film's picture from the file that was judged; None where it is gone or has changed since."""
    try:
        if not row.get("sha256") or file_hash(row["image"]) != row["sha256"]:
            return None
        with _alone if size[0] * size[1] > _LARGE else nullcontext():
            film = reader(row["image"], id=row["id"], least=DETAIL, rough=False)
    except (OSError, ValueError):  # a RadiographError is a ValueError
        return None
    return picture(film) if film.size == size else None


def _decoded(data: bytes | None, flags: int) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
