"""How the cost of a run grows with the number of inputs: time a film and peak memory at 100, 1,000 and 10,000.

    python benchmarks/growth.py [--films FOLDER] [--counts 100 1000 10000] [--json FILE]

The films are 512 px JPEG, the same 100 again and again under other names: every one is read, judged and written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from end_to_end import films, write  # noqa: E402


def main() -> None:
    """Run each number of inputs in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--counts", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("inputs   ms per film   films/s   first result, s   memory, MB")
    for count in options.counts:
        with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
            first = Path(name) / "first"
            write("jpeg512", films(options.films, 100), first)
            folder = Path(name) / "films"
            folder.mkdir()
            sources = sorted(first.iterdir())
            for number in range(count):
                os.link(sources[number % len(sources)], folder / f"{number:06}.jpg")
            call = {"inputs": [str(folder)], "out": str(Path(name) / "out"), "runtime": "onnx"}
            call |= {"weights": "tb", "workers": None}
            answer = subprocess.run(
                [sys.executable, "-m", "cxr_pipeline.benchmark", json.dumps(call)],
                capture_output=True,
                text=True,
                check=True,
                cwd=HERE.parent,
            )
            measured = json.loads(answer.stdout.splitlines()[-1])
        total = measured["seconds"]["total"]
        row = {
            "inputs": count,
            "ms_a_film": 1000 * total / count,
            "films_a_second": count / total,
            "first_result_seconds": measured["first"] - measured["begun"],
            "peak_memory_mb": measured["peak_memory_mb"],
        }
        rows.append(row)
        print("{:6d} {:11.1f} {:9.1f} {:17.1f} {:12.0f}".format(*row.values()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
