"""Trained runs side by side, for `pipeline compare`: figures, cost, and whether differences are more than chance."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline import stages
from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import csv_rows
from cxr_pipeline.models.store import CARD_FILE, KERAS_FILE, SERVING_FILE, SHIPPED, open_network, read_card, shipped
from cxr_pipeline.models.training.fit import START

BATCH, ROUNDS = 8, 15  # of the measurement of speed


class CompareError(CxrError, ValueError):
    """Runs that cannot be compared; names the folder and what is missing there."""


@dataclass(frozen=True)
class Run:
    """What a run left: any of its parts may be missing.

    Attributes:
        folder: as given. name: the part of it that tells the runs apart.
        bundle: the trained stage's folder, None where `folder` is an evaluation.
        evaluation: folder of metrics.json.
        history: one dict per epoch, numbers as float, blank as NaN.
    """

    folder: Path
    name: str
    stage: str
    bundle: Path | None = None
    evaluation: Path | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """`rows` has one dict per run, `pairs` one per tested pair, `notes` what a reader must know."""

    runs: list[Run]
    rows: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    notes: list[str]


def compare(folders: Sequence[str | Path], *, split: str = "test") -> Comparison:
    """Put runs side by side and test the differences of their classifiers on the films that both judged.

    Args:
        folders: chains of weights (their classifier is compared), folders of one trained stage, evaluation folders, or
            names of shipped weights.
        split: the evaluation taken from a trained run.

    Raises:
        CompareError: a folder is no run or cannot be read, the runs are of different stages, answer about different
            classes or were judged on different films, or two evaluations disagree about a film's true class.
    """
    from cxr_pipeline.compare.pairs import paired_tests

    if len(folders) < 2:
        raise CompareError(f"a comparison needs two runs or more. Received: {len(folders)}")
    names = _names([str(folder) for folder in folders])
    runs = [_read(str(folder), name, split) for folder, name in zip(folders, names, strict=True)]
    if len({run.stage for run in runs}) > 1:
        received = ", ".join(f"{run.folder}: {run.stage}" for run in runs)
        raise CompareError(f"runs of one stage can be compared. Received: {received}. Give such as RUN/classify")
    _same_question(runs)
    _same_films(runs)
    notes = _notes(runs, split)
    pairs = paired_tests(runs, notes) if runs[0].stage == "classify" else []
    speeds = _milliseconds([run.bundle for run in runs])
    rows = [figures_of(run) | cost_of(run, speed) for run, speed in zip(runs, speeds, strict=True)]
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    return Comparison(runs, [{key: row.get(key) for key in columns} for row in rows], pairs, notes)


def _same_question(runs: Sequence[Run]) -> None:
    """Refuse classifiers of which no two answer about one class: their figures are of different things."""
    if runs[0].stage != "classify":
        return
    asked = [_about(run) for run in runs]
    known = [one for one in asked if one]
    if len(known) > 1 and not any(a & b for n, a in enumerate(known) for b in known[n + 1 :]):
        said = "; ".join(
            f"{run.name}: {', '.join(sorted(one)) or 'not said'}" for run, one in zip(runs, asked, strict=True)
        )
        raise CompareError(
            f"these runs answer different questions, so that no figure of one stands beside that of another ({said}). "
            "Give runs with a class in common"
        )


def _same_films(runs: Sequence[Run]) -> None:
    """Refuse evaluations of which no two have a film in common: their figures differ by the films alone."""
    tables = [run.evaluation / "films.csv" for run in runs if run.evaluation is not None]
    judged = [{row["image"] for row in read_table(path) if "image" in row} for path in tables if path.is_file()]
    if len(judged) < max(2, len(tables)) or any(a & b for n, a in enumerate(judged) for b in judged[n + 1 :]):
        return
    said = "; ".join(
        f"{path.parent}: {len(films)} film(s), such as {min(films, default='none')}"
        for path, films in zip(tables, judged, strict=True)
    )
    raise CompareError(
        f"these runs were judged on different films, by the column image of films.csv, so that their figures do not "
        f"compare ({said}). Judge each on the same manifest, and compare the folders: pipeline evaluate --stage "
        f"{runs[0].stage} --data MANIFEST --split {runs[0].metrics.get('split') or 'test'} --weights RUN --out FOLDER"
    )


def _about(run: Run) -> set[str]:
    """The classes that the figures of a run are about: the positive one, or each label of several."""
    positive = run.metrics.get("positive")
    return {positive} if positive else set(run.metrics.get("classes") or ())


# --- reading ---------------------------------------------------------------------------------------------------------


def _names(folders: Sequence[str]) -> list[str]:
    """Each folder's path below what all have in common, shipped weights by name; a number behind those alike."""
    paths = [os.path.abspath(folder) for folder in folders if folder not in shipped()]
    common = os.path.commonpath(paths) if len({os.path.splitdrive(path)[0] for path in paths}) == 1 else ""
    below = {path: os.path.relpath(path, common) if common else path for path in paths}
    below |= {path: os.path.basename(path) for path, name in below.items() if name == "."}
    short = [f"{folder} (shipped)" if folder in shipped() else below[os.path.abspath(folder)] for folder in folders]
    count = [short[: number + 1].count(name) for number, name in enumerate(short)]
    return [name if number == 1 else f"{name} ({number})" for name, number in zip(short, count, strict=True)]


