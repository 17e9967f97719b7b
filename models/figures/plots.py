"""Pictures of trainings and evaluations, each a PNG; drawn without a display and without global state."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cxr_pipeline.data.files import write_bytes
from cxr_pipeline.models.figures.metrics import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"  # Okabe and Ito: told apart by all
COLOURS = [BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY]
_LINES = ("-", "--", ":")


def _style(number: int) -> dict[str, Any]:
    """Colour and line of the n-th curve: 21 that differ, then the same again."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _LINES[number // len(COLOURS) % len(_LINES)]}


def _whole_numbers(axis: Axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names of classes, sources and files are no formulas, dollar signs or not
        text.set_parse_math(False)
    memory = io.BytesIO()  # an earlier picture stays whole until all of the new one is known
    figure.savefig(memory, format="png")
    write_bytes(path, memory.getvalue())
    return path


def training_curves(history: Path, path: Path) -> Path:
    """Loss and each metric by epoch, train and val together, from a history.csv; the best val epoch is marked.

    A metric that only one of the two has is drawn too: a training without epochs measures on val alone.
    """
    with history.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    beside = ("epoch", "phase", "learning_rate")
    names = list(dict.fromkeys(n.removeprefix("val_") for n in rows[0] if n not in beside)) if rows else ["loss"]
    names.sort(key=lambda name: name != "loss")
    figure, axes = _figure(5.2 * len(names), 3.8, len(names))
    epochs = np.arange(1, len(rows) + 1)
    for axis, name in zip(axes, names, strict=True):
        for column, colour, label in ((name, BLUE, "train"), (f"val_{name}", ORANGE, "val")):
            values = np.array([float(row.get(column) or "nan") for row in rows])
            known = int(np.isfinite(values).sum())
            if known:
                axis.plot(epochs, values, color=colour, marker="o", markersize=3 if known > 1 else 6, label=label)
                if label == "val":
                    best = int(np.nanargmin(values) if name == "loss" else np.nanargmax(values))
                    axis.plot(epochs[best], values[best], "o", color=colour, markersize=9, fillstyle="none")
                    axis.annotate(
                        f"{values[best]:.3f}", (epochs[best], values[best]), xytext=(5, 8), textcoords="offset points"
                    )
        for number in range(1, len(rows)):
            if rows[number].get("phase") != rows[number - 1].get("phase"):
                axis.axvline(number + 0.5, color=GREY, linestyle=":", linewidth=1)
        _whole_numbers(axis)
        axis.set(xlabel="epoch", ylabel=name, title=name, xlim=(0.5, max(len(rows), 1) + 0.5))
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False)
    return _save(figure, path)


