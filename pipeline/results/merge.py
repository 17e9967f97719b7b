"""Folders of shards become one, as if one run had judged all inputs.

Everything is checked before anything is written: that the parts are those of one run, that each holds what it promises,
and that every file is what its part wrote.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_pipeline import stages
from cxr_pipeline.data.files import PRIVATE, file_sha256, folder_mode, write_text
from cxr_pipeline.data.locks import FolderLock
from cxr_pipeline.results.entries import read_places
from cxr_pipeline.results.folder import LAYOUT, Identity, ResultsError, ResultsFolder
from cxr_pipeline.results.journal import JournalReader
from cxr_pipeline.results.outputs import chosen, output_names
from cxr_pipeline.results.reader import ResultsReader, inside, wrong_files
from cxr_pipeline.results.worklist import write_worklist

_ABOUT = ("weights", "hashes", "bundles", "decided", "config", "versions", "arguments")
_NAMED = 5  # films that an error names


@dataclass(frozen=True)
class _Part:
    """A folder to merge: what its run.json says, and its inputs' places among all."""

    folder: Path
    run: dict[str, Any]
    journal: JournalReader
    places: dict[str, int]


def merge(folders: Sequence[Path], out: Path, *, mode: int = PRIVATE) -> dict[str, int]:
    """Join the finished results folders of all shards of a run.

    Rows stand in the order that one run over all inputs would have given them. Files are linked where the file system
    can, and copied elsewhere. Called again after a kill, it goes on.

    Args:
        mode: permissions of the files that are written anew.

    Returns:
        Number of rows by status.

    Raises:
        ResultsError: a folder is no finished shard, or `out` itself; shards are missing or there twice, or were made
            with different weights, settings or versions; a part lacks something that it promised. Nothing was written.
        OSError: the disk takes no more.
    """
    _check_names(folders, out)
    with ExitStack() as held:
        for folder in folders:
            if not folder.is_dir():
                raise ResultsError(f"{folder} is no folder. Give folders of `pipeline run --shard`")
            lock = FolderLock(folder)
            if (folder / "run.json").is_file() and not lock.acquire():
                raise ResultsError(f"a run is working in {folder}. Wait for it, then merge")
            held.callback(lock.release)
        parts = [_opened(folder) for folder in folders]
        _check_one_run(parts)
        order = _check_all_there(parts)
        first = parts[0].run
        about = {name: first[name] for name in _ABOUT if name in first}
        identity = Identity(
            first["version"],
            first["runtime"],
            first["fingerprints"],
            tuple(first.get("classes", ())),
            about,
            tuple(first.get("columns", ())),
        )
        with ResultsFolder(out, identity, outputs=_outputs(parts), mode=mode) as whole:
            for _, key, part in order:
                entry = part.journal[key]
                for name in entry["files"]:
                    (out / name).parent.mkdir(mode=folder_mode(mode), exist_ok=True)
                    _place(inside(part.folder, name), inside(out, name))
                whole.adopt(key, entry)
            seconds = {
                name: sum(part.run.get("seconds", {}).get(name, 0) for part in parts)
                for name in first.get("seconds", {})
            }
            started = min(part.run["started"] for part in parts)
            ended = max(part.run["ended"] for part in parts)
            counts = whole.finish([key for _, key, _ in order], seconds, started, ended)
            write_worklist(out)
            return counts


def write_places(folder: Path, places: dict[str, int], *, mode: int = PRIVATE) -> None:
    """`shard.csv`: the place of each of a shard's inputs among all, by key."""
    lines = [f"{key},{place}\n" for key, place in places.items()]
    write_text(folder / "shard.csv", "".join(["key,place\n", *lines]), mode=mode)


def _check_names(folders: Sequence[Path], out: Path) -> None:
    real = [os.path.realpath(folder) for folder in folders]
    if os.path.realpath(out) in real:
        raise ResultsError(f"--out {out} is one of the parts. Give a folder of its own for all of them together")
    for number, folder in enumerate(folders):
        if real[number] in real[:number]:
            raise ResultsError(f"{folder} is given twice. Give each part once")


def _opened(folder: Path) -> _Part:
    reader = ResultsReader(folder)
    run = reader.info
    if not run.get("finished"):
        raise ResultsError(f"the run in {folder} has not finished. Give its command again, then merge")
    if not run.get("shard"):
        raise ResultsError(f"{folder} was not made with --shard. Only the shards of one run can be merged")
    missing = [
        name for name in ("version", "runtime", "fingerprints", "counts", "started", "ended") if not run.get(name)
    ]
    if missing or run.get("layout") != LAYOUT or "promised" not in run:
        what = f"its run.json lacks {', '.join(missing)}" if missing else "an earlier version of this program made it"
        raise ResultsError(f"{folder} cannot be merged: {what}. Run its shard again with --overwrite, then merge")
    if any(name not in stages.names() for name in run["fingerprints"]):
        raise ResultsError(f"{folder} names stages that this version does not have: {', '.join(run['fingerprints'])}")
    return _Part(folder, run, reader.journal, read_places(folder))