def _read(given: str, name: str, split: str) -> Run:
    folder = SHIPPED / given if given in shipped() else Path(given)
    if (folder / "metrics.json").is_file():
        metrics = _json(folder / "metrics.json")
        stage = metrics.get("stage")
        if stage not in stages.names():
            raise CompareError(f"{folder / 'metrics.json'} names no stage. Make it again: pipeline evaluate")
        return Run(folder, name, stage, evaluation=folder, metrics=metrics)
    bundle = folder if (folder / CARD_FILE).is_file() else folder / "classify"
    if not (bundle / CARD_FILE).is_file():
        trained = [stage for stage in stages.names() if (folder / stage / CARD_FILE).is_file()]
        more = f"; of it {', '.join(trained)} can be compared, such as {folder / trained[0]}" if trained else ""
        raise CompareError(
            f"{folder} is not a run: it has no classify/{CARD_FILE} (a trained chain), no {CARD_FILE} (a trained stage)"
            f" and no metrics.json (an evaluation){more}. Train it to the end (pipeline train --out), or evaluate"
        )
    evaluation = bundle / "evaluation" / split
    has_figures = (evaluation / "metrics.json").is_file()
    card = read_card(bundle)
    return Run(
        folder,
        name,
        card.get("stage", bundle.name),
        bundle,
        evaluation if has_figures else None,
        _json(evaluation / "metrics.json") if has_figures else _on_card(card, split),
        _history(bundle / "history.csv"),
    )


def _on_card(card: dict[str, Any], split: str) -> dict[str, Any]:
    """What a card says of a split, as `metrics.json` has it; nothing where it says nothing."""
    figures = card.get("figures", {}).get(split)
    if not figures:
        return {}
    return {"split": split, "n_judged": figures.get("n"), "positive": card["decisions"].get("positive"), **figures}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompareError(f"{path} cannot be read ({error}). Make it again: pipeline evaluate") from error
    if not isinstance(content, dict):
        raise CompareError(f"{path} holds no figures. Make it again: pipeline evaluate")
    return content


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv_rows(file))


def _history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [
        {name: value if name == "phase" else number_of(value) for name, value in row.items()}
        for row in read_table(path)
    ]


def number_of(text: str | None) -> float:
    """A cell as a number, NaN where it holds none."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _notes(runs: Sequence[Run], split: str) -> list[str]:
    notes = [
        f"{run.folder} has no evaluation of the split {split!r}: its figures are blank. Make one: pipeline evaluate "
        f"--stage {run.stage} --split {split} --weights {run.folder} --data MANIFEST --out "
        f"{(run.bundle or run.folder) / 'evaluation' / split}"
        for run in runs
        if run.evaluation is None and not run.metrics
    ]
    notes += [
        f"The figures of {run.name} are those of its card, which has no answers film by film: it is in no paired test."
        for run in runs
        if run.evaluation is None and run.metrics
    ]
    notes += [
        f"Films of {run.name} may have several labels: its accuracy and AUROC are means over the labels."
        for run in runs
        if run.metrics.get("multi_label")
    ]
    if len({run.metrics["split_hash"] for run in runs if "split_hash" in run.metrics}) > 1:
        paired = ", only the paired tests do" if runs[0].stage == "classify" else ""
        notes.append(f"The runs were judged on different films: their figures do not compare{paired}.")
    return notes


# --- figures ---------------------------------------------------------------------------------------------------------


def figures_of(run: Run) -> dict[str, Any]:
    """One run's best epoch and evaluation, by column of compare.csv; what is unknown is left out."""
    row: dict[str, Any] = {"run": str(run.folder)}
    if run.history:
        best = best_epoch(run.history, run.stage)
        row |= {"epochs": len(run.history), "best_epoch": int(best["epoch"])}
        for name in curve_names(run.history):
            row |= {f"train_{name}": _known(best.get(name)), f"val_{name}": _known(best.get(f"val_{name}"))}
    metrics = run.metrics
    if not metrics:
        return row
    row |= {"split": metrics.get("split"), "source": metrics.get("source"), "n": metrics.get("n_judged")}
    positive = metrics.get("positive")
    for name in stages.stage_class(run.stage).headline_figures:
        area = f"auc_{positive.lower()}" if positive else "auc"
        figure = metrics.get(area if name == "auroc" else name)
        if isinstance(figure, dict) and "ci95" in figure:
            row |= {name: figure["value"], f"{name}_low": figure["ci95"][0], f"{name}_high": figure["ci95"][1]}
    if run.stage == "classify":
        row["positive"] = positive
        classes = metrics.get("per_class", {})
        counted = [values for values in classes.values() if values.get("support")]
        names = ("precision", "recall", "f1")
        if counted:  # a class that is never answered has no precision: 0 in the mean, as scikit-learn has it
            row |= {f"{name}_macro": float(np.mean([_of_class(v, name) or 0.0 for v in counted])) for name in names}
        if positive:
            row |= {f"{name}_positive": _of_class(classes.get(positive, {}), name) for name in names}
    return row


