"""The folder that `pipeline run` leaves: its writer. What reads it: `results.reader`; what lies in it: `FilmFiles`.

::

    DIR/
      results.csv      one row per input, failures included; see `results.outputs.columns`
      worklist.csv     what to read first, and why, see `results.worklist`; worklist.xlsx too, with openpyxl
      regions.json     COCO: images, categories, annotations with bbox (native pixels), score, side and zone
      run.json         what made it: versions, weights and their hashes, config, counts, seconds
      masks/<id>.png  overlays/<id>.jpg      and what else `--outputs` names, see `results.outputs`
      journal.jsonl    one line per finished input, with the checksums of its files: what a run goes on from
      run.log          tracebacks of films that failed in a way nobody foresaw; absent where there are none
      report.html      all of it to look at, made from the files above by `report.report`
      spool/  pulled/  sent.jsonl  left_alone.csv    of `listen` and `run --from`, see `dicom.spool` and `dicom.send`
      left_out.csv     files among the inputs that are no films, with the reason; absent where all are
      shard.csv        of a shard only: the key of each of its inputs, and its place among all of them
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from cxr_pipeline import stages
from cxr_pipeline.about import NOTICE, PROGRAM
from cxr_pipeline.data.files import PRIVATE, csv_line, file_sha256, folder_mode, sweep, whole_file, write_json
from cxr_pipeline.data.locks import LockError
from cxr_pipeline.results.filmfiles import FOLDERS, FilmFiles
from cxr_pipeline.results.identity import Identity, ResultsError
from cxr_pipeline.results.journal import FolderLock, Journal
from cxr_pipeline.results.outputs import Output, chosen, columns, output_class, output_names
from cxr_pipeline.results.outputs.table import Table, cells
from cxr_pipeline.results.quick import REPORT
from cxr_pipeline.results.reader import rows, run_info
from cxr_pipeline.stages.base import Record

LAYOUT = 2  # of the folder; those of another layout are not gone on with

_FILES = (
    "results.csv",
    "worklist.csv",
    "worklist.xlsx",
    "regions.json",
    "journal.jsonl",
    "run.log",
    "shard.csv",
    "left_out.csv",
    REPORT,
)

__all__ = ["FOLDERS", "REPORT", "Identity", "ResultsError", "ResultsFolder", "rows", "run_info"]


class ResultsFolder:
    """A results folder held open by one run. Use as a context: the lock is given back at its end.

    Args:
        path: the folder; made where it does not exist.
        identity: what makes the results.
        overwrite: discard what another run left there, whatever made it.
        shard: (i, n) where it holds the i-th of n parts of `total` inputs.
        outputs: what is written of each film; by default what a reader needs, see `results.outputs.chosen`.
        mode: permissions of files, of which a stricter umask takes away; films are patients.
        verify: read again every file of the films that are done, and not only a sample.

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
        outputs: Sequence[Output] | None = None,
        mode: int = PRIVATE,
        verify: bool = False,
    ) -> None:
        self.path, self.identity = path, identity
        self.outputs = chosen() if outputs is None else tuple(outputs)
        self.mode, self._verify = mode, verify
        self._shard = {"number": shard[0], "of": shard[1], "inputs": total} if shard else None
        self._guard = threading.Lock()
        self._lock = FolderLock(path, mode)
        self.columns = columns(identity.classes, identity.columns)
        self._check_owner()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=folder_mode(mode), exist_ok=True)
        try:
            alone = self._lock.acquire()
        except LockError as error:
            raise ResultsError(str(error)) from None
        if not alone:
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
            self._write_run({"program": PROGRAM, "clearing": True})
            self._clear()
            before = None
        about = self.identity.about
        if before is not None:
            self._check_identity(before)
            about = merged(before, about)
        (self.path / REPORT).unlink(missing_ok=True)  # it tells of what was here before
        self._run = {
            "program": PROGRAM,
            "notice": NOTICE,
            "finished": False,
            "layout": LAYOUT,
            "version": self.identity.version,
            "runtime": self.identity.runtime,
            "classes": list(self.identity.classes) or (before or {}).get("classes", []),
            "fingerprints": {**(before or {}).get("fingerprints", {}), **self.identity.stages},
            "outputs": sorted({*(before or {}).get("outputs", []), *(one.key for one in self.outputs)}),
            "started_with_overwrite": overwrite,
            **({"shard": self._shard} if self._shard else {}),
            **about,
        }
        of_outputs = (column for one in self.outputs for column in one.columns)
        further = list(dict.fromkeys([*(before or {}).get("columns", []), *self.identity.columns, *of_outputs]))
        if further:
            self._run["columns"] = further
        self.columns = columns(self._run["classes"], further)
        self.films = self._film_files(self._run["classes"])
        self._write_run(self._run)
        self.films.make_folders()
        sweep(self.path)
        self.films.sweep()
        self.journal = Journal(self.path / "journal.jsonl", mode=self.mode)
        self._write_table(self.journal.keys())
        self._csv: IO[bytes] = open(self.path / "results.csv", "ab", buffering=0)  # noqa: SIM115  (held until close)

    def _film_files(self, classes: Sequence[str] = ()) -> FilmFiles:
        return FilmFiles(self.path, self.identity, classes, outputs=self.outputs, mode=self.mode, verify=self._verify)

    def _write_run(self, run: dict[str, Any]) -> None:
        write_json(self.path / "run.json", run, durable=True, mode=self.mode)

    def _goes_on(self, before: dict[str, Any]) -> bool:
        """Whether a run with --overwrite was killed and is called again: then it goes on, like any other."""
        same = before.get("fingerprints") == self.identity.stages and self._difference(before) is None
        return same and not before.get("finished") and bool(before.get("started_with_overwrite"))

    def _difference(self, before: dict[str, Any]) -> str | None:
        return difference(before, self.identity, self._shard)

    def _check_identity(self, before: dict[str, Any]) -> None:
        found = self._difference(before)
        if found is not None:
            raise ResultsError(
                f"{self.path} holds results made with {found}. Choose another --out, or discard them with --overwrite"
            )

    def _clear(self) -> None:
        self._film_files().clear()
        for name in (*_FILES, *(one.summary for one in self.outputs if one.summary)):
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
            self._csv.write(csv_line(self.columns, cells(entry["row"])))

    def refresh(self) -> None:
        """Write the files of all films as they stand now, while the folder stays open for more.

        Not while another thread saves films.
        """
        order = self.journal.keys()
        self._csv.close()
        try:
            self._write_all(order)
        finally:
            self._csv = open(self.path / "results.csv", "ab", buffering=0)  # noqa: SIM115  (held until close)

    def _write_all(self, order: list[str]) -> tuple[dict[str, int], list[str]]:
        """The files of all films, in this order; how many rows of each status there are, and names of the tables."""
        counts = self._write_table(order)
        tables = ["results.csv", "journal.jsonl"]
        self._write_log(order)
        for one in self._summaries():
            if one.wants_summary(self._run):
                tables.append(one.summary)
                with whole_file(self.path / one.summary, durable=True, mode=self.mode) as file:
                    one.write_summary(file, lambda: self.journal.entries(order), self._run)
        return counts, tables

    def finish(self, keys: Sequence[str], seconds: dict[str, float], started: str, ended: str) -> dict[str, int]:
        """Put every file into its final form: `keys` in their order, after what earlier runs left of other inputs.

        Returns:
            Number of rows by status.
        """
        promised = self._promise(keys)
        current = set(keys)
        order = [key for key in self.journal.keys() if key not in current] + list(keys)  # noqa: SIM118
        self._csv.close()
        counts, tables = self._write_all(order)
        self.journal.rewrite(order)
        run = {key: value for key, value in self._run.items() if key != "started_with_overwrite"} | {
            "finished": True,
            **promised,
            "counts": {"total": len(order), **counts},
            "tables": {name: file_sha256(self.path / name) for name in tables},
            "mode": f"{self.mode:o}",
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "started": started,
            "ended": ended,
        }
        self._write_run(run)
        return counts

    def _summaries(self) -> list[Output]:
        """The outputs with a file of all films: those asked for now, and those that an earlier run left here."""
        mine = {one.name: one for one in self.outputs}
        names = [*mine, *(name for name in self._run["outputs"] if name not in mine and name in output_names())]
        made = [mine.get(name) or output_class(name)() for name in names]
        return [one for one in made if one.summary and one.name != "table"]

    def _promise(self, keys: Sequence[str]) -> dict[str, Any]:
        """What a shard promises to `merge`: its films, and the checksum of its list of them."""
        if self._shard is None:
            return {}
        from cxr_pipeline.results.entries import read_places

        if set(read_places(self.path)) != set(keys):
            raise ResultsError(f"{self.path / 'shard.csv'} does not list what was judged. Run this shard again")
        return {"promised": {"films": len(keys), "sha256": file_sha256(self.path / "shard.csv")}}

    def _write_table(self, keys: list[str]) -> dict[str, int]:
        counts: Counter[str] = Counter()

        def entries() -> Iterator[dict[str, Any]]:
            for entry in self.journal.entries(keys):
                counts[entry["row"]["status"]] += 1
                yield entry

        with whole_file(self.path / "results.csv", durable=True, mode=self.mode) as file:
            Table().write_summary(file, entries, self._run)
        return {status: counts[status] for status in ("ok", "refused", "failed")}

    def _write_log(self, keys: list[str]) -> None:
        traces = (e["row"]["image"] + "\n" + e["trace"] for e in self.journal.entries(keys) if e["trace"])
        first = next(traces, None)
        if first is None:
            (self.path / "run.log").unlink(missing_ok=True)
            return
        with whole_file(self.path / "run.log", mode=self.mode) as file:
            file.write((first + "\n").encode("utf-8", "backslashreplace"))
            for text in traces:
                file.write((text + "\n").encode("utf-8", "backslashreplace"))


