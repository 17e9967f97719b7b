"""How long a call takes from pressing enter: to its first result, and where nothing is new to do.

    python benchmarks/start.py [--films FOLDER] [--rounds 3] [--count 6]

Seconds that pass, and processor time of the process and its helpers: the latter hardly changes on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from end_to_end import films, write  # noqa: E402


def call(folder: Path, out: Path) -> dict[str, float]:
    """Seconds of one run: to the line that tells of the first film, to the end, and of processors."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "cxr_pipeline.cli.main", "run", str(folder), "--out", str(out)]
    first = float("nan")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "films done" in line and first != first:
                first = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processors = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"first": first, "end": time.perf_counter() - begun, "processors": processors}


def main() -> None:
    """Print the medians and ranges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=6)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
        folder = Path(name) / "films"
        write("jpeg512", films(told.films, told.count), folder)
        call(folder, Path(name) / "warm")  # what the first call compiles, later ones find
        rounds: dict[str, list[dict[str, float]]] = {"new": [], "nothing new": []}
        for number in range(told.rounds):
            for kind in rounds:
                rounds[kind].append(call(folder, Path(name) / str(number)))
    for kind, runs in rounds.items():
        said = []
        for part in ("first", "end", "processors"):
            values = [run[part] for run in runs]
            said.append(f"{part} {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
        print(f"{kind:12}{', '.join(said)}")


if __name__ == "__main__":
    main()