def compared_curves(runs: Sequence[tuple[str, Sequence[dict[str, Any]]]], names: Sequence[str], path: Path) -> Path:
    """Each metric on val by epoch, all runs in one picture.

    Args:
        runs: name and history, one dict per epoch with columns val_<name>; a run without a metric is left out there.
        names: of the metrics, such as "loss", "accuracy".
    """
    figure, axes = _figure(5.2 * len(names), 3.8, len(names))
    for axis, name in zip(axes, names, strict=True):
        for number, (run, history) in enumerate(runs):
            values = np.array([row.get(f"val_{name}", np.nan) for row in history], float)
            if np.isfinite(values).any():
                axis.plot(np.arange(1, len(values) + 1), values, marker="o", markersize=3, label=run, **_style(number))
        _whole_numbers(axis)
        axis.set(xlabel="epoch", ylabel=f"val {name}", title=f"{name} on val")
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def roc_and_precision_recall(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], threshold: float, path: Path, positive: str = "TB"
) -> Path:
    """ROC and precision-recall curves of each named (y, score), with the operating threshold marked."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    from cxr_pipeline.models.figures.metrics import auroc, average_precision, sensitivity, specificity

    figure, (roc, recall) = _figure(10.5, 4.8, 2)
    for number, (name, (y, score)) in enumerate(curves.items()):
        y = np.asarray(y, bool)
        if y.all() or not y.any():
            continue
        colour = COLOURS[number % len(COLOURS)]
        false, true, _ = roc_curve(y, score)
        roc.plot(false, true, color=colour, label=f"{name}: {auroc(y, score):.3f} (n={len(y)})")
        roc.plot(1 - specificity(y, score, threshold), sensitivity(y, score, threshold), "o", color=colour)
        precision, found, _ = precision_recall_curve(y, score)
        recall.plot(found, precision, color=colour, label=f"{name}: {average_precision(y, score):.3f}")
    roc.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"{positive}: ROC (AUROC); dot: operating threshold")
    recall.set(xlabel="recall", ylabel="precision", title="precision-recall (average precision)", ylim=(0, 1.02))
    for axis in (roc, recall):
        if len(axis.lines) > (axis is roc):  # more than the diagonal
            axis.legend(frameon=False, fontsize=8, loc="lower right" if axis is roc else "lower left")
    return _save(figure, path)


def reliability(confidence: np.ndarray, correct: np.ndarray, path: Path, bins: int = 10) -> Path:
    """How often an answer of some confidence is right, with 95 % intervals (Wilson 1927), and for how many films.

    Args:
        confidence: (N,) 0 to 1. correct: (N,) bool.
    """
    figure, (axis, count) = _figure(9, 4, 2)
    edges = np.linspace(0, 1, bins + 1)
    which = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    sizes = np.bincount(which, minlength=bins)
    filled = sizes > 0
    mean = np.bincount(which, confidence, bins)[filled] / sizes[filled]
    hits = np.bincount(which, np.asarray(correct, float), bins)[filled]
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    axis.vlines(mean, *wilson(hits, sizes[filled]), color=BLUE, linewidth=1.2, alpha=0.6)
    axis.plot(mean, hits / sizes[filled], color=BLUE, marker="o")
    axis.set(xlabel="confidence", ylabel="share right", title="reliability (95 % intervals)", xlim=(0, 1), ylim=(0, 1))
    count.bar(edges[:-1], sizes, width=1 / bins, align="edge", color=BLUE, edgecolor="white")
    count.set(xlabel="confidence", ylabel="films", title="how many")
    return _save(figure, path)


def confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> Path:
    """A confusion matrix (K, K): counts, and the share of each row."""
    figure, (axis,) = _figure(1.6 + 1.3 * len(names), 1.4 + 1.1 * len(names))
    _counts(axis, matrix, names)
    axis.set(xlabel="answer", ylabel="truth", title="confusion matrix")
    return _save(figure, path)


def confusion_of_labels(matrices: dict[str, np.ndarray], path: Path, columns: int = 5) -> Path:
    """A small confusion matrix (2, 2) of each label, absent first: counts, and the share of each row."""
    rows, columns = max(1, math.ceil(len(matrices) / columns)), min(columns, max(1, len(matrices)))
    figure, axes = _figure(0.8 + 2.2 * columns, 0.6 + 2.2 * rows, columns, rows)
    for number, axis in enumerate(axes):
        if number >= len(matrices):
            axis.set_axis_off()
            continue
        name = list(matrices)[number]
        _counts(axis, np.asarray(matrices[name]), ["absent", "present"])
        axis.tick_params(axis="y", labelrotation=90)
        for tick in axis.get_yticklabels():
            tick.set_verticalalignment("center")
        axis.set_title(textwrap.fill(name, 24), fontsize=10)
    figure.supxlabel("answer")
    figure.supylabel("truth")
    return _save(figure, path)


def _counts(axis: Axes, matrix: np.ndarray, names: Sequence[str]) -> None:
    """A confusion matrix (K, K) on an axis, each cell with its count and its share of the row."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            axis.text(
                column,
                row,
                f"{matrix[row, column]}\n{100 * shares[row, column]:.0f} %",
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.5 else "black",
            )
    axis.set(xticks=range(len(names)), xticklabels=names, yticks=range(len(names)), yticklabels=names)


