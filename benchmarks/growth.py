"""How the cost of a run grows with the number of inputs: processor time a film, memory, and a finished folder again.

    python benchmarks/growth.py [--films FOLDER] [--counts 100 1000 10000] [--engines local ray] [--chain stand-in]
                                [--side 512] [--json FILE]

The films are JPEG, the same 20 again and again under other names, each with a number of its own inside, so that no
two files are equal: every one is read, judged and written. Then the same command is given again, on the finished
folder. All processes of a run count: they are the descendants of this one, looked at four times a second.

Processor time is what other work on the machine changes least. It is what the table is to be read for; seconds are
beside it. With `--chain stand-in` thresholds judge in place of the networks, which take the same time for each film
whatever there are: what is left is all that could grow.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from end_to_end import films  # noqa: E402

from cxr_pipeline.data.synthetic import make_film  # noqa: E402

FILMS = 20  # that differ in their pixels
_EVERY = 0.25  # seconds between two looks at the processes
_STAND_IN = """
import sys
from pathlib import Path
from cxr_pipeline.results.outputs import chosen
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from tests.pipeline.fake_chain import chain
folder, out, outputs = sys.argv[1:]
Runner(chain(), Path(out), outputs=chosen(outputs.split(","))).run(find_inputs([folder]))
"""
_HEAD = "{:>6} {:>7} {:>12} {:>9} {:>10} {:>9} {:>10} {:>11} {:>11} {:>13} {:>13}"


@dataclass
class Watched:
    """What the descendants of this process used, while one command ran.

    Attributes:
        seconds: of the clock. first: until the journal had its first film.
        processor: seconds of all processes together.
        called_mb: most memory of the process that was called. all_mb: most of all of them, shared pages counted once.
    """

    seconds: float = 0.0
    first: float = float("nan")
    processor: float = 0.0
    called_mb: float = 0.0
    all_mb: float = 0.0
    ticks: dict[tuple[int, int], int] = field(default_factory=dict)

    def look(self, called: int, memory: bool) -> None:
        """Count what each descendant has used so far."""
        parents, found = {}, {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    # The name, in brackets, may hold blanks.
                    values = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                pid = int(entry.name)
                parents[pid] = int(values[1])
                found[pid] = int(values[19]), int(values[11]) + int(values[12])
        ours, me = set(), os.getpid()
        for pid in found:
            line = [pid]
            while (parent := parents.get(line[-1], 0)) not in (0, me):
                line.append(parent)
            if parent == me:
                ours.add(pid)
        for pid in ours:
            begun, ticks = found[pid]
            self.ticks[pid, begun] = max(ticks, self.ticks.get((pid, begun), 0))
        if memory:
            self.called_mb = max(self.called_mb, _kilobytes(called, "status", "VmHWM") / 1e3)
            self.all_mb = max(self.all_mb, sum(_kilobytes(pid, "smaps_rollup", "Pss") for pid in ours) / 1e3)


def _children() -> float:
    """Processor seconds of all processes that ended below this one, as the system counted them."""
    times = os.times()
    return times.children_user + times.children_system


def _kilobytes(pid: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name + ":")), 0)


def watched(command: list[str], out: Path) -> Watched:
    """Run a command to its end and count what its processes used."""
    used, begun, looks = Watched(), time.monotonic(), 0
    journal = out / "journal.jsonl"
    had = journal.stat().st_size if journal.is_file() else 0
    before = _children()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=HERE.parent)
    while True:
        ended = process.poll() is not None
        if not ended:
            used.look(process.pid, memory=looks % 8 == 0)
        if used.first != used.first and journal.is_file() and journal.stat().st_size > had:
            used.first = time.monotonic() - begun
        if ended:
            break
        looks += 1
        time.sleep(_EVERY)
    used.seconds = time.monotonic() - begun
    # The looks miss the last moments of each process; the system's own count misses processes that nobody waited for.
    used.processor = max(sum(used.ticks.values()) / os.sysconf("SC_CLK_TCK"), _children() - before)
    if process.returncode not in (0, 1):
        raise SystemExit(process.stderr.read().decode() if process.stderr else "it failed")
    return used


def drawn(side: int) -> list[np.ndarray]:
    """Synthetic films (side, side) uint8."""
    return [np.round(make_film(n, size=(side, side)).pixels * 255).astype(np.uint8) for n in range(FILMS)]


def write_films(source: Path | None, side: int, count: int, folder: Path) -> None:
    """`count` JPEG files of `FILMS` films, each with its number in a comment: no two have the same bytes."""
    encoded = []
    for image in drawn(side) if source is None else films(source, FILMS):
        scale = side / max(image.shape)
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        encoded.append(cv2.imencode(".jpg", small)[1].tobytes())
    folder.mkdir(parents=True)
    for number in range(count):
        film, comment = encoded[number % FILMS], f"{number:08}".encode()
        marked = film[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + film[2:]
        (folder / f"{number:06}.jpg").write_bytes(marked)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _command(options: argparse.Namespace, engine: str, folder: Path, out: Path) -> list[str]:
    if options.chain == "stand-in":
        return [sys.executable, "-c", _STAND_IN, str(folder), str(out), options.outputs]
    command = [sys.executable, "-m", "cxr_pipeline.cli.main", "run", str(folder), "--out", str(out)]
    command += ["--engine", engine, "--outputs", options.outputs, "--no-report"]
    return command + (["--workers", str(options.workers)] if options.workers else [])


def main() -> None:
    """Run each number of inputs on each engine, in processes of their own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--counts", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--engines", nargs="*", default=["local"], choices=["local", "ray"])
    parser.add_argument("--chain", default="tb", choices=["tb", "stand-in"], help="the shipped networks, or none")
    parser.add_argument("--workers", type=int, help="of each engine; by default one per core")
    parser.add_argument("--side", type=int, default=512, help="of the films' longer side, in pixels")
    parser.add_argument("--outputs", default="masks,overlays,regions")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.chain == "stand-in" and options.engines != ["local"]:
        parser.error("--chain stand-in is for the local engine alone. Leave --engines out")
    if not sys.platform.startswith("linux"):
        raise SystemExit("this counts processes by /proc, which Linux alone has")
    take_orphans = 36  # PR_SET_CHILD_SUBREAPER: processes whose parent ended stay descendants of this one
    ctypes.CDLL(None).prctl(take_orphans, 1, 0, 0, 0)
    rows = []
    print(_HEAD.format("engine", "inputs", "CPU ms/film", "films/s", "first, s", "call, MB", "all, MB", "again, s",
                       "CPU again,s", "journal B/film", "results B/film"))  # fmt: skip
    for count in options.counts:
        with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
            folder = Path(name) / "films"
            write_films(options.films, options.side, count, folder)
            for engine in options.engines:
                out = Path(name) / engine
                command = _command(options, engine, folder, out)
                run = watched(command, out)
                again = watched(command, out)
                row = {
                    "engine": engine,
                    "inputs": count,
                    "cpu_ms_a_film": 1000 * run.processor / count,
                    "films_a_second": count / run.seconds,
                    "first_result_seconds": run.first,
                    "peak_memory_mb": run.called_mb,
                    "peak_memory_all_mb": run.all_mb,
                    "again_seconds": again.seconds,
                    "again_cpu_seconds": again.processor,
                    "journal_bytes_a_film": (out / "journal.jsonl").stat().st_size / count,
                    "result_bytes_a_film": size_of(out) / count,
                }
                rows.append(row)
                cells = [value if isinstance(value, (str, int)) else f"{value:.1f}" for value in row.values()]
                print(_HEAD.format(*cells), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
