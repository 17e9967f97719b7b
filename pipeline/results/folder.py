"""The folder that `pipeline run` leaves: its one writer and reader. What lies in it of each film: `FilmFiles`.

::

    DIR/
      results.csv      one row an input, failures included; see `results.outputs.columns`
      worklist.csv     what to read first, and why; worklist.xlsx too with openpyxl: see `results.worklist`
      regions.json     COCO: images, categories, annotations with bbox (native pixels), score, side and zone
      run.json         what made it: versions, weights and their hashes, config, counts, seconds
      masks/  crops/  heatmaps/  overlays/      <id>.png
      journal.jsonl    one line a finished input: what a killed or repeated run goes on from
      run.log          tracebacks of films that failed in a way nobody foresaw; absent where there are none
      report.html      all of it to look at, made from the files above by `report.report`
      shard.csv        of a shard only: the key of each of its inputs, and its place among all of them
"""

from __future__ import annotations

import csv
import io
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from cxr_pipeline import stages
from cxr_pipeline.about import NOTICE, PROGRAM
from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.results.filmfiles import FOLDERS, FilmFiles
from cxr_pipeline.results.journal import FolderLock, Journal, sweep, whole_file, write_whole
from cxr_pipeline.results.outputs import columns, csv_line, write_coco
from cxr_pipeline.stages.base import Record

REPORT = "report.html"

_FILES = (
    "results.csv",
    "regions.json",
    "journal.jsonl",
    "run.log",
    "shard.csv",
    "worklist.csv",
    "worklist.xlsx",
    REPORT,
)


class ResultsError(CxrError, ValueError):
    """A results folder that this run cannot go on in; says what to do."""


@dataclass(frozen=True)
class Identity:
    """What decides a run's answers. Results of different identities are never mixed in one folder.

    Attributes:
        version: of this program.
        runtime: what runs the networks.
        stages: fingerprint by name, in the order of the chain, settings of the run included.
        classes: of the classifier, in its order; empty where the chain has none.
        about: what else `run.json` says of them (not compared): weights, files and their hashes, decisions.
        columns: further columns of `results.csv` that the stages declare (not compared: they follow from the stages).
    """

    version: str
    runtime: str
    stages: dict[str, str]
    classes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @property
    def last(self) -> str:
        """What the chain goes up to, see `stages.ends`."""
        return stages.ends(list(self.stages))