def score_histogram(scores: dict[str, np.ndarray], threshold: float, path: Path) -> Path:
    """Distribution of the score (0 to 100) by true class, with the operating threshold (0 to 1)."""
    figure, (axis,) = _figure(6.5, 3.8)
    bins = list(np.linspace(0, 100, 26))
    for (name, values), colour in zip(scores.items(), [ORANGE, GREEN, BLUE, GREY] * 5, strict=False):
        axis.hist(values, bins=bins, histtype="step", linewidth=1.8, color=colour, label=f"{name} (n={len(values)})")
    axis.axvline(100 * threshold, color="black", linestyle="--", linewidth=1, label="operating threshold")
    axis.set(xlabel="score", ylabel="films", title="score by true class")
    axis.legend(frameon=False)
    return _save(figure, path)


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    path: Path,
    tile: int = 224,
    columns: int = 5,
    legend: Sequence[tuple[str, tuple[int, int, int] | None]] = (),
) -> Path:
    """Small pictures, uint8 grey (H, W) or BGR (H, W, 3), in a grid with a caption under each.

    Args:
        captions: of one line or more each; what is too long for its tile ends in two points.
        tile: side of a picture in pixels.
        legend: what is drawn in the pictures, in words above them, each with the colour (BGR) of a square before it.
    """
    band = 6 + 14 * max((caption.count("\n") + 1 for caption in captions), default=1)
    rows = max(1, math.ceil(len(images) / columns))
    top = _legend(legend, columns * tile)
    sheet = np.full((rows * (tile + band), columns * tile, 3), 255, np.uint8)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        scale = min((tile - 4) / image.shape[0], (tile - 4) / image.shape[1])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        y, x = number // columns * (tile + band), number % columns * tile
        sheet[y + 2 : y + 2 + size[1], x + 2 : x + 2 + size[0]] = small
        for at, text in enumerate(_ascii(caption).split("\n")):
            _write(sheet, _cut(text, tile - 8), x + 4, y + tile + 13 + 14 * at)
    write_bytes(path, cv2.imencode(".png", np.vstack([top, sheet]))[1].tobytes())
    return path


def _legend(entries: Sequence[tuple[str, tuple[int, int, int] | None]], width: int) -> np.ndarray:
    """The entries side by side on as many lines as they take, (h, width, 3) uint8; without any, of height 0."""
    places, x, line = [], 8, 0
    for text, colour in entries:
        needed = (18 if colour else 0) + _width(text)
        if x > 8 and x + needed > width - 8:
            x, line = 8, line + 1
        places.append((x, 17 + 20 * line))
        x += needed + 22
    band = np.full((20 * (line + 1) + 6 if entries else 0, width, 3), 255, np.uint8)
    for (text, colour), (x, y) in zip(entries, places, strict=True):
        if colour:
            cv2.rectangle(band, (x, y - 9), (x + 10, y + 1), colour, cv2.FILLED)
        _write(band, _ascii(text), x + (18 if colour else 0), y)
    return band


_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.36


