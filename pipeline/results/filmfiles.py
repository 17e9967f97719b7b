"""What a results folder holds of one film: its files, and its entry for the journal.

Apart from the folder itself, so that other processes can make it for the one that holds the folder and its lock.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline import stages
from cxr_pipeline.data.files import PRIVATE, folder_mode, plain_text, sha256_of, sweep
from cxr_pipeline.data.files import write_bytes as write_whole
from cxr_pipeline.results.heat import small_heat
from cxr_pipeline.results.identity import Identity, ResultsError
from cxr_pipeline.results.outputs import Output, chosen, failed, output_class, regions_of, row_of
from cxr_pipeline.results.outputs.base import JudgedFilm
from cxr_pipeline.results.outputs.regions import frame_of
from cxr_pipeline.results.reader import film_bytes, wrong_files
from cxr_pipeline.stages.base import OK, Record

FOLDERS = ("masks", "overlays", "heatmaps", "crops")  # of the outputs that this package brings
SAMPLE = 1 / 16  # of the films that are done already: the share whose files are read again when a run goes on


class FilmFiles:
    """Makes and checks what a results folder holds of a film.

    Safe to use from several threads, and from several processes as long as they judge alike: the same film then leaves
    the same bytes, and each file is written whole or not at all.

    Args:
        path: the results folder; `make_folders` makes those in it.
        identity: of the chain.
        classes: of the folder, which regions belong to.
        outputs: what is written; by default what a reader needs.
        mode: permissions of files; folders get the same, and may be entered by whom they may be read.
        verify: read every file of a film that is done already, and not only a sample of them.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        classes: Sequence[str],
        *,
        outputs: Sequence[Output] | None = None,
        mode: int = PRIVATE,
        verify: bool = False,
    ) -> None:
        self.path, self.identity, self.classes = path, identity, tuple(classes)
        self.outputs = chosen() if outputs is None else tuple(outputs)
        self.mode, self.verify = mode, verify
        self._last = identity.last
        self._asked = frozenset(one.key for one in self.outputs if one.suffixes or one.columns)
        self._columns = frozenset(one.key for one in self.outputs if one.columns)  # which refused films have too
        brought = [output_class(name) for name in FOLDERS]
        named = [(one.name, one.suffixes) for one in brought] + [(one.name, one.suffixes) for one in self.outputs]
        self._names = {name: suffixes for name, suffixes in named if suffixes}

    def make_folders(self) -> None:
        """Make the folders of the outputs.

        Raises:
            ResultsError: one of them is a link, which could lie anywhere.
        """
        for name in self._names:
            if (self.path / name).is_symlink():
                raise ResultsError(f"{self.path / name} is a link. Replace it by a folder, or choose another --out")
        for one in self.outputs:
            if one.suffixes:
                (self.path / one.name).mkdir(mode=folder_mode(self.mode), exist_ok=True)

    def done(self, entry: dict[str, Any] | None, sha256: str) -> dict[str, Any] | None:
        """The entry, if its film needs nothing more.

        That is: unchanged, judged as far as the chain goes, all files in place that are asked for. A power cut may have
        taken what was written last: the sizes of all files are compared, and of a sample the checksums too.
        """
        if entry is None or entry["row"]["sha256"] != sha256 or entry["retry"]:
            return None
        reached = stages.covers(entry["stage"], self._last)
        judged = entry["row"]["status"] == OK
        if (judged and not reached) or not (self._asked if judged else self._columns) <= set(entry["outputs"]):
            return None
        fully = self.verify or random.random() < SAMPLE
        return None if wrong_files(self.path, entry, sizes_only=not fully) else entry

    def mask(self, entry: dict[str, Any] | None, sha256: str, size: tuple[int, int]) -> np.ndarray | None:
        """The mask (H, W) uint8 0/1 that an earlier chain found on an unchanged film; None where there is none.

        Nor of a film with warnings: its lungs are found again, and the warnings with them.
        """
        if entry is None or entry["row"]["sha256"] != sha256 or entry["row"].get("warnings"):
            return None
        data = film_bytes(self.path, entry, "masks")
        mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
        return (mask > 127).astype(np.uint8) if mask is not None and mask.shape == tuple(size) else None

    def write(self, image: str, sha256: str, record: Record, *, trace: str = "") -> dict[str, Any]:
        """Write the files of a film, and return its entry for the journal: plain values, the same through JSON.

        A record that cannot be turned into files fails alone.

        Args:
            image: the film's path, as results.csv shows it.
            sha256: of the file; empty where it could not be read, and then the next run tries again.
            trace: the traceback of a failure that nobody foresaw; such films are tried again by the next run.

        Raises:
            OSError: the disk or the folder takes no more.
        """
        name, image = record.id, plain_text(image)
        kept: dict[str, Any] = {}
        try:
            row, regions = row_of(record), None if record.regions is None else regions_of(record, self.classes)
            film = JudgedFilm(record, name, image, sha256, self.path, self.identity)
            files = self._files(film)
            for one in self.outputs:
                row |= one.cells(film)
            row |= warned(row, film.warnings)
            heat, frame = (small_heat(record), frame_of(record)) if record.ok else (None, None)
            if record.heatmap_label:
                kept["heatmap_label"] = record.heatmap_label
            kept |= _logits(record)
            kept |= ({"heat": heat} if heat else {}) | ({"frame": frame} if frame else {})
        except Exception as error:
            record, trace = failed(Record(record.radiograph, id=name), "writing", error)
            row, files, regions, kept = row_of(record), {}, None, {}
        for output, suffixes in self._names.items():
            for suffix in suffixes:
                if f"{output}/{name}{suffix}" not in files:  # of an earlier version of the input
                    (self.path / output / f"{name}{suffix}").unlink(missing_ok=True)
        for file, data in files.items():
            write_whole(self.path / file, data, mode=self.mode)
        row |= {"image": image, "id": name, "sha256": sha256}
        return {
            "stage": self._last,
            "retry": bool(trace) or not sha256,
            "row": row,
            "regions": regions,
            **kept,
            "files": {file: {"size": len(data), "sha256": sha256_of(data)} for file, data in files.items()},
            "outputs": sorted(self._asked),
            "trace": trace,
        }

    def _files(self, film: JudgedFilm) -> dict[str, bytes]:
        """The film's files of all outputs, by name below the folder."""
        out: dict[str, bytes] = {}
        for one in self.outputs:
            for suffix, data in one.files(film).items():
                if suffix not in one.suffixes:
                    raise ValueError(f"the output {one.name} gave a file {suffix!r}; it declares {one.suffixes}")
                out[f"{one.name}/{film.id}{suffix}"] = data
        return out

    def sweep(self) -> None:
        """Remove the temporary files that a killed process left."""
        for name in self._names:
            if (self.path / name).is_dir():
                sweep(self.path / name)

    def clear(self) -> None:
        """Remove the files of all films, and the folders where nothing of a person's own is left in them."""
        for name, suffixes in self._names.items():
            folder = self.path / name
            if not folder.is_dir() or folder.is_symlink():
                continue
            for file in list(folder.iterdir()):
                if file.name.endswith((*suffixes, *_OLDER)) and not file.is_dir():
                    file.unlink()
            sweep(folder)
            try:
                folder.rmdir()
            except OSError:  # a person put something of theirs into it
                continue


def warned(row: dict[str, str], warnings: Sequence[str]) -> dict[str, str]:
    """The cell of the film's warnings with those of its outputs; empty where there are none."""
    texts = [row.get("warnings", ""), *(" ".join(str(text).split()) for text in dict.fromkeys(warnings))]
    joined = "; ".join(filter(None, texts))
    return {"warnings": joined} if joined else {}


_OLDER = (".png",)  # what overlays were before


def _logits(record: Record) -> dict[str, list[float]]:
    """What `run.screen` decides from again, to all digits that a network gives."""
    logits = record.extra.get("logits")
    return {} if logits is None else {"logits": [float(f"{value:.9g}") for value in np.asarray(logits, float)]}
