"""Runs experiments on the classifier, each a file here, and writes docs/experiments.md from what they gave.

An experiment is a YAML file: `what` says in a line what it tries, `set` lists the settings that differ from
configs/tb.yaml. It is judged as a hospital that the network never saw would judge it: trained without one source,
measured on that source, once for each source that has both TB and normal films. No film of a test or external split is
looked at.

    python docs/experiments/run.py --data ../shared/data/manifest.csv --segment WEIGHTS --work FOLDER [NAME ...]

Finished experiments (a results file beside the YAML) are not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

import stages
from configs.schema import load_config
from data.manifest import Manifest, read_manifest
from pipeline.evaluation import evaluate_stage
from stages.classify import Classify
from stages.segment import Segment

HERE = Path(__file__).parent
PAGE = HERE.parent / "experiments.md"
LEFT_OUT = ("shenzhen", "rahman")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def run(name: str, data: Manifest, segment: Segment, work: Path) -> None:
    """Train and judge one experiment, a source left out at a time, and write its results file."""
    told = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    results: dict[str, Any] = {"what": told["what"], "set": told.get("set", {})}
    for source in LEFT_OUT:
        settings = [f"{key}={json.dumps(value)}" for key, value in told.get("set", {}).items()]
        config = load_config(HERE.parent.parent / "configs" / "tb.yaml", settings)
        config.classify.fit.leave_out = [*config.classify.fit.leave_out, source]
        folder = work / name / source
        begun = time.monotonic()
        Classify.train(data, config, folder, [segment])
        minutes = (time.monotonic() - begun) / 60
        stage = Classify.load(folder)
        part = data.select(source=source)
        away = evaluate_stage(stage, part, folder / "away", [segment], split=None, source=source)
        home = evaluate_stage(stage, data.select(source="nih", split="val"), folder / "home", [segment], split="val")
        results[source] = {
            "auc_tb_against_norm": away["auc_tb_against_norm"],
            "nih_val_auc_ntb_against_norm": home["auc_ntb_against_norm"],
            "minutes": round(minutes, 1),
        }
        shutil.rmtree(folder, ignore_errors=True)
    (HERE / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def table() -> str:
    """All results as a Markdown table, the best first."""
    rows = []
    for path in HERE.glob("*.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        values = [told[source]["auc_tb_against_norm"]["value"] for source in LEFT_OUT]
        cells = [_cell(told[source]["auc_tb_against_norm"]) for source in LEFT_OUT]
        nih = sum(told[s]["nih_val_auc_ntb_against_norm"]["value"] for s in LEFT_OUT) / len(LEFT_OUT)
        minutes = sum(told[s]["minutes"] for s in LEFT_OUT)
        rows.append((sum(values) / len(values), [path.stem, told["what"], *cells, f"{nih:.3f}", f"{minutes:.0f}"]))
    head = ["experiment", "what", *(f"{source} left out" for source in LEFT_OUT), "nih val, NTB", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cells) + " |" for _, cells in sorted(rows, reverse=True)]
    return "\n".join(lines)


def _cell(figure: dict[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}], n {figure['n']}"


def filled(page: str) -> str:
    """The page with the results table as the files have it."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Run what is asked for, or all that has no results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--segment", default="tb")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    told = parser.parse_args()
    data = read_manifest(told.data)
    kept = data.table[data.table["split"].isin(["train", "val"]) & (data.table["source"] != "kermany")]
    data = replace(data, table=kept.reset_index(drop=True))
    (segment,) = stages.load_chain(told.segment, "segment")
    for name in told.names or sorted(path.stem for path in HERE.glob("*.yaml")):
        if not (HERE / f"{name}.json").is_file():
            run(name, data, segment, told.work)
            PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
