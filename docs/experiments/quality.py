"""Measures what `stages.quality` refuses, and writes the tables of docs/quality.md.

    python docs/experiments/quality.py --data MANIFEST [--weights tb] [--fit]

`--fit` first fits on the manifest's training films and writes `quality.npz` into the bundle of the segmentation; give
it after every training of that network. Pictures of what is no chest X-ray are taken from `ood/<kind>/` beside the
manifest, and from scikit-image, scikit-learn, matplotlib and pydicom, which bring some of their own. No such picture,
and no film of a test or external split, takes part in the fit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline.data.manifest import Manifest, read_manifest
from cxr_pipeline.data.radiograph import Radiograph, RadiographError, read
from cxr_pipeline.models.figures.metrics import wilson
from cxr_pipeline.models.store import bundle_of, find
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.quality import COMPARED, distances, unlikeness
from cxr_pipeline.stages.quality_fit import collect, fit, write
from cxr_pipeline.stages.segment import Segment

HERE = Path(__file__).parent
PAGE, RESULTS = HERE.parent / "quality.md", HERE.parent / "quality.json"
FRONTAL = {
    **{"montgomery": "external", "shenzhen": "test", "nih": "test", "ieee8023": "test"},
    **{"rahman": "val", "tbx11k": "test", "kermany": "test"},
}
ALTERED = ("montgomery", "shenzhen")  # whose films are turned, cut and badly exposed
UPRIGHT = "turned"  # the kind of `ood` that holds 19 upright frontal films and a single turned one
TURNED = {"00000061_025"}
MARKERS = ("<!-- {}: begin -->", "<!-- {}: end -->")


def altered(film: np.ndarray, mask: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A film (H, W) made one that cannot be judged, and the share of its lungs that was cut off."""
    height, width = film.shape
    share = rng.uniform(0.2, 0.45)
    cuts = {
        "cut off on the left": np.s_[:, int(width * share) :],
        "cut off on the right": np.s_[:, : int(width * (1 - share))],
        "cut off at the top": np.s_[int(height * share) :],
        "cut off at the bottom": np.s_[: int(height * (1 - share))],
        "one half of the film": np.s_[:, : width // 2] if rng.random() < 0.5 else np.s_[:, width // 2 :],
    }
    if kind in cuts:
        return np.ascontiguousarray(film[cuts[kind]]), 1 - mask[cuts[kind]].sum() / max(1, mask.sum())
    quarter = {"turned by 90 degrees": 1, "turned by 180 degrees": 2, "turned by 270 degrees": 3}.get(kind)
    if quarter:
        return np.ascontiguousarray(np.rot90(film, quarter)), 0.0
    if kind == "inverted":
        return 1 - film, 0.0
    if kind == "mirrored":
        return np.ascontiguousarray(film[:, ::-1]), 0.0
    if kind == "too dark":
        film = 1.5 * (film - np.percentile(film, rng.uniform(60, 75)))
    elif kind == "too bright":
        film = 1 + 1.5 * (film - np.percentile(film, rng.uniform(20, 35)))
    else:  # hardly any contrast
        film = 0.4 + film * rng.uniform(0.01, 0.03)
    return (np.round(np.clip(film, 0, 1) * 255) / 255).astype(np.float32), 0.0


KINDS = (
    *("turned by 90 degrees", "turned by 180 degrees", "turned by 270 degrees", "inverted", "mirrored"),
    *("cut off on the left", "cut off on the right", "cut off at the top", "cut off at the bottom"),
    *("one half of the film", "too dark", "too bright", "hardly any contrast"),
)


def answers_of(stage: Segment, film: Radiograph) -> dict[str, Any]:
    """What the stage makes of a film: its code, empty where it goes on, and its warnings' codes."""
    (record,) = stage.run([Record(film)])
    return {
        "name": film.id,
        "code": "" if record.ok else record.error.split(":")[0],
        "warnings": [text.split(":")[0] for text in record.extra.get("warnings", ())],
        "error": record.error,
    }


def frontal(stage: Segment, data: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Films that must pass, as they are; and altered ones of two sources."""
    for source, split in FRONTAL.items():
        rows = data.select(source=source, split=split).table.to_dict("records")
        for row in rows:
            film = read(data.path(row["image"]))
            yield f"{source}, {split}", answers_of(stage, film) | {"label": row["label"]}
            if source not in ALTERED:
                continue
            (whole,) = stage.run([Record(Radiograph(film.pixels, film.id, "", film.size, bits=film.bits))])
            for kind in KINDS:
                seed = int(hashlib.sha256(f"{row['image']} {kind}".encode()).hexdigest()[:8], 16)
                pixels, lost = altered(film.pixels, whole.mask, kind, np.random.default_rng(seed))
                other = Radiograph(pixels, f"{film.id} {kind}", "", pixels.shape, bits=film.bits)
                yield kind, answers_of(stage, other) | {"lost": round(float(lost), 3)}


def others(folder: Path) -> Iterator[tuple[str, Radiograph]]:
    """Pictures that are no upright frontal chest X-ray, with their kind; of `ood/turned`, its upright films too."""
    for path in sorted(folder.glob("*/*")):
        kind = path.parent.name
        if kind == UPRIGHT:
            kind = "turned" if path.stem in TURNED else "upright films filed under turned"
        yield kind, read(path)
    brought = {
        "skimage.data": "*.png *.jpg",
        "sklearn.datasets.images": "*.jpg",
        "matplotlib": "mpl-data/sample_data/*.jpg mpl-data/sample_data/*.png",
    }
    for package, patterns in brought.items():
        for path in sorted(p for pattern in patterns.split() for p in Path(str(files(package))).glob(pattern)):
            try:
                yield "pictures of Python packages", read(path)
            except RadiographError:
                continue
    for path in sorted(Path(str(files("pydicom"))).glob("data/test_files/*.dcm")):
        film = _dicom(path)
        if film is not None:
            yield "CT, MR, nuclear medicine, ultrasound of pydicom", film


def _dicom(path: Path) -> Radiograph | None:
    """A DICOM image by its pixels alone, whatever its header says; None where it holds none, or a test pattern."""
    import pydicom

    try:
        dataset = pydicom.dcmread(path)
        if dataset.Modality not in ("CT", "MR", "NM", "US") or int(dataset.get("NumberOfFrames") or 1) > 1:
            return None
        pixels = dataset.pixel_array.astype(np.float32)
    except Exception:  # some of these files are broken on purpose
        return None
    pixels = pixels[..., :3].mean(axis=-1) if pixels.ndim == 3 else pixels
    low, high = np.percentile(pixels, [0.5, 99.5])
    pixels = np.clip((pixels - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return Radiograph(pixels, path.stem, str(path), pixels.shape) if min(pixels.shape) >= 32 else None


def measure_all(stage: Segment, data: Manifest) -> dict[str, Any]:
    """Refusals by kind, ready to be stored."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for kind, one in frontal(stage, data):
        kinds.setdefault(kind, []).append(one)
    unlike: set[bytes] = set()
    for kind, film in others(data.root / "ood"):
        digest = hashlib.sha256(film.pixels.tobytes()).digest()
        if digest not in unlike:  # pydicom holds the same picture in many encodings
            unlike.add(digest)
            kinds.setdefault(kind, []).append(answers_of(stage, film))
    out = {}
    for kind, found in kinds.items():
        hits = sum(bool(one["code"]) for one in found)
        node = {"refused": hits, "n": len(found), "ci95": [round(float(end), 4) for end in wilson(hits, len(found))]}
        node["codes"] = dict(Counter(one["code"] for one in found if one["code"]).most_common())
        node["warnings"] = dict(Counter(code for one in found for code in one["warnings"]).most_common())
        labels = sorted({one["label"] for one in found if one.get("label")})
        of_class = {label: [one for one in found if one["label"] == label] for label in labels}
        node["by class"] = {label: [sum(bool(one["code"]) for one in of), len(of)] for label, of in of_class.items()}
        if kind.startswith("cut") or kind.startswith("one half"):
            much = [one for one in found if one["lost"] >= 0.2]
            node["of those that lost 20 % of the lungs"] = [sum(bool(one["code"]) for one in much), len(much)]
        out[kind] = node
    return out


def left_out(pairs: np.ndarray, measured: dict[str, np.ndarray], sources: np.ndarray) -> dict[str, Any]:
    """Training films of each source found unlike by a fit on the others: what a new hospital may expect."""
    out = {}
    for source in sorted(set(sources)):
        away = sources == source
        fitted = fit(pairs[~away], {name: values[~away] for name, values in measured.items()})
        compared = np.column_stack([distances(pairs[away], fitted), *(measured[name][away] for name in COMPARED[4:])])
        hits, n = int((unlikeness(compared, fitted) > 1).sum()), int(away.sum())
        ends = [round(float(end), 4) for end in wilson(hits, n)]
        node = {"refused": hits, "n": n, "ci95": ends, "codes": {}, "warnings": {}}
        out[f"{source}, left out of the fit"] = node
    return out


def table(results: dict[str, Any], kinds: list[str]) -> str:
    """A Markdown table of the results on some kinds; refusals by class where the films have one."""
    lines = ["| | refused | 95 % interval | by class | codes | warnings |", "|---|---|---|---|---|---|"]
    for kind in kinds:
        node = results[kind]
        share, (low, high) = node["refused"] / node["n"], node["ci95"]
        codes, warnings = (", ".join(f"{k} {v}" for k, v in node[key].items()) or "-" for key in ("codes", "warnings"))
        much = node.get("of those that lost 20 % of the lungs")
        more = f"; with 20 % of the lungs lost {much[0]} of {much[1]}" if much else ""
        refused = f"{node['refused']} of {node['n']}, {100 * share:.1f} %{more}"
        classes = ", ".join(f"{label} {k} of {n}" for label, (k, n) in node.get("by class", {}).items()) or "-"
        interval = f"{100 * low:.1f} to {100 * high:.1f} %"
        lines.append(f"| {kind} | {refused} | {interval} | {classes} | {codes} | {warnings} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """The page with its tables as the results file has them."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    films = [f"{source}, {split}" for source, split in FRONTAL.items()]
    away = [kind for kind in results if kind.endswith("left out of the fit")]
    upright = [kind for kind in results if kind.startswith("upright")]
    parts = {
        "frontal": [*films, *upright],
        "left out": away,
        "altered": list(KINDS),
        "others": [kind for kind in results if kind not in (*films, *upright, *away, *KINDS)],
    }
    for name, kinds in parts.items():
        begin, end = (marker.format(name) for marker in MARKERS)
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{table(results, kinds)}\n\n{end}{rest.split(end)[1]}"
    return page


def main() -> None:
    """Fit where asked to, measure, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="tb")
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    data = read_manifest(options.data)
    bundle = bundle_of(find(options.weights), "segment")
    pairs, measured, sources = collect(Segment.load(bundle), data.select(split="train"))
    if options.fit:
        write(bundle, fit(pairs, measured))
    results = measure_all(Segment.load(bundle), data) | left_out(pairs, measured, sources)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
