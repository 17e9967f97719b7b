"""Ways to fit a site from films without labels, compared by leaving hospitals out.

    python docs/experiments/unlabelled.py left_out.csv manifest.csv models/weights/tb/classify/card.json --out DIR
                                          [--films figures/films.csv]

left_out.csv is what `train_tb.py` leaves: films of `train`, answered by what never saw their hospital. A network that
learned from a hospital says nothing of a site never seen. `--films` adds films of a hospital that took part in nothing,
from the folder of `pipeline evaluate`: montgomery is measured so, and chooses nothing. Films of `test` are left out.
For each hospital the reference is made of the others; half of a sample of its films calibrates without labels, the
other half measures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxr_pipeline.models.figures.metrics import ece, softmax
from cxr_pipeline.stages.reference import Reference, differences, fit_reference
from cxr_pipeline.stages.shares import shares_by_em, shares_by_moments
from cxr_pipeline.train.unlabelled import Alignment, align, by_normal_mode, calibrated

SHARES = (0.1, 0.2, 0.35, 0.5, 0.6)  # of TB
FILMS = 300
NOT_JUDGED_HERE = ("kermany", "jsrt")  # children; nodules that are mostly invisible
CHOOSING = ("shenzhen", "rahman")


def _with_shares(x: np.ndarray, reference: Reference, shift: np.ndarray, stretch: float, method: str) -> Alignment:
    even = np.full(len(reference.means), 1 / len(reference.means))
    slope, offsets, _, drawn, labels = calibrated(Alignment(shift, stretch, even, 0.0), reference, 0, 0.9, 1000)

    def probabilities(films: np.ndarray) -> np.ndarray:
        return softmax(np.hstack([slope * films, np.zeros((len(films), 1))]) + offsets)

    p = probabilities(x)
    if method == "moments":
        known = probabilities(drawn)
        means = np.array([known[labels == c].mean(axis=0) for c in range(len(even))])
        shares = shares_by_moments(means, p.mean(axis=0))
    else:
        shares = shares_by_em(p, even)
    return Alignment(shift, stretch, np.maximum(shares, 1e-4) / np.maximum(shares, 1e-4).sum(), 0.0)


def alignments(x: np.ndarray, reference: Reference, typical: tuple[np.ndarray, np.ndarray]) -> Iterator:
    """Every way's name and its alignment, from a site's films (N, K - 1)."""
    nothing, centre = np.zeros(x.shape[1]), reference.means[-1]
    yield "as shipped", Alignment(nothing, 1.0, np.full(len(reference.means), 1 / len(reference.means)), 0.0)
    yield "shares by EM", _with_shares(x, reference, nothing, 1.0, "em")
    yield "shares by moments", _with_shares(x, reference, nothing, 1.0, "moments")
    stretch = float(np.exp(np.mean(np.log(x.std(axis=0) / typical[1]))))
    shift = x.mean(axis=0) - (centre + stretch * (typical[0] - centre))
    yield "standardised, EM", _with_shares(x, reference, shift, stretch, "em")
    for towards in (0.3, 0.45, 0.6, 1.0):
        yield f"normal mode x {towards:g}, EM", by_normal_mode(x, reference, towards)
    for factor in (4.0, 1.0):  # of what the product takes
        held = Reference(reference.means, reference.covariances, factor * reference.shift)
        yield f"components, prior x {factor:g}", align(x, held)
    halfway = align(x, reference)
    yield "components, half the shift", _with_shares(x, reference, halfway.shift / 2, halfway.stretch**0.5, "em")


def logits_of(films: pd.DataFrame, left_out: Path, further: Path | None, decisions: Mapping[str, Any]) -> np.ndarray:
    """Logits (N, K) of the films of a manifest, in its order; zeros where nothing is known.

    Args:
        left_out: a table of `train_tb.py`. further: films.csv of an evaluation: its probabilities become logits.
        decisions: of the card.
    """
    classes = decisions["classes"]
    found = pd.read_csv(left_out).set_index("image")[classes]
    if further is not None:
        judged = pd.read_csv(further).set_index("image")[[f"p_{name}" for name in classes]].dropna()
        offsets = np.array([decisions["offsets"][name] for name in classes])
        values = (np.log(np.maximum(judged.to_numpy(), 1e-9)) - offsets) * decisions["temperature"]
        found = pd.concat([found, pd.DataFrame(values, judged.index, classes)])
    return found.reindex(films["image"]).fillna(0.0).to_numpy()


def main() -> None:
    """Print and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("left_out", "manifest", "card"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--films", type=Path, help="films.csv of pipeline evaluate")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.90])
    given = parser.parse_args()
    films = pd.read_csv(given.manifest, dtype=str, keep_default_na=False)
    decisions = json.loads(given.card.read_text())["decisions"]
    classes, k = decisions["classes"], decisions["classes"].index(decisions["positive"])
    logits = logits_of(films, given.left_out, given.films, decisions) / decisions["temperature"]
    label = films["label"].map({name: c for c, name in enumerate(classes)}).fillna(-1).astype(int).to_numpy()
    source = films["source"].to_numpy()
    usable = (logits != 0).any(axis=1) & (label >= 0) & (films["split"] != "test").to_numpy()
    usable &= ~np.isin(source, NOT_JUDGED_HERE)
    rows = []
    for hospital in sorted(set(source[usable])):
        own = np.flatnonzero(usable & (source == hospital))
        rest = usable & (source != hospital)
        positives, others = own[label[own] == k], own[label[own] != k]
        if len(others) < 40:
            continue  # tbx11k: TB alone
        reference = fit_reference(logits[rest], label[rest], source[rest])
        stats = [
            (
                differences(logits[rest & (source == name)]).mean(axis=0),
                differences(logits[rest & (source == name)]).std(axis=0),
            )
            for name in set(source[rest])
        ]
        typical = tuple(np.mean(part, axis=0) for part in zip(*stats, strict=True))
        for share in SHARES if len(positives) >= 40 else (0.0,):
            for repeat in range(given.repeats):
                draw = np.random.default_rng([repeat, round(100 * share)])
                n = min([FILMS, int(len(others) / (1 - share))] + ([int(len(positives) / share)] if share else []))
                sick = draw.permutation(positives)[: round(n * share)]
                well = draw.permutation(others)[: n - len(sick)]
                fit, test = np.r_[sick[::2], well[::2]], np.r_[sick[1::2], well[1::2]]
                y = label[test] == k
                for name, found in alignments(differences(logits[fit]), reference, typical):
                    for target in given.targets:
                        slope, offsets, threshold, _, _ = calibrated(found, reference, k, target, 1000)
                        p = softmax(slope * logits[test] + offsets)[:, k]
                        rows.append(
                            {
                                "hospital": hospital,
                                "share": share,
                                "way": name,
                                "target": target,
                                "n": len(fit),
                                "sensitivity": (p[y] >= threshold).mean() if y.any() else np.nan,
                                "specificity": (p[~y] < threshold).mean(),
                                "ece": ece(p, y),
                                "bias": p.mean() - y.mean(),
                            }
                        )
    table = pd.DataFrame(rows)
    figures = ["sensitivity", "specificity", "ece", "bias"]
    by_hospital = table.groupby(["target", "way", "hospital"])[figures].mean().round(3)
    print(by_hospital.unstack("hospital").T.swaplevel().sort_index().T.to_string())
    chosen = table[table["hospital"].isin(CHOOSING)].groupby(["target", "way"])
    lowest = chosen.apply(lambda part: part.groupby(["hospital", "share"])["sensitivity"].mean().min())
    summary = chosen[figures].mean().assign(lowest_sensitivity=lowest).round(3)
    print(f"\nOver {' and '.join(CHOOSING)}, which choose:\n{summary.to_string()}")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        table.round(4).to_csv(given.out / "unlabelled.csv", index=False)


if __name__ == "__main__":
    main()
