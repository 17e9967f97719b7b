"""The same films through this pipeline and its peers, in turns, in one run: ratios with their spread.

    python benchmarks/end_to_end.py [--films FOLDER] [--torch PYTHON] [--rounds 3] [--json FILE]

Loads: 512 px JPEG; 3000 px PNG, JPEG and JPEG 2000 in DICOM (enlarged films); JPEG 2000 in DICOM of 1024 px. Each
contestant is a process of its own that reads a folder and leaves masks, overlays and a table. Measured from the start
of the process to its end, and beside it from where it is ready for its first film. Films are real ones where --films
names a folder of them, else synthetic.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
LOADS = {"jpeg512": 512, "png3000": 16, "dicom": 32, "jpeg3000": 16, "dicom3000": 16}


def films(source: Path | None, count: int) -> list[np.ndarray]:
    """Films (H, W) uint8, real or synthetic."""
    from cxr_pipeline.data.radiograph import read
    from cxr_pipeline.data.synthetic import make_film

    if source is None:
        return [np.round(make_film(n, size=(700, 700)).pixels * 255).astype(np.uint8) for n in range(count)]
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    paths = (paths * count)[:count] if len(paths) < count else paths[:: len(paths) // count][:count]
    return [np.round(read(path).pixels * 255).astype(np.uint8) for path in paths]


def write(load: str, images: list[np.ndarray], folder: Path) -> None:
    """The films of a load as files."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        side = 3000 if load.endswith("3000") else 512 if load == "jpeg512" else 1024
        scale = side / max(image.shape)
        method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=method)
        if load.startswith("jpeg"):
            cv2.imwrite(str(folder / f"{number:03}.jpg"), image)
        elif load == "png3000":
            cv2.imwrite(str(folder / f"{number:03}.png"), image)
        else:
            values = image.astype(np.uint16) << 4
            if side == 3000:  # a detector's noise in the bits below, without which there is less to decode
                values |= np.random.default_rng(number).integers(0, 16, values.shape, np.uint16)
            write_dicom(folder / f"{number:03}.dcm", values)


def write_dicom(path: Path, values: np.ndarray) -> None:
    """A CR film, (H, W) uint16 of 12 bits, as lossless JPEG 2000."""
    import imagecodecs
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless, generate_uid

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPInstanceUID = JPEG2000Lossless, generate_uid()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    film = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    film.SOPClassUID, film.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    film.Modality, film.PhotometricInterpretation, film.SamplesPerPixel = "CR", "MONOCHROME2", 1
    film.Rows, film.Columns = values.shape
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    how = {"level": 0, "bitspersample": 12, "codecformat": "j2k", "reversible": True}
    film.PixelData = encapsulate([imagecodecs.jpeg2k_encode(values, **how)])
    film["PixelData"].is_undefined_length = True
    film.save_as(path, enforce_file_format=True)


def decode_only(folder: Path) -> float:
    """Seconds to read all films of a folder on all cores, and do nothing else."""
    from concurrent.futures import ThreadPoolExecutor

    from cxr_pipeline.data.radiograph import read

    cv2.setNumThreads(1)
    begun = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda path: read(path).size, sorted(folder.iterdir())):
            pass
    return time.perf_counter() - begun


def contestants(torch: str | None) -> dict[str, list[str]]:
    """The command of each, to which folder and output are appended."""
    out = {
        "ours": [sys.executable, "-m", "cxr_pipeline.cli.main", "run"],
        "plain keras": [sys.executable, str(HERE / "plain_keras.py")],
    }
    if torch:
        out["torch"] = [torch, str(HERE / "plain_torch.py")]
        out["torch small"] = [torch, str(HERE / "plain_torch.py")]
    return out


def seconds_of(command: list[str], name: str, folder: Path, out: Path) -> dict[str, float]:
    """Seconds of one contestant on one folder, with and without its start."""
    shutil.rmtree(out, ignore_errors=True)
    tail = [str(folder), "--out", str(out)] if name == "ours" else [str(folder), str(out)]
    tail += ["small"] if name == "torch small" else []
    begun = time.time()
    answer = subprocess.run([*command, *tail], capture_output=True, text=True, check=True, cwd=HERE.parent)
    total = time.time() - begun
    if name == "ours":
        return {"total": total, "films": json.loads((out / "run.json").read_text())["seconds"]["total"]}
    ready, ended, _ = map(float, answer.stdout.split()[-3:])
    return {"total": total, "films": ended - ready}


def main() -> None:
    """Run all loads and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--torch", help="a Python that has torch; without it that peer is left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", nargs="*", default=list(LOADS), choices=LOADS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cxr-bench-") as name:
        for load in options.loads:
            folder = Path(name) / load
            write(load, films(options.films, LOADS[load]), folder)
            times: dict[str, list[dict[str, float]]] = {who: [] for who in contestants(options.torch)}
            decoding = []
            for _ in range(options.rounds):
                for who, command in contestants(options.torch).items():
                    times[who].append(seconds_of(command, who, folder, Path(name) / "out"))
                decoding.append(decode_only(folder))
            results[load] = {"films": LOADS[load], "decoding_alone": statistics.median(decoding)}
            print(f"\n{load}, {LOADS[load]} films; decoding alone {results[load]['decoding_alone']:.2f} s")
            for who, rounds in times.items():
                line = f"  {who:12}"
                for kind in ("total", "films"):
                    values = [one[kind] for one in rounds]
                    ratios = [one[kind] / ours[kind] for one, ours in zip(rounds, times["ours"], strict=True)]
                    results[load].setdefault(who, {})[kind] = {
                        "seconds": values,
                        "times_ours": statistics.median(ratios),
                        "spread": [min(ratios), max(ratios)],
                    }
                    line += f"  {kind} {statistics.median(values):7.2f} s, {statistics.median(ratios):6.2f} times ours"
                    line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
                print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
