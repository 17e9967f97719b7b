"""What a run costs on this machine: `pipeline benchmark`. Each runtime is measured in a process of its own."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_pipeline.about import RUNTIMES, cores
from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.locks import temporary_folder
from cxr_pipeline.run.inputs import find_inputs

FILMS = 48  # synthetic ones, where no input is given


class BenchmarkError(CxrError, RuntimeError):
    """A runtime that was asked for could not be measured."""


def benchmark(
    inputs: Sequence[str] = (), *, runtimes: Sequence[str] = (), weights: str = "tb", workers: int | None = None
) -> dict[str, Any]:
    """Measure runs over `inputs` (synthetic films of 512 px where there are none).

    Args:
        runtimes: those to measure; all that are installed where empty.

    Returns:
        machine, films, and by runtime: `images_per_second` of a whole run, start of the process included, films that
        are ok only; `counts` of films by status; `problems`, the first films that are not ok; `first_result_seconds`
        from that start; `seconds` by part, of all threads together; `peak_memory_mb`.

    Raises:
        BenchmarkError: a runtime that was named cannot run, or none can.
        run.inputs.InputError: nothing to judge.
    """
    with temporary_folder("benchmark") as path:
        folder = str(path)
        if not inputs:
            from cxr_pipeline.data.synthetic import write_samples

            write_samples(Path(folder) / "films", FILMS, size=(512, 512))
            inputs = [str(Path(folder) / "films" / "images")]
        find_inputs(inputs)  # or every runtime would fail on it
        figures: dict[str, Any] = {
            "machine": {"platform": platform.platform(terse=True), "cores": cores()},
            "inputs": "synthetic, 512 px" if folder in inputs[0] else list(inputs),
            "runtimes": {},
        }
        for runtime in runtimes or RUNTIMES:
            out = Path(folder) / runtime
            call = {"inputs": list(inputs), "out": str(out), "runtime": runtime, "weights": weights, "workers": workers}
            begun = time.time()
            answer = subprocess.run(
                [sys.executable, "-m", "cxr_pipeline.benchmark", json.dumps(call)],
                capture_output=True,
                text=True,
                check=False,
            )
            if answer.returncode:
                why = f"{runtime} cannot be measured: {answer.stderr.strip().splitlines()[-1]}"
                if runtimes:
                    raise BenchmarkError(why)
                continue  # not installed
            measured = json.loads(answer.stdout.splitlines()[-1])
            seconds = measured["ended"] - begun
            figures["films"] = measured["films"]
            figures["runtimes"][runtime] = {
                "images_per_second": round(measured["counts"]["ok"] / seconds, 2),
                "counts": measured["counts"],
                "problems": measured["problems"],
                "first_result_seconds": round(measured["first"] - begun, 2),
                "seconds": {name: round(value, 3) for name, value in measured["seconds"].items()},
                "peak_memory_mb": round(measured["peak_memory_mb"]),
            }
        if not figures["runtimes"]:
            raise BenchmarkError(why)
    return figures


def not_ok(figures: dict[str, Any]) -> int:
    """Films that were refused or failed, of the runtime with the most."""
    return max(r["counts"]["refused"] + r["counts"]["failed"] for r in figures["runtimes"].values())


def as_text(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    parts = [part for part in next(iter(figures["runtimes"].values()))["seconds"] if part != "total"]
    head = ["runtime", "images/s", "first, s", *(f"{part}, s" for part in parts), "memory, MB"]
    lines = [[name, f"{r['images_per_second']:.1f}", f"{r['first_result_seconds']:.1f}",
              *(f"{r['seconds'][part]:.1f}" for part in parts), str(r["peak_memory_mb"])]
             for name, r in figures["runtimes"].items()]  # fmt: skip
    widths = [max(len(row[i]) for row in [head, *lines]) for i in range(len(head))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *lines]]
    about = f"{figures.get('films', 0)} films ({figures['inputs']}) on {figures['machine']['cores']} cores"
    text = [about, "Seconds of the parts are of all threads together.", "", *table]
    if not_ok(figures):
        text += ["", "Images/s are of the films that are ok; of the others, the time is counted too:"]
        for name, r in figures["runtimes"].items():
            text.append(f"{name}: " + ", ".join(f"{count} {status}" for status, count in r["counts"].items()))
            text += [f"  {status}: {image}: {error}" for status, image, error in r["problems"]]
    return "\n".join(text)


def _measure(call: dict[str, Any]) -> dict[str, Any]:
    from cxr_pipeline.run.runner import Runner
    from cxr_pipeline.run.spec import ChainSpec

    begun = time.time()
    chain = ChainSpec(call["weights"], runtime=call["runtime"]).open(side_by_side=True)
    found = find_inputs(call["inputs"])
    first: list[float] = []
    how = {"workers": call["workers"], "judges": chain.judges}
    runner = Runner(chain.stages, Path(call["out"]), identity=chain.identity, **how)
    summary = runner.run(found, progress=lambda done: first.append(time.time()) if not first else None)
    return {
        "films": len(found),
        "counts": summary.counts,
        "problems": summary.problems,
        "begun": begun,
        "first": first[0],
        "ended": time.time(),
        "seconds": summary.seconds,
        "peak_memory_mb": _peak_memory(),
    }


def _peak_memory() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
