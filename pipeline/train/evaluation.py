"""Evaluation of one stage on labelled films: `metrics.json`, `films.csv` and plots."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import csv_text, write_text
from cxr_pipeline.data.manifest import Manifest, read_manifest
from cxr_pipeline.data.splits import split_by_patient
from cxr_pipeline.run.spec import ChainSpec
from cxr_pipeline.stages.base import Stage

log = logging.getLogger("cxr.evaluate")


class EvaluationError(CxrError, ValueError):
    """Nothing to evaluate; says what was asked for and what there is."""


def evaluate(
    stage: str,
    data: Path,
    out: Path,
    *,
    split: str | None = "test",
    source: str | None = None,
    weights: str = "tb",
    runtime: str = "onnx",
    site: Path | None = None,
    refuse: bool = True,
    mask_labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Judge one stage of a chain of weights on a manifest's films and write the figures into `out`.

    Args:
        stage: name of a stage; those that it builds on run too.
        data: a manifest, or a class-per-folder tree.
        split: films of this split only; None takes all.
        source: films of this source only; None takes all.
        site: a site file to judge with, see `train.calibration`.
        refuse: False judges films too that the chain would refuse; where no lung is found they stay out all the same.
        mask_labels: values of the masks that count as lung; by default the obvious ones.

    Returns:
        What `metrics.json` holds.

    Raises:
        EvaluationError: no film matches, or none of them has what the stage is judged against.
    """
    *chain, last = ChainSpec(weights, stage, runtime=runtime, site=site, refuse=refuse).load()
    manifest = read_manifest(data, classes=labels_of([*chain, last]), mask_labels=mask_labels)
    split_recipe = dict(last.card.get("dealt", {}))
    if (split is not None or split_recipe) and not (manifest.table["split"] != "").any():
        # As the training of these weights dealt films out: other splits would hold films that it saw.
        manifest = split_by_patient(manifest.relabelled(split_recipe.pop("class_of", None)), **split_recipe)
    chosen = manifest.select(split=split, source=source)
    if len(chosen) == 0:
        have = ", ".join(f"{s or 'none'}: {n}" for s, n in sorted(Counter(manifest.table["split"]).items()))
        sources = ", ".join(sorted(set(manifest.table["source"])))
        asked = {"split": split, "source": source}
        wanted = " and ".join(f"{name} {value!r}" for name, value in asked.items() if value is not None)
        raise EvaluationError(
            f"no film has {wanted}. Splits there ({have}); sources there: {sources}. Name one of these, or --split all"
        )
    if len(last.films_with_truth(chosen)) == 0:
        raise EvaluationError(_nothing_to_judge_by(last, chosen, manifest))
    return evaluate_stage(last, chosen, out, chain, split=split, source=source, refuse=refuse)


def _nothing_to_judge_by(stage: Stage, chosen: Manifest, manifest: Manifest) -> str:
    needed, place = stage.truth_of()
    usable = _counted(stage.films_with_truth(manifest))
    instead = f"Films that have it: {usable}" if usable else f"No film of the manifest has it: name it in the {place}"
    labels = ""
    if "label" in stage.fills:
        found = Counter(label or "none" for label in chosen.table["label"])
        labels = f", labels: {', '.join(f'{name} {n}' for name, n in found.most_common(10))}"
    return f"no film of the selection has {needed} ({_counted(chosen)}{labels}). {instead}"


def _counted(films: Manifest) -> str:
    """Films by source and split, such as "nih test 198, shenzhen test 100"."""
    kinds = Counter(zip(films.table["source"], films.table["split"], strict=True))
    return ", ".join(f"{source} {split or 'without split'} {n}" for (source, split), n in sorted(kinds.items()))


