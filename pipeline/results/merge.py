"""Folders of shards become one, as if one run had judged all inputs."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cxr_pipeline.results.folder import Identity, ResultsError, ResultsFolder, run_info
from cxr_pipeline.results.journal import FolderLock, Journal, write_whole
from cxr_pipeline.results.worklist import write_worklist

_ABOUT = ("weights", "hashes", "bundles", "decided", "config", "versions", "arguments")


def merge(folders: Sequence[Path], out: Path) -> dict[str, int]:
    """Join the finished results folders of all shards of a run.

    Rows stand in the order that one run over all inputs would have given them. Pictures are linked where the file
    system can, and copied elsewhere. Called again after a kill, it goes on.

    Returns:
        Number of rows by status.

    Raises:
        ResultsError: a folder is no finished shard, or `out` itself; shards are missing or there twice, or were made
            with different weights, settings or versions.
        OSError: the disk takes no more.
    """
    real = [os.path.realpath(folder) for folder in folders]
    if os.path.realpath(out) in real:
        raise ResultsError(f"--out {out} is one of the parts. Give a folder of its own for all of them together")
    for number, folder in enumerate(folders):
        if real[number] in real[:number]:
            raise ResultsError(f"{folder} is given twice. Give each part once")
    with ExitStack() as held:
        for folder in folders:
            if not (folder / "run.json").is_file():
                raise ResultsError(f"{folder} is no results folder: it has no run.json. Give folders of `pipeline run`")
            lock = FolderLock(folder)
            if not lock.acquire():
                raise ResultsError(f"a run is working in {folder}. Wait for it, then merge")
            held.callback(lock.release)
        runs = [_finished(folder) for folder in folders]
        _check(folders, runs)
        order: list[tuple[int, str, Path]] = []
        for folder in folders:
            order += [(place, key, folder) for key, place in read_places(folder).items()]
        order.sort()
        about = {name: runs[0][name] for name in _ABOUT if name in runs[0]}
        identity = Identity(
            runs[0]["version"],
            runs[0]["runtime"],
            runs[0]["fingerprints"],
            tuple(runs[0]["classes"]),
            about,
            tuple(runs[0].get("columns", ())),
        )
        journals = {folder: Journal(folder / "journal.jsonl") for folder in folders}
        for journal in journals.values():
            held.callback(journal.close)
        with ResultsFolder(out, identity) as whole:
            for _, key, folder in order:
                entry = journals[folder].get(key)
                if entry is None:
                    raise ResultsError(f"{folder} lacks an input that it lists. Run its shard again, then merge")
                for kind in entry["files"]:
                    name = f"{entry['row']['id']}.png"
                    _place(folder / kind / name, out / kind / name)
                whole.adopt(key, entry)
            seconds = {name: sum(run["seconds"][name] for run in runs) for name in runs[0]["seconds"]}
            started, ended = min(run["started"] for run in runs), max(run["ended"] for run in runs)
            counts = whole.finish([key for _, key, _ in order], seconds, started, ended)
            write_worklist(out)
            return counts


def write_places(folder: Path, places: dict[str, int]) -> None:
    """`shard.csv`: the place of each of a shard's inputs among all, by key."""
    lines = [f"{key},{place}\n" for key, place in places.items()]
    write_whole(folder / "shard.csv", "".join(["key,place\n", *lines]).encode())


def read_places(folder: Path) -> dict[str, int]:
    """What `write_places` wrote into a shard's folder."""
    with open(folder / "shard.csv", encoding="utf-8", newline="") as table:
        return {row["key"]: int(row["place"]) for row in csv.DictReader(table)}


def _finished(folder: Path) -> dict[str, Any]:
    try:
        run = run_info(folder)
    except ValueError as error:
        raise ResultsError(f"{folder / 'run.json'} is not a run of this program ({error})") from None
    if not run.get("finished"):
        raise ResultsError(f"the run in {folder} has not finished. Give its command again, then merge")
    if "shard" not in run:
        raise ResultsError(f"{folder} was not made with --shard. Only the shards of one run can be merged")
    return run


def _check(folders: Sequence[Path], runs: Sequence[dict[str, Any]]) -> None:
    for folder, run in zip(folders, runs, strict=True):
        for name in ("version", "runtime", "classes", "fingerprints"):
            if run[name] != runs[0][name]:
                raise ResultsError(f"{folder} and {folders[0]} were made with different {name}. Run one of them again")
        for name in ("of", "inputs"):
            if run["shard"][name] != runs[0]["shard"][name]:
                raise ResultsError(
                    f"{folder} and {folders[0]} are no shards of one run: {name} is {run['shard'][name]} in one and "
                    f"{runs[0]['shard'][name]} in the other. Run both with the same inputs and the same n"
                )
    numbers = [run["shard"]["number"] for run in runs]
    missing = sorted(set(range(1, runs[0]["shard"]["of"] + 1)) - set(numbers))
    if missing:
        raise ResultsError(f"shard(s) {', '.join(map(str, missing))} of {runs[0]['shard']['of']} are missing")
    if len(set(numbers)) < len(numbers):
        raise ResultsError(f"a shard is there twice: {', '.join(map(str, sorted(numbers)))}")


def _place(source: Path, target: Path) -> None:
    """A link to a picture, or a copy, under its final name at once."""
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)
    part.unlink(missing_ok=True)  # renaming onto another link of the same file leaves both names
