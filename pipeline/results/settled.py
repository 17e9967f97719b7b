"""Whether a run has nothing to do: its folder is finished, and holds just what it would leave again.

Then nothing is opened but `run.json`, the journal and the inputs: no network, no helper process, no report made anew.
Whatever differs, or cannot be told for certain, makes the run take its usual way, which checks and mends all of it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cxr_pipeline.data.files import file_sha256, plain_json
from cxr_pipeline.results.filmfiles import FilmFiles
from cxr_pipeline.results.folder import difference, merged
from cxr_pipeline.results.identity import Identity
from cxr_pipeline.results.journal import JournalReader
from cxr_pipeline.results.reader import run_info

_WORKLIST, _EXCEL = "worklist.csv", "worklist.xlsx"
_OF_THIS_CALL = ("arguments",)  # what run.json says of the call, and that changes nothing in the folder


def settled(
    folder: Path,
    identity: Identity,
    films: FilmFiles,
    keys: Sequence[str],
    hashes: Callable[[], Iterable[str]],
    shard: dict[str, int] | None = None,
) -> list[dict[str, Any]] | None:
    """The entries of all films of a finished folder, where a run would change nothing in it; else None.

    Args:
        folder: the results folder.
        identity: of the chain.
        films: that a run would make, with its outputs, mode and depth of checks.
        keys: of the inputs, in their order: their entries come last, after those of other inputs.
        hashes: gives the SHA-256 of each input in that order, "" where it cannot be read; called only where the rest
            agrees.
        shard: what run.json says of it, where the folder is to hold a part of the inputs.
    """
    try:
        run = run_info(folder)
        if not _same_run(folder, run, identity, films, shard):
            return None
        journal = JournalReader(folder / "journal.jsonl")
        if journal.damaged or not keys or journal.keys()[-len(keys) :] != list(keys):
            return None
        entries = list(journal)
    except (OSError, ValueError):
        return None
    ours = entries[len(entries) - len(keys) :]
    for entry, sha256 in zip(ours, hashes(), strict=True):
        if not sha256 or films.done(entry, sha256) is None:
            return None
    return entries


def _same_run(
    folder: Path, run: dict[str, Any], identity: Identity, films: FilmFiles, shard: dict[str, int] | None
) -> bool:
    """Whether a run with this identity would write the same `run.json` and tables again."""
    if not run.get("finished") or difference(run, identity, shard) is not None:
        return False
    about = {key: value for key, value in merged(run, identity.about).items() if key not in _OF_THIS_CALL}
    if any(run.get(key) != value for key, value in _plain(about).items()):
        return False
    if not {one.key for one in films.outputs} <= set(run["outputs"]) or run.get("mode") != f"{films.mode:o}":
        return False
    tables = run.get("tables")
    if not isinstance(tables, dict) or any(file_sha256(folder / name) != sha for name, sha in tables.items()):
        return False
    # Both are made after run.json: where one is older, or missing, a run was killed before it made it anew.
    written = (folder / "run.json").stat().st_mtime_ns
    late = [_WORKLIST, *([_EXCEL] if importlib.util.find_spec("openpyxl") is not None else [])]
    return all((folder / name).stat().st_mtime_ns >= written for name in late)


def _plain(about: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(plain_json(about)))
