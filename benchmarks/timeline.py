"""Draws what each thread of a run does, and when the cores wait.

    python benchmarks/timeline.py --out timeline.png [--films FOLDER] [--count 96] [--seconds 1.5]

A lane per thread: reading (which waits for its helper process to decode), the chain's stages where films are judged,
and writing. Below, how many cores were busy with the run and its helpers, from the system's own count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from end_to_end import films, write

from cxr_pipeline.about import cores
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.run.spec import ChainSpec

COLOURS = {
    "read": "#4477aa",
    "segment": "#ee6677",
    "classify": "#228833",
    "localize": "#ccbb44",
    "measure": "#66ccee",
    "write": "#aa3377",
}
EVERY = 0.02  # seconds between two looks at the cores; the system counts in hundredths


class Span(NamedTuple):
    """What a thread did from when to when, in seconds since the run began."""

    thread: str
    part: str
    begun: float
    ended: float


class Traced(Runner):
    """A runner that notes each of its steps."""

    spans: list[Span]
    origin: float

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note a block, and count it."""
        begun = time.perf_counter()
        with super().timed(part):
            yield
        name = threading.current_thread().name
        self.spans.append(Span(name, part, begun - self.origin, time.perf_counter() - self.origin))


def _busy(process: int) -> float:
    """Seconds of processors that this process and those it started and that still run have taken."""
    total = 0.0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(folder.name) == process or int(fields[1]) == process:
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def traced(folder: Path, out: Path, *, alone: bool) -> tuple[list[Span], list[tuple[float, float]]]:
    """The steps of a run over a folder, and (seconds, seconds of processors) as they grew.

    Args:
        alone: one thread judges, with all cores for each network, and not as many as there is room for.
    """
    chain = ChainSpec("tb").open(side_by_side=not alone)
    runner = Traced(chain.stages, out, chain.identity, judges=chain.judges)
    runner.spans, runner.origin = [], time.perf_counter()
    looks: list[tuple[float, float]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(EVERY):
            looks.append((time.perf_counter() - runner.origin, _busy(os.getpid())))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        runner.run(find_inputs([str(folder)]))
    finally:
        over.set()
        watching.join()
    return runner.spans, looks


def draw(spans: list[Span], looks: list[tuple[float, float]], path: Path, start: float, seconds: float) -> None:
    """The picture of a stretch of a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    lanes, below = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    names = sorted({span.thread for span in spans}, key=lambda name: ("write" in name, "read" not in name, name))
    for span in spans:
        where = (names.index(span.thread) - 0.4, 0.8)
        lanes.broken_barh([(span.begun, span.ended - span.begun)], where, color=COLOURS.get(span.part, "grey"))
    lanes.set_yticks(range(len(names)), ["cxr-judge" if name == "MainThread" else name for name in names])
    lanes.invert_yaxis()
    lanes.legend(
        handles=[Patch(color=colour, label=part) for part, colour in COLOURS.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, 1.15),
        ncols=6,
        frameon=False,
    )
    wide = 5  # a mean over so many looks: the system counts coarsely
    pairs = list(zip(looks[:-wide], looks[wide:], strict=True))
    below.step([a[0] for a, _ in pairs], [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs], where="post", color="black")
    below.axhline(cores(), color="grey", linewidth=0.8, linestyle="--")
    below.set(xlim=(start, start + seconds), ylim=(0, cores() * 1.2), ylabel="cores busy", xlabel="seconds")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Trace a run, draw it, and print how long each thread worked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--start", type=float, default=1.0, help="first second of the picture")
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--alone", action="store_true", help="one thread judges, as a stage may ask for")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
        folder = Path(name) / "films"
        write("jpeg512", films(given.films, given.count), folder)
        spans, looks = traced(folder, Path(name) / "out", alone=given.alone)
    first, last = min(span.begun for span in spans), max(span.ended for span in spans)
    print(f"{given.count} films in {last - first:.2f} s, {looks[-1][1] - looks[0][1]:.2f} s of processors")
    for thread in sorted({span.thread for span in spans}):
        mine = sorted(span for span in spans if span.thread == thread)
        idle = sum(max(0.0, b.begun - a.ended) for a, b in pairwise(sorted(mine, key=lambda span: span.begun)))
        print(f"{thread:14}{sum(span.ended - span.begun for span in mine):8.2f} s at work, {idle:6.2f} between")
    draw(spans, looks, given.out, given.start, given.seconds)


if __name__ == "__main__":
    main()