def seen_in_training(chain: Sequence[Stage], data: Manifest) -> list[dict[str, Any]]:
    """The films of `data` that are of a source and split that a stage of the chain was trained on, as its card says.

    It goes by the names of source and split alone: the same films under other names are not found, and films that only
    share the names are taken for the same.

    Returns:
        One dict a stage, split and source: ``stage``, ``split``, ``source``, ``films`` (how many) and ``used_to``:
        "train" the network, or "choose" its best epoch, temperature and thresholds.
    """
    counts = Counter(zip(data.table["split"], data.table["source"], strict=True))
    found = []
    for stage in chain:
        training = stage.card.get("training") or {}
        films = training.get("films") or {}
        fit = (training.get("settings") or {}).get("fit") or {}
        for part, splits, used_to in (("train", fit.get("splits") or ["train"], "train"), ("val", ["val"], "choose")):
            sources = (films.get(part) or {}).get("by_source") or {}
            found += [
                {"stage": stage.name, "split": split, "source": source, "films": n, "used_to": used_to}
                for (split, source), n in sorted(counts.items())
                if split in splits and source in sources
            ]
    return found


def _warn_of(seen: Sequence[dict[str, Any]]) -> None:
    done = {"train": "trained on", "choose": "chosen and calibrated on"}
    for stage, used_to in dict.fromkeys((part["stage"], part["used_to"]) for part in seen):
        films = ", ".join(
            f"{part['source']} {part['split']} ({part['films']} here)"
            for part in seen
            if (part["stage"], part["used_to"]) == (stage, used_to)
        )
        log.warning(
            "warning: %s was %s films of these sources and splits: %s. The figures may be better than on new films",
            stage,
            done[used_to],
            films,
        )


def labels_of(chain: Sequence[Stage]) -> list[str] | None:
    """The labels that a manifest may hold for a chain to be judged on it; None where any may."""
    for stage in chain:
        if "label" in stage.fills:
            free = stage.decisions.get("multi_label") or stage.decisions.get("class_of")
            return None if free else list(stage.classes)
    return None


def evaluate_stage(
    stage: Stage,
    data: Manifest,
    out: Path,
    chain: Sequence[Stage] = (),
    *,
    split: str | None,
    source: str | None = None,
    refuse: bool = True,
) -> dict[str, Any]:
    """Run `stage.evaluate` and write what it says; `films` in it goes to films.csv, the rest to metrics.json.

    `seen` there lists what of the films the stages were trained on, see `seen_in_training`; a warning says so too.
    """
    seen = seen_in_training([*chain, stage], stage.films_with_truth(data))
    _warn_of(seen)
    out.mkdir(parents=True, exist_ok=True)
    figures = dict(stage.evaluate(data, out, chain))
    films = figures.pop("films", [])
    metrics = {
        "stage": stage.name,
        "split": split or "all",
        "source": source or "all",
        "split_hash": data.split_hash(),
        "n_films": len(data),
        "n_judged": sum(film.get("status") == "ok" for film in films),
        **({} if refuse else {"refuse": False}),
        "patients": int(data.table["patient"].nunique()),
        "seen": seen,
        "sources": dict(sorted(Counter(data.table["source"]).items())),
        "weights": {s.name: s.fingerprint for s in [*chain, stage]},
        "date": date.today().isoformat(),
        **plain(figures),
    }
    write_text(out / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if films:
        write_text(out / "films.csv", _table(films))
    return metrics


def summary_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of `metrics.json` that belong on a card: those with an interval, pooled and by source."""

    def figures(node: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in node.items() if isinstance(value, dict) and "ci95" in value}

    kept: dict[str, Any] = {"n": metrics["n_judged"], "split_hash": metrics["split_hash"], **figures(metrics)}
    for key in ("constant_guess", "threshold"):
        if key in metrics:
            kept[key] = metrics[key]
    if "by_source" in metrics:
        kept["by_source"] = {name: figures(node) for name, node in metrics["by_source"].items()}
    return kept


def plain(value: Any) -> Any:
    """The value as JSON can hold it: figures as dicts, arrays as lists, what is not finite as null."""
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value


def _table(films: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for film in films for name in film))
    # Nine digits: scores near 1 keep their order, and figures made from the file are the same.
    return csv_text(
        columns, ({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in film.items()} for film in films)
    )
