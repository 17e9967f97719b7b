"""`pipeline calibrate --unlabelled`: films in, their logits, a site file out. What is fitted: `train.unlabelled`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cxr_pipeline import stages
from cxr_pipeline.data.progress import progress_bar
from cxr_pipeline.data.radiograph import RadiographError, read
from cxr_pipeline.models.store import write_text
from cxr_pipeline.results.folder import run_info
from cxr_pipeline.results.journal import JournalReader
from cxr_pipeline.run.inputs import Input, find_inputs
from cxr_pipeline.stages.apply import apply
from cxr_pipeline.stages.base import OK, Record, Stage
from cxr_pipeline.stages.classify_calibration import rounded_down
from cxr_pipeline.stages.sets import RISK
from cxr_pipeline.train.calibration import CalibrationError, labelled_logits
from cxr_pipeline.train.unlabelled import LEAST, SiteFit, fit_unlabelled

log = logging.getLogger("cxr.calibrate")

_BATCH = 16
ASSUMES = (
    "the films are as they come (not chosen by disease), of adults, frontal; each class looks here as at the hospitals "
    "that the weights were judged on, but for one shift and one stretch of the scores"
)


def calibrate_unlabelled(
    inputs: Sequence[str | Path],
    out: Path,
    *,
    data: Path | None = None,
    target_sensitivity: float = 0.90,
    site: str | None = None,
    weights: str = "tb",
    runtime: str = "onnx",
) -> dict[str, Any]:
    """Fit a site on its films as they come, and write the site file.

    Args:
        inputs: films, folders or manifests, or finished results folders of the same weights, whose logits are taken.
        out: the file to write.
        data: a manifest of labelled films beside them, which say where their own class lies.

    Returns:
        What the file holds.

    Raises:
        CalibrationError: the weights know no reference, or the films do not tell; says why.
        InputError: an input does not exist.
    """
    chain = stages.load_chain(weights, "classify", runtime)
    classify = chain[-1]
    decisions = classify.card["decisions"]
    if "reference" not in decisions:
        raise CalibrationError(
            "these weights do not say where their classes lie (no `reference` on the card), so films without labels "
            "tell nothing. Train them again with this version, or give labelled films: --data MANIFEST"
        )
    logits = _logits(inputs, chain)
    known = np.full(len(logits), -1)
    if data is not None:
        of_labelled, labels, _ = labelled_logits(data, chain)
        logits, known = np.concatenate([logits, of_labelled]), np.concatenate([known, labels])
    if len(logits) < LEAST:
        raise CalibrationError(
            f"{len(logits)} films could be judged; at least {LEAST} are needed, 100 to 300 are better"
        )
    fitted = fit_unlabelled(
        logits,
        decisions,
        target_sensitivity=target_sensitivity,
        known=known if data is not None else None,
        risk=(decisions.get("sets") or {}).get("risk", RISK),
    )
    if fitted.against:
        raise CalibrationError(f"nothing is decided: {fitted.against}")
    facts = _facts(fitted, chain, site or out.stem, target_sensitivity, int((known >= 0).sum()))
    write_text(out, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    return facts


def _facts(fitted: SiteFit, chain: Sequence[Stage], site: str, target: float, labelled: int) -> dict[str, Any]:
    classes = chain[-1].classes

    def named(values: np.ndarray) -> dict[str, Any]:
        return {name: np.round(value, 4).tolist() for name, value in zip(classes, values, strict=True)}

    return {
        "site": site,
        "weights": {stage.name: stage.fingerprint for stage in chain},
        "temperature": round(float(fitted.temperature), 4),
        "offsets": named(fitted.offsets),
        "threshold": rounded_down(fitted.threshold),
        "threshold_ci95": [round(float(value), 4) for value in fitted.threshold_ci95],
        "target_sensitivity": target,
        "score": fitted.scale.to_json(),
        "sets": fitted.sets.to_json(),
        "films": {"n": fitted.n, "labelled": labelled},
        "unlabelled": {
            "assumes": ASSUMES,
            "shares": named(fitted.shares),
            "shares_ci95": named(fitted.shares_ci95),
            "shift": [round(float(value), 3) for value in fitted.shift],
            "stretch": round(float(fitted.stretch), 3),
        },
        "date": date.today().isoformat(),
    }


def _logits(inputs: Sequence[str | Path], chain: Sequence[Stage]) -> np.ndarray:
    """Logits (N, classes) of the films that could be judged."""
    folders = [Path(name) for name in inputs if (Path(name) / "run.json").is_file()]
    found = [_stored(folder, chain) for folder in folders]
    films = [name for name in inputs if Path(name) not in folders]
    if films:
        found.append(_judged(find_inputs(films), chain))
    return np.concatenate([np.empty((0, len(chain[-1].classes))), *found])


def _stored(folder: Path, chain: Sequence[Stage]) -> np.ndarray:
    run = run_info(folder)
    bundles = run.get("bundles") or run.get("fingerprints", {})
    for stage in chain:
        if bundles.get(stage.name) != stage.fingerprint:
            raise CalibrationError(
                f"the results in {folder} are of other {stage.name!r} weights. Give the films themselves"
            )
    logits = [entry.get("logits") for entry in JournalReader(folder / "journal.jsonl") if entry["row"]["status"] == OK]
    if None in logits:
        raise CalibrationError(f"{folder} does not hold what the network said. Give the films themselves")
    return np.array(logits, float).reshape(-1, len(chain[-1].classes))


def _judged(inputs: Sequence[Input], chain: Sequence[Stage]) -> np.ndarray:
    logits, left = [], 0
    with progress_bar("calibrate", len(inputs)) as progress:
        films = _records(inputs)
        done = 0
        while batch := list(islice(films, _BATCH)):
            records = [record for record in batch if record is not None]
            records = apply(chain, records)
            logits += [record.extra["logits"] for record in records if record.ok]
            left += len(batch) - sum(record.ok for record in records)
            done += len(batch)
            progress(done)
    if left:
        log.warning("%d of %d films could not be judged, and are left out", left, len(inputs))
    return np.array(logits, float).reshape(-1, len(chain[-1].classes))


def _records(inputs: Sequence[Input]) -> Iterator[Record | None]:
    for number, item in enumerate(inputs):
        try:
            yield Record(read(Path(item.path), id=f"film-{number}"))
        except (RadiographError, OSError) as error:
            log.info("%s", error)
            yield None