class ResultsFolder:
    """A results folder held open by one run. Use as a context: the lock is given back at its end.

    Args:
        path: the folder; made where it does not exist.
        identity: what makes the results.
        overwrite: discard what another run left there, whatever made it.
        shard: (i, n) where it holds the i-th of n parts of `total` inputs.

    Raises:
        ResultsError: another run is working in it, it holds results of another identity, or files that no run made.
        OSError: the folder cannot be made or written.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        *,
        overwrite: bool = False,
        shard: tuple[int, int] | None = None,
        total: int = 0,
    ) -> None:
        self.path, self.identity = path, identity
        self._shard = {"number": shard[0], "of": shard[1], "inputs": total} if shard else None
        self._guard = threading.Lock()
        self._lock = FolderLock(path)
        self._csv: IO[bytes] | None = None
        self.columns = columns(identity.classes, identity.columns)
        self._check_owner()
        path.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():
            raise ResultsError(f"another run is working in {path}. Wait for it, or choose another --out")
        try:
            self._begin(overwrite)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder; what is finished stays."""
        self.journal.close()
        if self._csv is not None:
            with suppress(OSError):
                self._csv.close()
        self._lock.release()

    def _check_owner(self) -> dict[str, Any] | None:
        """What run.json says; None where there is none. Refuses a folder whose files are not ours to replace."""
        if self.path.exists() and not self.path.is_dir():
            raise ResultsError(f"--out {self.path} is a file. Give a folder")
        try:
            before = run_info(self.path)
        except FileNotFoundError:
            foreign = [name for name in (*FOLDERS, *_FILES) if (self.path / name).exists()]
            if foreign:
                raise ResultsError(
                    f"{self.path} holds {foreign[0]}, which no run of this program made. Choose another --out"
                ) from None
            return None
        except ValueError as error:
            raise ResultsError(
                f"{self.path / 'run.json'} is not a run of this program ({error}). Choose another --out"
            ) from None
        return before

    def _begin(self, overwrite: bool) -> None:
        before = self._check_owner()  # again: it may have changed before the lock was ours
        if before is not None and (before.get("clearing") or (overwrite and not self._goes_on(before))):
            write_whole(self.path / "run.json", _json({"program": PROGRAM, "clearing": True}), durable=True)
            self._clear()
            before = None
        about = self.identity.about
        if before is not None:
            self._check_identity(before)
            about = _merged(before, about)
        (self.path / REPORT).unlink(missing_ok=True)  # it tells of what was here before
        self._run = {
            "program": PROGRAM,
            "notice": NOTICE,
            "finished": False,
            "version": self.identity.version,
            "runtime": self.identity.runtime,
            "classes": list(self.identity.classes) or (before or {}).get("classes", []),
            "fingerprints": {**(before or {}).get("fingerprints", {}), **self.identity.stages},
            "started_with_overwrite": overwrite,
            **({"shard": self._shard} if self._shard else {}),
            **about,
        }
        further = list(dict.fromkeys([*(before or {}).get("columns", []), *self.identity.columns]))
        if further:
            self._run["columns"] = further
        self.columns = columns(self._run["classes"], further)
        write_whole(self.path / "run.json", _json(self._run), durable=True)
        for name in FOLDERS if "heatmap" in stages.filled(self.identity.stages) else ("masks", "crops", "overlays"):
            (self.path / name).mkdir(exist_ok=True)
        sweep(self.path)
        self.films = FilmFiles(self.path, self.identity.last, self._run["classes"])
        self.films.sweep()
        self.journal = Journal(self.path / "journal.jsonl")
        self._write_table(self.journal.keys())
        self._csv = open(self.path / "results.csv", "ab", buffering=0)  # noqa: SIM115  (held until close)

    def _goes_on(self, before: dict[str, Any]) -> bool:
        """Whether a run with --overwrite was killed and is called again: then it goes on, like any other."""
        same = before.get("fingerprints") == self.identity.stages and self._difference(before) is None
        return same and not before.get("finished") and bool(before.get("started_with_overwrite"))

    def _difference(self, before: dict[str, Any]) -> str | None:
        for name, value in (("version", self.identity.version), ("runtime", self.identity.runtime)):
            if before.get(name) != value:
                return f"another {name} ({before.get(name)}; now {value})"
        if before.get("shard") != self._shard:
            return f"another shard or other inputs ({_said(before.get('shard'))}; now {_said(self._shard)})"
        for name, value in self.identity.stages.items():
            if before.get("fingerprints", {}).get(name, value) != value:
                return f"other weights or another config (stage {name})"
        had = stages.ends(list(before.get("fingerprints", {})))
        if not (stages.covers(had, self.identity.last) or stages.covers(self.identity.last, had)):
            # Its rows would lose what only the other chain fills in.
            return f"other stages (up to {had}; now up to {self.identity.last}: name them all, by --stage and --also)"
        return None

    def _check_identity(self, before: dict[str, Any]) -> None:
        difference = self._difference(before)
        if difference is not None:
            raise ResultsError(
                f"{self.path} holds results made with {difference}. "
                "Choose another --out, or discard them with --overwrite"
            )

    def _clear(self) -> None:
        for name in FOLDERS:
            folder = self.path / name
            if folder.is_dir():
                for file in folder.glob("*.png"):
                    file.unlink()
                sweep(folder)
                with suppress(OSError):  # a person put something of theirs into it
                    folder.rmdir()
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)

    def ids(self) -> dict[str, str]:
        """The ids that inputs have in this folder, by key."""
        keys = self.journal.keys()
        return {key: entry["row"]["id"] for key, entry in zip(keys, self.journal.entries(keys), strict=True)}

    def done(self, key: str, sha256: str) -> dict[str, Any] | None:
        """The entry of an input that needs nothing more; see `FilmFiles.done`."""
        return self.films.done(self.journal.get(key), sha256)

    def mask(self, key: str, sha256: str, size: tuple[int, int]) -> np.ndarray | None:
        """The mask (H, W) uint8 0/1 of an unchanged input whose lungs were found before; see `FilmFiles.mask`."""
        return self.films.mask(self.journal.get(key), sha256, size)

    def save(self, key: str, image: str, sha256: str, record: Record, *, trace: str = "") -> dict[str, str]:
        """Write all that is left of an input, then its line in the journal; returns its row. See `FilmFiles.write`.

        Raises:
            OSError: the disk or the folder takes no more.
        """
        entry = self.films.write(image, sha256, record, trace=trace)
        self.adopt(key, entry)
        return entry["row"]

    def adopt(self, key: str, entry: dict[str, Any]) -> None:
        """Take over the entry of an input whose pictures are here already: of another process, or another folder."""
        with self._guard:
            self.journal.append(key, entry)
            self._csv.write(csv_line(self.columns, entry["row"]))

    def finish(self, keys: Sequence[str], seconds: dict[str, float], started: str, ended: str) -> dict[str, int]:
        """Put every file into its final form: `keys` in their order, after what earlier runs left of other inputs.

        Returns:
            Number of rows by status.
        """
        current = set(keys)
        order = [key for key in self.journal.keys() if key not in current] + list(keys)  # noqa: SIM118
        self._csv.close()
        counts = self._write_table(order)
        self._write_log(order)
        if "regions" in stages.filled(self._run["fingerprints"]):
            self._write_regions(order)
        self.journal.rewrite(order)
        run = {key: value for key, value in self._run.items() if key != "started_with_overwrite"} | {
            "finished": True,
            "counts": {"total": len(order), **counts},
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "started": started,
            "ended": ended,
        }
        write_whole(self.path / "run.json", _json(run), durable=True)
        return counts

    def _write_table(self, keys: list[str]) -> dict[str, int]:
        counts: Counter[str] = Counter()
        with whole_file(self.path / "results.csv", durable=True) as file:
            file.write(csv_line(self.columns, {name: name for name in self.columns}))
            for entry in self.journal.entries(keys):
                counts[entry["row"]["status"]] += 1
                file.write(csv_line(self.columns, entry["row"]))
        return {status: counts[status] for status in ("ok", "refused", "failed")}

    def _write_log(self, keys: list[str]) -> None:
        traces = (e["row"]["image"] + "\n" + e["trace"] for e in self.journal.entries(keys) if e["trace"])
        first = next(traces, None)
        if first is None:
            (self.path / "run.log").unlink(missing_ok=True)
            return
        with whole_file(self.path / "run.log") as file:
            file.write((first + "\n").encode("utf-8", "backslashreplace"))
            for text in traces:
                file.write((text + "\n").encode("utf-8", "backslashreplace"))

    def _write_regions(self, keys: list[str]) -> None:
        info = {"description": f"Regions to look at, by {PROGRAM} {self.identity.version}. {NOTICE}"}
        with whole_file(self.path / "regions.json", durable=True) as file:
            write_coco(file, lambda: self.journal.entries(keys), self._run["classes"], info)


def _merged(before: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the stages, with those that an earlier, longer chain ran."""
    out = dict(about)
    for key, value in about.items():
        if key in ("config", "hashes") and isinstance(before.get(key), dict):
            out[key] = {**before[key], **value}
    return out


def _json(value: Any) -> bytes:
    return (json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def _plain(value: Any) -> Any:
    """The value with null for numbers that JSON does not have: a card may hold NaN for what could not be fitted."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _said(shard: dict[str, int] | None) -> str:
    return f"{shard['number']}/{shard['of']} of {shard['inputs']} inputs" if shard else "all of them"


def run_info(folder: Path) -> dict[str, Any]:
    """`run.json` of a results folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another program's.
    """
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if not isinstance(info, dict) or info.get("program") != PROGRAM:
        raise ValueError("it does not name this program")
    return info


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """The rows of `results.csv` as text by column; a last line that a kill tore is left out."""
    with open(folder / "results.csv", "rb") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 1))
        torn = file.read() != b"\n"
    with open(folder / "results.csv", encoding="utf-8", errors="replace", newline="") as table:
        last = None
        for row in csv.DictReader(table):
            if last is not None:
                yield last
            last = row
        if last is not None and not torn:
            yield last
