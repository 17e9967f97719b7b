"""`make run` hands paths on as they were given."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("given", "name"), [("mix/日本 語", "日本 語"), ("a b/c/", "c"), ("films", "films"), ("film 1.png", "film 1.png")]
)
def test_blanks_in_paths_stay(tmp_path, given, name):
    (tmp_path / "pipeline").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    (tmp_path / "pipeline").chmod(0o755)
    # -o: the virtual environment counts as made.
    call = ["make", "--silent", "-o", ".venv/ready", "run", f"BIN={tmp_path}", f"INPUT={given}", "OUT=my results"]
    called = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert called == f"<run><{given}><--out><my results/run-{name}>"
