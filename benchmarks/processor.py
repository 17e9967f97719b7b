"""What a film costs in processor time, part by part: for comparing two states of the code on a machine that is busy.

    python benchmarks/processor.py FOLDER [--films 40] [--runtime onnx]

One thread does all of it: reading, each stage of the chain on batches of eight, and the default outputs. Starting, the
helpers that read, the journal and the report are not in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from cxr_pipeline.data.radiograph import read
from cxr_pipeline.models.runtimes import Network
from cxr_pipeline.results.filmfiles import FilmFiles
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.reading import file_hash
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.run.spec import ChainSpec
from cxr_pipeline.stages.base import Record

BATCH = 8


class Costs(Counter[str]):
    """Seconds of processor time by part."""

    def of(self, part: str, step: Callable[..., Any], *arguments: Any) -> Any:
        """Call a step and count what it takes."""
        begun = time.process_time()
        try:
            return step(*arguments)
        finally:
            self[part] += time.process_time() - begun

    def network(self, name: str, network: Network) -> Network:
        """The network, counted."""
        return lambda batch: self.of(f"  of it the network of {name}", network, batch)


def main() -> None:
    """Print a line per part."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("folder")
    given.add_argument("--films", type=int, default=40)
    given.add_argument("--runtime", default="onnx")
    options = given.parse_args()
    cv2.setNumThreads(1)
    chain = ChainSpec("tb", runtime=options.runtime, threads=1).open()
    paths = [Path(item.path) for item in find_inputs([options.folder])][: options.films]
    costs = Costs()
    for stage in chain.stages:
        if hasattr(stage, "network"):
            stage.network = costs.network(stage.name, stage.network)
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
        classes = next((stage.classes for stage in chain.stages if stage.classes), ())
        files = FilmFiles(Path(name), chain.identity, classes)
        files.make_folders()
        reader = partial(read, **Runner(chain.stages, Path(name)).how)
        for start in range(0, len(paths), BATCH):
            some = paths[start : start + BATCH]
            hashes = [costs.of("checksum", file_hash, path) for path in some]
            records = [Record(costs.of("read", reader, path)) for path in some]
            for stage in chain.stages:
                records = costs.of(stage.name, stage.run, records)
            for path, sha256, record in zip(some, hashes, records, strict=True):
                costs.of("write", files.write, str(path), sha256, record)
    total = sum(spent for part, spent in costs.items() if not part.startswith(" "))
    print(f"{len(paths)} films, ms of processor time a film: {1000 * total / len(paths):.1f}")
    for part, spent in costs.items():
        print(f"{part:36}{1000 * spent / len(paths):8.1f}")


if __name__ == "__main__":
    main()
