"""What a results folder holds of one film: its pictures, and its entry for the journal.

Apart from the folder itself, so that other processes can make it for the one that holds the folder and its lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline import stages
from cxr_pipeline.results.journal import sweep, write_whole
from cxr_pipeline.results.outputs import failed, pictures, plain_text, regions_of, row_of
from cxr_pipeline.stages.base import OK, Record

FOLDERS = ("masks", "crops", "heatmaps", "overlays")


class FilmFiles:
    """Makes and checks what a results folder holds of a film.

    Safe to use from several threads, and from several processes as long as they judge alike: the same film then leaves
    the same bytes, and each file is written whole or not at all.

    Args:
        path: the results folder; its folders of pictures exist.
        last: what the chain goes up to, see `stages.ends`.
        classes: of the folder, which regions belong to.
    """

    def __init__(self, path: Path, last: str, classes: Sequence[str]) -> None:
        self.path, self.last, self.classes = path, last, tuple(classes)

    def done(self, entry: dict[str, Any] | None, sha256: str) -> dict[str, Any] | None:
        """The entry, if its film needs nothing more: unchanged, judged as far as the chain goes, files in place."""
        if entry is None or entry["row"]["sha256"] != sha256 or entry["retry"]:
            return None
        reached = stages.covers(entry["stage"], self.last)
        if entry["row"]["status"] == OK and not reached:
            return None
        for folder, size in entry["files"].items():  # a power cut may have taken what was written last
            try:
                if (self.path / folder / f"{entry['row']['id']}.png").stat().st_size != size:
                    return None
            except OSError:
                return None
        return entry

    def mask(self, entry: dict[str, Any] | None, sha256: str, size: tuple[int, int]) -> np.ndarray | None:
        """The mask (H, W) uint8 0/1 that an earlier chain found on an unchanged film; None where there is none.

        Nor of a film with warnings: its lungs are found again, and the warnings with them.
        """
        if entry is None or entry["row"]["sha256"] != sha256 or "masks" not in entry["files"]:
            return None
        if entry["row"].get("warnings"):
            return None
        try:
            data = (self.path / "masks" / f"{entry['row']['id']}.png").read_bytes()
        except OSError:
            return None
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
        return (mask > 127).astype(np.uint8) if mask is not None and mask.shape == tuple(size) else None

    def write(self, image: str, sha256: str, record: Record, *, trace: str = "") -> dict[str, Any]:
        """Write the pictures of a film, and return its entry for the journal: plain values, the same through JSON.

        A record that cannot be turned into files fails alone.

        Args:
            image: the film's path, as results.csv shows it.
            sha256: of the file; empty where it could not be read, and then the next run tries again.
            trace: the traceback of a failure that nobody foresaw; such films are tried again by the next run.

        Raises:
            OSError: the disk or the folder takes no more.
        """
        name = record.id
        try:
            row, files = row_of(record), pictures(record)
            regions = None if record.regions is None else regions_of(record, self.classes)
        except Exception as error:
            record, trace = failed(Record(record.radiograph, id=name), "writing", error)
            row, files, regions = row_of(record), {}, None
        for folder in FOLDERS:
            path = self.path / folder / f"{name}.png"
            if folder in files:
                write_whole(path, files[folder])
            else:
                path.unlink(missing_ok=True)  # of an earlier version of the input
        row |= {"image": plain_text(image), "id": name, "sha256": sha256}
        return {
            "stage": self.last,
            "retry": bool(trace) or not sha256,
            "row": row,
            "regions": regions,
            **_logits(record),
            **({"heatmap_label": record.heatmap_label} if record.heatmap_label else {}),
            "files": {folder: len(data) for folder, data in files.items()},
            "trace": trace,
        }

    def sweep(self) -> None:
        """Remove the temporary files that a killed process left."""
        for name in FOLDERS:
            if (self.path / name).is_dir():
                sweep(self.path / name)


def _logits(record: Record) -> dict[str, list[float]]:
    """What `results.screen` decides from again, to all digits that a network gives."""
    logits = record.extra.get("logits")
    return {} if logits is None else {"logits": [float(f"{value:.9g}") for value in np.asarray(logits, float)]}