def _known(value: float | None) -> float | None:
    """A number of the history, None where the epoch has none: the start has no accuracy on train."""
    return value if value is not None and np.isfinite(value) else None


def _of_class(values: dict[str, Any], name: str) -> float | None:
    """A figure of `per_class`: a number, or with an interval where a film may have several labels."""
    figure = values.get("sensitivity" if name == "recall" and "recall" not in values else name)
    return figure.get("value") if isinstance(figure, dict) else figure


def best_epoch(history: Sequence[dict[str, Any]], stage: str) -> dict[str, Any]:
    """The row whose weights the training kept: best on val in its last phase, or its start; see `training.fit.fit`."""
    monitor = stages.stage_class(stage).monitor
    if monitor is None:  # a stage that learns in no epochs
        return history[-1]
    column, mode = monitor
    better = max if mode == "max" else min
    rows = [row for row in history if row["phase"] in (START, history[-1]["phase"])]
    known = [row for row in rows if np.isfinite(row.get(column, np.nan))]
    return better(known, key=lambda row: row[column]) if known else rows[-1]


def curve_names(history: Sequence[dict[str, Any]]) -> list[str]:
    """Loss, and then the metrics that the history has of val."""
    names = [name.removeprefix("val_") for name in history[0] if name.startswith("val_")]
    return sorted(names, key=lambda name: name != "loss")


def cost_of(run: Run, milliseconds: float | None) -> dict[str, Any]:
    """Parameters (those that training leaves alone too), milliseconds per image, and the serving file's megabytes."""
    row: dict[str, Any] = {}
    if run.bundle is not None and (run.bundle / KERAS_FILE).is_file():
        row["parameters"] = _parameters(run.bundle / KERAS_FILE)
    if milliseconds is not None and run.bundle is not None:
        row["ms_per_image"] = milliseconds
        row["serving_mb"] = (run.bundle / SERVING_FILE).stat().st_size / 1e6
    return row


def _parameters(path: Path) -> int:
    """Counted in the file, which spares the seconds that TensorFlow takes to load."""
    import h5py

    sizes: list[int] = []
    try:
        with zipfile.ZipFile(path) as bundle, h5py.File(io.BytesIO(bundle.read("model.weights.h5"))) as file:
            file.visititems(lambda _, item: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise CompareError(f"{path} cannot be read ({error}). Is the file whole? Train the stage again") from error
    return sum(sizes)


def _milliseconds(bundles: Sequence[Path | None]) -> list[float | None]:
    """Median milliseconds per image of each bundle's serving file under ONNX Runtime, in batches of 8.

    The bundles take turns in this process, so that whatever else the machine does falls on all alike.
    """
    networks = {
        number: (open_network(bundle), _batch(bundle / SERVING_FILE))
        for number, bundle in enumerate(bundles)
        if bundle is not None and (bundle / SERVING_FILE).is_file()
    }
    seconds: dict[int, list[float]] = {number: [] for number in networks}
    for _ in range(ROUNDS + 1):
        for number, (network, batch) in networks.items():
            begun = time.perf_counter()
            network(batch)
            seconds[number].append(time.perf_counter() - begun)
    # the first round warms up
    return [
        1e3 * float(np.median(seconds[number][1:])) / BATCH if number in seconds else None
        for number in range(len(bundles))
    ]


def _batch(path: Path) -> np.ndarray:
    """Grey pictures of the size that the network takes, (8, H, W, C) float32."""
    import onnx

    shape = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    return np.full((BATCH, *(axis.dim_value for axis in shape[1:])), 0.5, np.float32)
