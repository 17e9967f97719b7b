"""What the tests of importers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr_pipeline.data.layouts.write import import_dataset
from tests.data.layout_trees import TREES


@pytest.fixture
def imported(tmp_path):
    """Make the tree of a data set and import it; the table goes by file name without suffix."""

    def make(name, **options):
        home = TREES[name](tmp_path / "downloads")
        done = import_dataset(name, home, tmp_path / "out" / "manifest.csv", **options)
        table = done.manifest.table
        stems = [Path(image).stem for image in table["image"]]
        return done, table.assign(stem=stems).set_index("stem", drop=False)

    return make
