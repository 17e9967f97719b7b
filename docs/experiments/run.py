"""Runs experiments, each a file here, and writes docs/experiments.md from what they gave.

An experiment is a YAML file: `what` says in a line what it tries, `set` lists the settings that differ from
configs/tb.yaml. It is judged as a hospital that the network never saw would judge it.

The classifier is trained without one source and measured on that source, once for each source that has both TB and
normal films; no film of a test or external split is looked at. Segmentation (names that begin so) is trained on
montgomery's masks alone and measured on shenzhen's train and val films.

    python docs/experiments/run.py --data ../shared/data/manifest.csv --segment WEIGHTS --work FOLDER [NAME ...]

Finished experiments (a results file beside the YAML) are not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cxr_pipeline import stages
from cxr_pipeline.configs.schema import Config, load_config
from cxr_pipeline.data.manifest import Manifest, read_manifest
from cxr_pipeline.data.splits import split_by_patient
from cxr_pipeline.models.backend import keras
from cxr_pipeline.stages.classify import Classify
from cxr_pipeline.stages.segment import Segment
from cxr_pipeline.train.evaluation import evaluate_stage

HERE = Path(__file__).parent
PAGE = HERE.parent / "experiments.md"
LEFT_OUT = ("shenzhen", "rahman")
TABLES = {"segment": "<!-- {} of segment -->", "classify": "<!-- {} of classify -->"}  # markers on the page


def run(name: str, data: Manifest, segment: Segment, work: Path) -> None:
    """Train and judge one experiment, a source left out at a time, and write its results file."""
    spec, config_of = spec_of(name)
    results: dict[str, Any] = {"what": spec["what"], "set": spec.get("set", {})}
    for source in LEFT_OUT:
        config = config_of()
        config.cache = str(work / "cache")
        config.classify.fit.leave_out = [*config.classify.fit.leave_out, source]
        chain = [] if config.classify.lungs == "none" else [segment]
        folder = work / name / source
        begun = time.monotonic()
        Classify.train(data, config, folder, chain)
        minutes = (time.monotonic() - begun) / 60
        stage = Classify.load(folder)
        part = data.select(source=source)
        away = evaluate_stage(stage, part, folder / "away", chain, split=None, source=source)
        home = evaluate_stage(stage, data.select(source="nih", split="val"), folder / "home", chain, split="val")
        results[source] = {
            "auc_tb_against_norm": away["auc_tb_against_norm"],
            "nih_val_auc_ntb_against_norm": home["auc_ntb_against_norm"],
            "minutes": round(minutes, 1),
        }
        shutil.rmtree(folder, ignore_errors=True)
    (HERE / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def run_segment(name: str, data: Manifest, work: Path) -> None:
    """Train and judge one experiment on segmentation: montgomery's masks to learn from, shenzhen's to be judged on."""
    spec, config_of = spec_of(name)
    known = data.select(has_mask=True, source="montgomery")
    parts = split_by_patient(known)
    parts = replace(parts, table=parts.table.assign(split=parts.table["split"].replace("test", "train")))
    folder = work / name
    begun = time.monotonic()
    config = config_of()
    config.segment.fit.epochs = 30  # the sets are small: fewer would be too few steps
    Segment.train(parts, config, folder)
    minutes = (time.monotonic() - begun) / 60
    stage = Segment.load(folder)
    away = data.select(has_mask=True, source="shenzhen", split=["train", "val"])
    figures = evaluate_stage(stage, away, folder / "away", split=None)
    model = keras().models.load_model(folder / "model.keras", compile=False)
    results = {"what": spec["what"], "set": spec.get("set", {}), "gigamacs": round(macs(model) / 1e9, 2)}
    results |= {key: figures[key] for key in ("dice", "hd95_px")} | {"minutes": round(minutes, 1)}
    (HERE / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)


def macs(model: Any) -> int:
    """Multiply-adds of a network's convolutions for one film."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "layers"):
            total += macs(layer)
        elif hasattr(layer, "kernel") and len(layer.kernel.shape) == 4:
            total += int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
    return total


def spec_of(name: str) -> tuple[dict[str, Any], Callable[[], Config]]:
    """What an experiment's file says, and what makes its config."""
    spec = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    settings = [f"{key}={json.dumps(value)}" for key, value in spec.get("set", {}).items()]
    return spec, lambda: load_config(HERE.parent.parent / "configs" / "tb.yaml", settings)


def segment_table() -> str:
    """The results on segmentation as a Markdown table, the best first."""
    results = [(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in HERE.glob("segment*.json")]
    lines = ["| experiment | what | Dice | HD95, px | GMAC a film | minutes |", "|---|---|---|---|---|---|"]
    for name, result in sorted(results, key=lambda item: -item[1]["dice"]["value"]):
        cells = [name, result["what"], _cell(result["dice"]), _cell(result["hd95_px"], 1)]
        lines.append("| " + " | ".join([*cells, f"{result['gigamacs']:.2f}", f"{result['minutes']:.0f}"]) + " |")
    return "\n".join(lines)


def classify_table() -> str:
    """The results on classification as a Markdown table, the best first."""
    rows = []
    for path in HERE.glob("*.json"):
        if path.stem.startswith("segment"):
            continue
        results = json.loads(path.read_text(encoding="utf-8"))
        values = [results[source]["auc_tb_against_norm"]["value"] for source in LEFT_OUT]
        cells = [_cell(results[source]["auc_tb_against_norm"]) for source in LEFT_OUT]
        nih = sum(results[s]["nih_val_auc_ntb_against_norm"]["value"] for s in LEFT_OUT) / len(LEFT_OUT)
        minutes = sum(results[s]["minutes"] for s in LEFT_OUT)
        rows.append((sum(values) / len(values), [path.stem, results["what"], *cells, f"{nih:.3f}", f"{minutes:.0f}"]))
    head = ["experiment", "what", *(f"{source} left out" for source in LEFT_OUT), "nih val, NTB", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cells) + " |" for _, cells in sorted(rows, reverse=True)]
    return "\n".join(lines)


def _cell(figure: dict[str, Any], digits: int = 3) -> str:
    low, high = figure["ci95"]
    return f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}], n {figure['n']}"


def filled(page: str) -> str:
    """The page with its results tables as the files have them."""
    for marker, text in zip(TABLES.values(), (segment_table(), classify_table()), strict=True):
        begin, end = marker.format("results"), marker.format("end")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}"
    return page


def main() -> None:
    """Run what is asked for, or all that has no results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--segment", default="tb")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    whole = read_manifest(options.data)
    kept = whole.table[whole.table["split"].isin(["train", "val"]) & (whole.table["source"] != "kermany")]
    data = replace(whole, table=kept.reset_index(drop=True))
    (segment,) = stages.load_chain(options.segment, "segment")
    for name in options.names or sorted(path.stem for path in HERE.glob("*.yaml")):
        if not (HERE / f"{name}.json").is_file():
            if name.startswith("segment"):
                run_segment(name, whole, options.work)
            else:
                run(name, data, segment, options.work)
            PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
