"""What is written over an older file leaves that one whole until all of the new one is there, full disk or kill."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data import files
from cxr_pipeline.data.layouts.base import write_png
from cxr_pipeline.models.figures import plots
from cxr_pipeline.models.store import KERAS_FILE, write_card
from cxr_pipeline.train import training

resource = pytest.importorskip("resource", reason="the size of files is bounded so on POSIX alone")

NOISE = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)


@pytest.fixture(autouse=True)
def weights(tmp_path):
    """A stage's weights, to be taken into another training's folder."""
    bundle = tmp_path / "weights" / "segment"
    bundle.mkdir(parents=True)
    (bundle / KERAS_FILE).write_bytes(NOISE.tobytes())
    write_card(bundle, {"decisions": {}})


def _take(path):
    training._take("segment", str(path.parent / "weights"), load_config("tb"), path.parent)


WRITERS = {
    "a curve": ("curve.png", lambda path: plots.confusion(np.array([[3, 1], [0, 2]]), ["TB", "NORM"], path)),
    "a sheet of films": ("sheet.png", lambda path: plots.contact_sheet([NOISE], ["film"], path)),
    "a mask of a data set": ("mask.png", lambda path: write_png(path, NOISE)),
    "weights taken": (KERAS_FILE, _take),
}


@contextmanager
def _small_files(most):
    """Files may not grow beyond `most` bytes: writing fails as on a full disk."""
    before, compiled = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # Python would keep the first part of what it compiles meanwhile
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = compiled


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_older_file_whole(name, tmp_path):
    """The bound is that of a file, which meets the writer at the same place as a disk that fills up."""
    file, write = WRITERS[name]
    path = tmp_path / file
    path.write_bytes(b"older")
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)), _small_files(4096):
        write(path)
    assert path.read_bytes() == b"older"
    assert not list(tmp_path.glob(f".*{files.PART}"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_kill_leaves_the_older_file_whole(name, tmp_path, monkeypatch):
    """All that a killed writer can have done is under another name, which the next sweep removes."""
    file, write = WRITERS[name]
    path = tmp_path / file
    path.write_bytes(b"older")
    last = []

    def renamed(part, target):
        if os.fspath(target) == os.fspath(path):
            last.append((path.read_bytes(), os.path.basename(part)))
        os.rename(part, target)

    monkeypatch.setattr(files.os, "replace", renamed)
    write(path)
    [(older, part)] = last
    assert older == b"older"
    assert part.startswith(".")
    assert part.endswith(files.PART)
    assert path.read_bytes() != b"older"
