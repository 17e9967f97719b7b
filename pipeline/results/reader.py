"""Reading a results folder: the one way for the API, the report, `merge` and a run that goes on.

A folder may have been made anywhere, and damaged on the way. Nothing outside of it is opened, whatever its files say.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from cxr_pipeline.data.files import NotRegularError, csv_rows, file_sha256, open_regular, read_regular, sha256_of
from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.results.journal import JournalReader

_RUN = 64_000_000  # bytes of run.json


def run_info(folder: Path) -> dict[str, Any]:
    """`run.json` of a results folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another program's.
    """
    path = folder / "run.json"
    try:
        data = read_regular(path, _RUN)
        from cxr_pipeline.results.entries import parse_run  # with pydantic, which a new folder does not need

        return parse_run(data)
    except NotRegularError as error:
        raise ValueError(error.strerror) from None


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """The rows of `results.csv` as text by column; a last line that a kill tore is left out.

    Raises:
        OSError: the file cannot be read.
    """
    with open_regular(folder / "results.csv") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 1))
        torn = file.read() != b"\n"
        file.seek(0)
        last = None
        for row in csv_rows(io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")):
            if "score" in row:  # of weights that do not know TB; within the program it has one name
                row.setdefault("tb_score", row["score"])
            if last is not None:
                yield last
            last = row
        if last is not None and not torn:
            yield last


def film_file(entry: dict[str, Any], output: str) -> str | None:
    """The name of the first file that an output left of a film, below the results folder; None where there is none."""
    return next((name for name in entry["files"] if name.startswith(f"{output}/")), None)


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a results folder, never through a link that leads out of it.

    Raises:
        ResultsError: it would lie elsewhere.
    """
    path = folder / name
    if os.path.realpath(path.parent) != os.path.join(os.path.realpath(folder), os.path.dirname(os.path.normpath(name))):
        raise ResultsError(f"{path} does not lie in {folder} itself. Replace the link on the way by a folder")
    return path


def film_bytes(folder: Path, entry: dict[str, Any], output: str) -> bytes | None:
    """The first file that an output left of a film, as it was written; None where it is missing or has changed."""
    name = film_file(entry, output)
    if name is None:
        return None
    try:
        data = read_regular(inside(folder, name), entry["files"][name]["size"], follow=False)
    except (OSError, ResultsError):
        return None
    return data if sha256_of(data) == entry["files"][name]["sha256"] else None


def wrong_files(folder: Path, entry: dict[str, Any], *, sizes_only: bool = False) -> list[str]:
    """The files of a film that are missing, or are not what was written, by name below the folder.

    Args:
        sizes_only: compare sizes and not checksums: a thousand times as fast on large files.
    """
    wrong = []
    for name, facts in entry["files"].items():
        try:
            path = inside(folder, name)
            found = path.lstat()
            right = found.st_size == facts["size"] and not path.is_symlink()
            if right and not sizes_only:
                right = file_sha256(path) == facts["sha256"]
        except (OSError, ResultsError):
            right = False
        if not right:
            wrong.append(name)
    return wrong


class ResultsReader:
    """A results folder, for reading only. Iterates over the entries of its journal, as often as needed.

    Args:
        folder: what `pipeline run` or `pipeline merge` left, finished or not.

    Raises:
        ResultsError: it holds no results, or its run.json is damaged or another program's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.info = run_info(folder)
        except FileNotFoundError:
            raise ResultsError(
                f"{folder} is no results folder: it has no run.json. Give a folder of `pipeline run`"
            ) from None
        except ValueError as error:
            raise ResultsError(f"{folder / 'run.json'} is not a run of this program ({error})") from None

    @cached_property
    def journal(self) -> JournalReader:
        """The entries, of which only the places are in memory."""
        try:
            return JournalReader(self.folder / "journal.jsonl")
        except OSError as error:
            raise ResultsError(
                f"{self.folder / 'journal.jsonl'} cannot be read ({error.strerror}). Run the same command again"
            ) from None

    def __len__(self) -> int:
        return len(self.journal)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.journal)

    def rows(self) -> Iterator[dict[str, str]]:
        """See `rows`."""
        return rows(self.folder)

    def file(self, id: str, output: str) -> Path | None:
        """The path of the first file that an output left of a film; None where there is none.

        Raises:
            ResultsError: it would lie outside of the folder.
        """
        key = self._keys.get(id)
        name = film_file(self.journal[key], output) if key is not None else None
        return inside(self.folder, name) if name is not None else None

    @cached_property
    def _keys(self) -> dict[str, str]:
        """The key of each film by its id."""
        return {entry["row"]["id"]: entry["key"] for entry in self.journal}