def _write(image: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(image, text, (x, y), _FONT, _SIZE, (30, 30, 30), 1, cv2.LINE_AA)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()  # OpenCV draws ASCII only


def _width(text: str) -> int:
    return cv2.getTextSize(_ascii(text), _FONT, _SIZE, 1)[0][0]


def _cut(text: str, room: int) -> str:
    if _width(text) <= room:
        return text
    while text and _width(text + "..") > room:
        text = text[:-1]
    return text + ".."


def films_by_class(bars: dict[str, dict[str, int]], path: Path) -> Path:
    """How many films of each class: a bar for each name in `bars`, stacked by class."""
    classes = sorted({name for counts in bars.values() for name in counts})
    figure, (axis,) = _figure(8, 1.6 + 0.35 * len(bars))
    start = np.zeros(len(bars))
    for number, name in enumerate(classes):
        films = np.array([counts.get(name, 0) for counts in bars.values()])
        colour = COLOURS[number % len(COLOURS)]
        axis.barh(list(bars), films, left=start, color=colour, edgecolor="white", label=f"{name} ({films.sum()})")
        start += films
    for row, total in enumerate(start):
        axis.annotate(f"{total:.0f}", (total, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.08)
    axis.set(xlabel="films", title="films by source, split and class")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, path)


def label_counts(targets: np.ndarray, weights: np.ndarray, names: Sequence[str], path: Path) -> Path:
    """How often each label is there and not, and what both answers contribute to the loss before and after weighing.

    Args:
        targets: (N, K): 1, 0, or -1 where unknown.
        weights: (K, 2): of films that have the label, and of those that have it not.
    """
    present, absent = (targets == 1).sum(0), (targets == 0).sum(0)
    known = np.maximum(present + absent, 1)
    figure, axes = _figure(13, 0.28 * len(names) + 1.4, 3)
    panels = (
        ("films with the label", present, None),
        ("share of the loss, unweighed", present / known, absent / known),
        ("share of the loss, weighed", present * weights[:, 0] / known, absent * weights[:, 1] / known),
    )
    rows = np.arange(len(names))[::-1]
    for axis, (title, first, second) in zip(axes, panels, strict=True):
        if second is None:
            axis.barh(rows, first, color=BLUE)
        else:
            axis.barh(rows + 0.2, first, 0.4, color=BLUE, label="there")
            axis.barh(rows - 0.2, second, 0.4, color=ORANGE, label="not there")
        axis.set_yticks(rows, names if axis is axes[0] else [""] * len(names))
        axis.set_title(title)
    shown = axes[1].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower right", ncols=2, frameon=False, fontsize=8)  # inside it would hide bars
    return _save(figure, path)


def per_label(figures: dict[str, dict], path: Path) -> Path:
    """AUROC of each label with its interval, highest first, beside its prevalence."""
    ranked = sorted(
        (name for name in figures if np.isfinite(figures[name]["auc"].value)),
        key=lambda name: figures[name]["auc"].value,
    )
    figure, axes = _figure(10, 0.28 * max(len(ranked), 3) + 1.4, 2)
    rows = np.arange(len(ranked))
    auc = [figures[name]["auc"] for name in ranked]
    spread = [[f.value - f.low for f in auc], [f.high - f.value for f in auc]]
    axes[0].errorbar([f.value for f in auc], rows, xerr=spread, fmt="o", color=BLUE)
    axes[0].axvline(0.5, color=GREY, linestyle=":")
    axes[0].set_yticks(rows, [f"{name} (n {figures[name]['support']})" for name in ranked])
    axes[0].set_xlabel("AUROC, 95 % interval")
    axes[1].barh(rows, [figures[name]["prevalence"].value for name in ranked], color=ORANGE)
    axes[1].set_yticks(rows, [""] * len(ranked))
    axes[1].set_xlabel("share of the films")
    for axis in axes:
        axis.set_ylim(-0.6, max(len(ranked), 1) - 0.4)  # the same, so that a bar stands in the row of its name
    return _save(figure, path)


def several_roc(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> Path:
    """ROC curves of several labels in one picture, no two alike; those with one answer only are left out."""
    from sklearn.metrics import roc_curve

    from cxr_pipeline.models.figures.metrics import auroc

    figure, (axis,) = _figure(8.5, 5.5)
    drawn = {name: (y, score) for name, (y, score) in curves.items() if len(y) and 0 < y.sum() < len(y)}
    for number, (name, (y, score)) in enumerate(drawn.items()):
        fpr, tpr, _ = roc_curve(y, score)
        axis.plot(fpr, tpr, linewidth=1.4, label=f"{name}: {auroc(y, score):.3f}", **_style(number))
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=(0, (1, 4)), linewidth=1)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC of each label (AUROC)")
    if drawn:
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _save(figure, path)
