"""The films that the classifier learns from and is judged on: which they are, what they lack, and their crops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.stages.base import Stage
from cxr_pipeline.stages.classify_targets import UNKNOWN, one_hot, zones_with_lesions
from cxr_pipeline.stages.classify_targets import several_labels as targets_of
from cxr_pipeline.stages.crops import VERSION, lung_crop, rounded
from cxr_pipeline.stages.films import sources_of, stream

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest

log = logging.getLogger("cxr.classify")


def usable_films(data: Manifest, classes: Sequence[str], multi_label: bool, uncertain: str = "ignore") -> Manifest:
    """The films that have one of the classes as label, or, where they may have several, of which any is known.

    `uncertain`: what uncertain labels count as in training; in figures they are unknown.
    """
    if not multi_label:
        return data.select(labels=classes)
    known = np.asarray((targets_of(data.rows(), classes, uncertain) >= 0).any(axis=1))
    return replace(data, table=data.table.loc[known].reset_index(drop=True))


def parts_of(data: Manifest, config: Config) -> dict[str, Manifest]:
    """The films to train on, and to watch and calibrate on."""
    settings = config.classify
    chosen = data.select(source=sources_of(data, settings.fit))
    usable = usable_films(chosen, config.classes, config.multi_label, settings.uncertain)
    return {split: usable.select(split=split) for split in ("train", "val")}


def require_films(data: Manifest, config: Config) -> None:
    """Refuse a training that cannot end well before it begins.

    Raises:
        TrainingError: train or val is empty, or has no film of the positive class, or none without it.
    """
    from cxr_pipeline.models.training.fit import TrainingError

    chosen, advice = _chosen(config), _advice(config)
    names = sorted(set(data.table["source"]))
    what = "of which any class is known" if config.multi_label else "with a class as its label"
    for split, part in parts_of(data, config).items():
        if not len(part):
            column = "findings" if config.multi_label else "label"
            labels = sorted({name for cell in data.table[column] for name in cell.split("|")} - {""})
            raise TrainingError(
                f"no film of split {split!r}{chosen} {what}. Classes: {', '.join(config.classes)}; "
                f"{column} there: {_few(labels)}; sources there: {_few(names)}{advice}"
            )
        if config.multi_label:
            continue
        positive = int((part.table["label"] == config.positive).sum())
        if positive in (0, len(part)):
            raise TrainingError(
                f"{positive} of {len(part)} films of split {split!r}{chosen} have the positive class, "
                f"{config.positive}: films with it and without are needed in train and val{advice}"
            )


def require_sources(data: Manifest, config: Config) -> None:
    """Refuse a head in two steps that nothing could calibrate.

    Raises:
        TrainingError: no source of train can be left out.
    """
    from cxr_pipeline.models.training.fit import TrainingError

    two_steps = config.classify.head == "two_steps" and not config.multi_label
    if two_steps and not can_leave_out(parts_of(data, config)["train"], config.normal, ()):
        raise TrainingError(
            f"classify.head is two_steps, and no source of train{_chosen(config)} can be left out to calibrate on: "
            "that takes each of its classes from another source too. To calibrate on val: --set classify.head=solved"
        )


def can_leave_out(manifest: Manifest, normal: str | None, unused: Sequence[str]) -> bool:
    """Whether the films of train without those of some source still hold its classes, the normal and another one.

    A head in two steps (`models.training.two_steps`) calibrates on such films.
    """
    table = manifest.table
    used = table[(table["label"] != "") & table["split"].isin(["", "train"]) & ~table["source"].isin(list(unused))]
    for _, here in used.groupby("source"):
        others = set(used.loc[~used.index.isin(here.index), "label"])
        if set(here["label"]) <= others and normal in others and len(others) > 1:
            return True
    return False


def warn_of_gaps(parts: dict[str, Manifest], config: Config) -> None:
    """Say which sources and classes were asked for, and have no films to learn from."""
    films = parts["train"].table
    absent = sorted(set(config.classify.fit.sources or ()) - set(films["source"]))
    if absent:
        log.warning("classify.fit.sources names %s, of which there is no film in train", ", ".join(absent))
    for split, part in parts.items():
        lacking = [name for name in config.classes if not (part.table["label"] == name).any()]
        if lacking and not config.multi_label:
            log.warning("no film of split %r is %s%s%s", split, " or ".join(lacking), _chosen(config), _advice(config))


def _chosen(config: Config) -> str:
    """The sources that a config takes, for a sentence about films."""
    settings = config.classify.fit
    if settings.sources is not None:
        return f" of the sources {', '.join(settings.sources)} (classify.fit.sources)"
    return f" (left out: {', '.join(settings.leave_out)})" if settings.leave_out else ""


def _advice(config: Config) -> str:
    """How to train on all sources, where a config leaves some out."""
    settings = config.classify.fit
    if settings.sources is not None:
        return ". To train on all sources: --set classify.fit.sources=null"
    return ". To train on them too: --set classify.fit.leave_out=[]" if settings.leave_out else ""


def _few(names: Sequence[str]) -> str:
    return (", ".join(names[:8]) or "none") + (f" and {len(names) - 8} more" if len(names) > 8 else "")


class Crops(NamedTuple):
    """What a training learns from.

    Attributes:
        crops: (N, size, size) uint8. lungs: (N, size, size) uint8, 0 or 1.
        targets: (N, classes) float32: one-hot, or 1, 0 and -1 for unknown of several labels.
        rows: the films' rows of the manifest.
        zones: (N, 6) float32: 1 where a film of the positive class has a lesion, 0 where not, NaN where unknown.
    """

    crops: np.ndarray
    lungs: np.ndarray
    targets: np.ndarray
    rows: list[dict[str, Any]]
    zones: np.ndarray


def crops_of(data: Manifest, config: Config, chain: Sequence[Stage], folder: Path) -> Crops:
    """The films as the stages of `chain` and the classifier's preprocessing leave them, kept in `folder`."""
    from cxr_pipeline.data.cache import kept_arrays

    size = config.classify.size
    table = data.rows()

    def boxes_of(row: dict[str, Any]) -> list[Box]:
        return [box for _, box in data.boxes_of(row["image"])] if row["label"] == config.positive else []

    def rows() -> Any:
        for number, (row, record) in enumerate(stream(data, chain, description="lung crops")):
            if record.ok:
                crop, lungs, frame = lung_crop(record, size)
                zones = zones_with_lesions(lungs, boxes_of(row), frame)
                yield number, {"crop": rounded(crop), "lungs": lungs, "zones": zones}

    films = [(row["image"], [tuple(box) for box in boxes_of(row)]) for row in table]
    key = ["classify", VERSION, size, [s.fingerprint for s in chain], films, str(data.root)]
    shapes = {"crop": (size, size), "lungs": (size, size), "zones": (6,)}
    arrays, numbers = kept_arrays(folder, key, len(data), shapes, rows)
    kept = [table[number] for number in numbers]
    if config.multi_label:
        targets = targets_of(kept, config.classes, config.classify.uncertain)
    else:
        targets = one_hot(kept, config.classes)
    zones = np.where(arrays["zones"] == UNKNOWN, np.nan, arrays["zones"]).astype(np.float32)
    return Crops(arrays["crop"], arrays["lungs"], targets, kept, zones)