def difference(before: dict[str, Any], identity: Identity, shard: dict[str, int] | None) -> str | None:
    """What keeps a run from going on in a folder, as words after "made with"; None where nothing does.

    Args:
        before: the folder's run.json.
        identity: of the run's chain.
        shard: of the run, as run.json has it; None where it judges all inputs.
    """
    if before.get("layout") != LAYOUT:
        return "an earlier version of this program, whose folders looked otherwise"
    for name, value in (("version", identity.version), ("runtime", identity.runtime)):
        if before.get(name) != value:
            return f"another {name} ({before.get(name)}; now {value})"
    if before.get("shard") != shard:
        return f"another shard or other inputs ({_said(before.get('shard'))}; now {_said(shard)})"
    for name, value in identity.stages.items():
        if before.get("fingerprints", {}).get(name, value) != value:
            return f"other weights or another config (stage {name})"
    had = stages.ends(list(before.get("fingerprints", {})))
    if not (stages.covers(had, identity.last) or stages.covers(identity.last, had)):
        # Its rows would lose what only the other chain fills in.
        return f"other stages (up to {had}; now up to {identity.last}: name them all, by --stage and --also)"
    return None


def merged(before: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the stages, with those that an earlier, longer chain ran."""
    out = dict(about)
    for key, value in about.items():
        if key in ("config", "hashes", "bundles") and isinstance(before.get(key), dict):
            out[key] = {**before[key], **value}
    if "classify" not in about.get("bundles", {"classify": ""}) and "decided" in before:
        out["decided"] = before["decided"]
    return out


def _said(shard: dict[str, int] | None) -> str:
    return f"{shard['number']}/{shard['of']} of {shard['inputs']} inputs" if shard else "all of them"
