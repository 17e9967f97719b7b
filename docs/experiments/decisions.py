"""Write what decides into a classifier's card, from its logits: temperature, threshold, score, sets and reference.

    python docs/experiments/decisions.py LOGITS.npy manifest.csv card.json --splits val [--target 0.9] [--risk 0.1]

LOGITS.npy is float (N, K) in the manifest's order, zeros where a film was not judged. Take films that the network did
not learn from. The card's offsets (the mix assumed) stay.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from cxr_pipeline.models.figures.metrics import softmax
from cxr_pipeline.stages.classify_calibration import one_class
from cxr_pipeline.stages.decisions import decided_error
from cxr_pipeline.stages.reference import fit_reference
from cxr_pipeline.stages.sets import RISKS, fit_sets, undecided


def main() -> None:
    """Fit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("logits", "manifest", "card"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--splits", nargs="+", default=["val"])
    parser.add_argument("--without", nargs="*", default=["kermany", "jsrt"], help="sources left out")
    parser.add_argument("--target", type=float, default=0.90)
    parser.add_argument("--risk", type=float, help="in place of the smallest that leaves at most a third unsure")
    given = parser.parse_args()
    card = json.loads(given.card.read_text(encoding="utf-8"))
    decisions = card["decisions"]
    classes = decisions["classes"]
    films = pd.read_csv(given.manifest, dtype=str, keep_default_na=False)
    logits = np.load(given.logits).astype(float)
    keep = films["split"].isin(given.splits) & films["label"].isin(classes) & ~films["source"].isin(given.without)
    keep = keep.to_numpy() & (logits != 0).any(axis=1)
    films, logits = films[keep], logits[keep]
    labels = np.array([classes.index(name) for name in films["label"]])
    offsets = np.array([decisions.get("offsets", {}).get(name, 0.0) for name in classes])
    positive = classes.index(decisions["positive"])
    patients = list(films["patient"])
    decisions |= one_class(logits, labels, offsets, classes, positive, given.target, patients)
    p = softmax(logits / decisions["temperature"] + offsets)
    for risk in (*RISKS, 0.3):
        sets = fit_sets(p, labels, classes, decisions["positive"], risk)
        screens = [sets.answer(one) for one in p[:, positive]]
        error = decided_error(screens, labels == positive)
        print(f"risk {risk:.2f}: {100 * undecided(screens):.0f} % unsure, {100 * error:.0f} % of the decided wrong")
    if given.risk is not None:
        decisions["sets"] = fit_sets(p, labels, classes, decisions["positive"], given.risk).to_json()
    decisions["reference"] = fit_reference(logits / decisions["temperature"], labels, list(films["source"])).to_json()
    given.card.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: decisions[key] for key in ("temperature", "threshold", "score", "sets")}, indent=1))
    print(f"{len(labels)} films")


if __name__ == "__main__":
    main()