def _check_one_run(parts: Sequence[_Part]) -> None:
    """Whether the parts are all shards of one run."""
    first = parts[0]
    for part in parts:
        for name in ("version", "runtime", "classes", "fingerprints"):
            if part.run.get(name) != first.run.get(name):
                raise ResultsError(
                    f"{part.folder} and {first.folder} were made with different {name}. Run one of them again"
                )
        for name in ("of", "inputs"):
            if part.run["shard"][name] != first.run["shard"][name]:
                raise ResultsError(
                    f"{part.folder} and {first.folder} are no shards of one run: {name} is {part.run['shard'][name]} "
                    f"in one and {first.run['shard'][name]} in the other. Run both with the same inputs and the same n"
                )
    numbers = [part.run["shard"]["number"] for part in parts]
    missing = sorted(set(range(1, first.run["shard"]["of"] + 1)) - set(numbers))
    if missing:
        raise ResultsError(f"shard(s) {', '.join(map(str, missing))} of {first.run['shard']['of']} are missing")
    if len(set(numbers)) < len(numbers):
        raise ResultsError(f"a shard is there twice: {', '.join(map(str, sorted(numbers)))}")


def _check_all_there(parts: Sequence[_Part]) -> list[tuple[int, str, _Part]]:
    """The inputs of all parts in their order, after each part was found to hold all that it promises."""
    order: list[tuple[int, str, _Part]] = []
    ids: dict[str, Path] = {}
    for part in parts:
        _check_part(part, ids)
        order += [(place, key, part) for key, place in part.places.items()]
    order.sort(key=lambda one: one[:2])
    total = parts[0].run["shard"]["inputs"]
    if [place for place, _, _ in order] != list(range(total)):
        filled = {place for place, _, _ in order}
        raise ResultsError(
            f"the parts do not add up: {len(order)} inputs in them, {total} in the run, {total - len(filled)} places "
            "missing. Run all shards with the same inputs, then merge"
        )
    return order


def _check_part(part: _Part, ids: dict[str, Path]) -> None:
    """Whether a part holds the films and files that it promises; `ids` are those of the parts before, and grow."""
    folder, promised = part.folder, part.run["promised"]
    if len(part.places) != promised["films"] or file_sha256(folder / "shard.csv") != promised["sha256"]:
        raise _lacking(folder, f"its shard.csv lists {len(part.places)} inputs and is not the one of its run")
    if promised["films"] != part.run["counts"].get("total"):
        raise _lacking(folder, f"its run.json counts {part.run['counts'].get('total')} films")
    absent, wrong = [], []
    for key in part.places:
        entry = part.journal.get(key)
        if entry is None:
            absent.append(key)
            continue
        film = entry["row"]["id"].casefold()
        if film in ids:
            raise _lacking(folder, f"its film {entry['row']['id']} has the name of another one in {ids[film]}")
        ids[film] = folder
        wrong += wrong_files(folder, entry)
    if absent:
        damaged = f" ({part.journal.damaged} damaged lines)" if part.journal.damaged else ""
        raise _lacking(folder, f"its journal lacks {len(absent)} of its films{damaged}")
    if wrong:
        shown = ", ".join(wrong[:_NAMED]) + (f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else "")
        raise _lacking(folder, f"missing or not as they were written: {shown}")


def _lacking(folder: Path, what: str) -> ResultsError:
    return ResultsError(
        f"{folder} does not hold what it promises: {what}. Nothing was written. Run its shard again with --verify, "
        "then merge"
    )


def _outputs(parts: Sequence[_Part]) -> tuple[Any, ...]:
    """The outputs that the parts have, as far as this installation knows them."""
    keys = {key for part in parts for key in part.run.get("outputs", ())}
    names = [name for name in output_names() if name in keys]
    return chosen(names, native_heatmaps="heatmaps native" in keys, check=False)


def _place(source: Path, target: Path) -> None:
    """A link to a file, or a copy, under its final name at once."""
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copyfile(source, part, follow_symlinks=False)
        shutil.copymode(source, part)
    os.replace(part, target)
    part.unlink(missing_ok=True)  # renaming onto another link of the same file leaves both names
