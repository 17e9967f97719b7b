"""What can be told of a results folder before anything heavy is imported."""

from __future__ import annotations

import json
from pathlib import Path

REPORT = "report.html"


def finished(folder: Path) -> bool:
    """Whether a folder says that its run has finished; a quick look, without checks."""
    try:
        said = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("finished") is True


def has_report(folder: Path) -> bool:
    """Whether the report of a finished folder is there, made after its results."""
    try:
        return (folder / REPORT).stat().st_mtime_ns >= (folder / "run.json").stat().st_mtime_ns
    except OSError:
        return False
