"""What each output of a run costs: bytes and milliseconds per film.

::

    python benchmarks/outputs.py FILM_OR_FOLDER [--films 20] [--resize 512]

The films are judged first; then each output alone packs and writes its files of them, three times, and the fastest
counts. One thread, in processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2

from cxr_pipeline.data.files import write_bytes
from cxr_pipeline.results.heat import small_heat
from cxr_pipeline.results.outputs import output_class, output_names
from cxr_pipeline.results.outputs.base import JudgedFilm
from cxr_pipeline.results.outputs.heatmaps import Heatmaps
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.spec import ChainSpec
from cxr_pipeline.stages.base import Record


def main() -> None:
    """Print a row per output."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("films")
    given.add_argument("--films", type=int, default=20, dest="count")
    given.add_argument("--resize", type=int, help="Long side that the films are made first.")
    given.add_argument("--json", type=Path)
    options = given.parse_args()
    cv2.setNumThreads(1)
    chain = ChainSpec("tb", "localize", threads=1).open()
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
        folder = Path(name)
        films = judged(chain, options, folder)
        made = [output_class(one)() for one in output_names() if output_class(one).suffixes] + [Heatmaps(native=True)]
        rows = {}
        for one in made:
            costs = [cost(lambda film, one=one: one.files(film), film, folder) for film in films]
            rows[one.key] = summed(costs)
        rows["heat in the journal"] = summed(
            [cost(lambda film: {"": small_heat(film.record).encode()}, film, folder) for film in films]
        )
        size = max(max(film.record.radiograph.size) for film in films)
    print(f"{len(films)} film(s), long side up to {size} px")
    for key, row in rows.items():
        print(f"{key:22}{row['kb']:9.1f} KB {row['ms']:9.2f} ms")
    if options.json:
        options.json.write_text(json.dumps({"films": len(films), "px": size, "outputs": rows}, indent=2) + "\n")


def judged(chain: object, options: argparse.Namespace, folder: Path) -> list[JudgedFilm]:
    """The first films that are ok, after the chain."""
    from cxr_pipeline.data.radiograph import read

    out: list[JudgedFilm] = []
    for item in find_inputs([options.films]):
        path = Path(item.path)
        if options.resize:
            image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            scale = options.resize / max(image.shape)
            path = folder / "film.png"
            cv2.imwrite(str(path), cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
        record = Record(read(path, id=f"film{len(out)}"))
        for stage in chain.stages:
            (record,) = stage.run([record])
        if record.ok:
            out.append(JudgedFilm(record, record.radiograph.id, item.path, "", folder, chain.identity))
        if len(out) == options.count:
            break
    return out


def cost(make: object, film: JudgedFilm, folder: Path) -> tuple[int, float]:
    """Bytes, and the least of three times in ms, to pack and write an output's files of one film."""
    best, size = float("inf"), 0
    for _ in range(3):
        film.record.native_heat = None if film.record.heat is not None else film.record.native_heat
        begun = time.process_time()  # of one thread, so that other work on the machine does not count
        files = make(film)
        for number, data in enumerate(files.values()):
            write_bytes(folder / f"out-{number}", data)
        best = min(best, 1000 * (time.process_time() - begun))
        size = sum(map(len, files.values()))
    return size, best


def summed(costs: list[tuple[int, float]]) -> dict[str, float]:
    """Means per film."""
    return {
        "kb": round(statistics.mean(size for size, _ in costs) / 1000, 2),
        "ms": round(statistics.mean(ms for _, ms in costs), 2),
    }


if __name__ == "__main__":
    main()
