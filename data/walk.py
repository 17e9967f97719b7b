"""Files below a folder: links to folders are followed, and none is entered twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_SKIPPED = (".", "__MACOSX")  # hidden folders, and those that archives of macOS bring


def files_below(root: Path, suffixes: tuple[str, ...] | None = None) -> Iterator[Path]:
    """Files below `root`, by folder and name; hidden ones left out, and folders that cannot be read.

    Args:
        root: the folder.
        suffixes: endings in lower case, such as ``(".png",)``; None takes all files.
    """
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:  # a link back up, or a second one to the same folder
            continue
        seen.add(real)
        files, folders = entries_of(here)
        yield from (here / name for name in files if suffixes is None or name.lower().endswith(suffixes))
        waiting += [here / name for name in reversed(folders)]


def entries_of(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, sorted."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(_SKIPPED):
                    continue
                try:
                    (folders if entry.is_dir() else files).append(entry.name)
                except OSError:  # a link to itself
                    continue
    except OSError:
        pass
    return sorted(files), sorted(folders)
