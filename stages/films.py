"""A manifest's films through the stages that come before, read ahead in threads: for training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.data.progress import track
from cxr_pipeline.data.radiograph import RadiographError, read
from cxr_pipeline.stages.apply import apply
from cxr_pipeline.stages.base import FAILED, REFUSED, Record, Stage

if TYPE_CHECKING:
    from cxr_pipeline.configs.fit import Fit
    from cxr_pipeline.data.manifest import Manifest

log = logging.getLogger("cxr.films")


def stream(
    data: Manifest, chain: Sequence[Stage] = (), *, batch_size: int = 16, description: str = "films"
) -> Iterator[tuple[dict[str, Any], Record]]:
    """Each row of the manifest as a dict, with its record after the stages of `chain`, in the manifest's order.

    A film that cannot be read, or that a stage cannot judge or breaks on, comes out with its status and error set; it
    is logged and costs only itself. At most two batches are in memory.
    """
    rows = data.rows()

    def load(row: dict[str, Any]) -> Record:
        path = data.path(row["image"])
        try:
            return Record(read(path, id=Path(row["image"]).stem))
        except RadiographError as error:
            return unread(Path(row["image"]).stem, error)

    def batches() -> Iterator[tuple[dict[str, Any], Record]]:
        with ThreadPoolExecutor(4) as pool:
            pending = [pool.submit(load, row) for row in rows[: 2 * batch_size]]
            for start in range(0, len(rows), batch_size):
                records = [future.result() for future in pending[:batch_size]]
                ahead = start + 2 * batch_size
                pending = pending[batch_size:] + [pool.submit(load, row) for row in rows[ahead : ahead + batch_size]]
                yield from zip(rows[start : start + batch_size], apply(chain, records), strict=True)

    for row, record in track(batches(), description, len(rows)):
        if not record.ok:
            log.warning("%s: %s: %s", row["image"], record.status, record.error)
        yield row, record


def unread(name: str, why: RadiographError | str) -> Record:
    """The record of a film that could not be read, under its name in the run: refused or failed, as the error says."""
    if isinstance(why, RadiographError) and why.refused:
        return Record(None, REFUSED, f"{why.code}: {why}", id=name)
    return Record(None, FAILED, str(why), id=name)


def sources_of(data: Manifest, fit: Fit) -> list[str]:
    """The sources that a training takes its films from."""
    return fit.sources if fit.sources is not None else sorted(set(data.table["source"]) - set(fit.leave_out))


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask file as (H, W) uint8, 0 or 1, at the film's `size`; see `data.masks`. Of a manifest's film: `film_mask`.

    Raises:
        RadiographError: it cannot be read, or its aspect ratio is another than the film's.
    """
    from cxr_pipeline.data.masks import read_mask as read_any

    return read_any(path, size)
