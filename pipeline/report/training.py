"""The report of a training: `report.html` in the folder of `pipeline train --out`, made from what the training left.

Figures with intervals, curves, confusion matrix, ROC, reliability, worst cases and settings of each stage, in one page
that works from disk and without a network. The same folder gives the same bytes.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline import stages
from cxr_pipeline.data.files import csv_rows
from cxr_pipeline.models.store import CARD_FILE, WeightsError, read_card
from cxr_pipeline.report.page import (
    ReportError,
    as_text,
    card_section,
    escape,
    figure,
    figures_table,
    folded,
    is_figure,
    number,
    page,
    table,
)
from cxr_pipeline.results.folder import REPORT

_SHOWN = 20  # worst cases, as many as the pictures of them hold
_SHEETS = ("worst", "random")  # pictures of films, packed as JPEG: a tenth of the PNG
_LABEL_FIGURES = {  # of `per_class` where a film may have several labels, and how the table heads them
    "support": "with it",
    "auc": "AUROC (95 % interval)",
    "average_precision": "average precision (95 % interval)",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "ece": "ECE",
    "threshold": "threshold",
}


def is_training(folder: Path) -> bool:
    """Whether `pipeline train` left the folder: a stage has been trained in it, and no run wrote there."""
    return not (folder / "run.json").exists() and any((folder / name / CARD_FILE).is_file() for name in stages.names())


def write_training_report(folder: Path) -> Path:
    """Write `report.html` into a folder of trained weights; an older one is replaced at once or not at all.

    Raises:
        ReportError: no stage has been trained there, or a file of it is damaged.
        OSError: a file cannot be read or written.
    """
    if not is_training(folder):
        raise ReportError(f"{folder} holds no trained stage. Give a folder of `pipeline train --out`")
    names = [name for name in stages.names() if (folder / name / CARD_FILE).is_file()]
    try:
        cards = {name: read_card(folder / name) for name in names}
        with page(folder / REPORT, "Training of a chest X-ray chain") as file:
            file.write(_summary(folder, cards).encode())
            for name, card in cards.items():
                for part in _stage(folder / name, name, card):
                    file.write(part.encode())
    except (WeightsError, ValueError, KeyError) as error:
        raise ReportError(f"{folder} cannot be read as a training ({error}). Train the stage again") from error
    return folder / REPORT


def _summary(folder: Path, cards: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, card in cards.items():
        training = card.get("training") or {}
        films = ", ".join(f"{split} {part['n']}" for split, part in (training.get("films") or {}).items())
        state = "finished" if (folder / name / "done").is_file() else "not finished, or not measured yet"
        if "taken_from" in card:
            state = f"taken from {card['taken_from']}"
        rows.append([name, state, films or training.get("fitted", "not said"), training.get("epochs", "none")])
    out = '<section aria-labelledby="summary">\n<h2 id="summary">Summary</h2>\n'
    out += table(["stage", "state", "films", "epochs"], rows, "Stages")
    missing = [
        name for name in stages.stored_names(folder) if name not in cards and stages.stage_class(name).has_weights
    ]
    if missing:
        out += f'<p class="warning">Not trained here: {escape(", ".join(missing))}.</p>\n'
    return out + "</section>\n"


def _stage(folder: Path, name: str, card: dict[str, Any]) -> Iterator[str]:
    """The pieces of a stage's section, one picture at a time."""
    measured = dict(_evaluations(folder))
    splits = measured or card.get("figures") or {}
    yield f'<section aria-labelledby="{name}">\n<h2 id="{name}">{name}</h2>\n'
    yield card_section(name, card | {"figures": splits}, card["decisions"])
    yield from _curves(folder, name)
    for split, metrics in measured.items():
        yield f"<h3>{escape(name)}, {escape(split)} films</h3>\n"
        yield _evaluation(metrics, f"{name}, {split}")
        yield from _plots(folder / "evaluation" / split, name, metrics)
        yield _worst(folder / "evaluation" / split / "films.csv", name, metrics)
    if (folder / "fit.csv").is_file():
        rows = _rows(folder / "fit.csv")
        if rows:
            content = table(list(rows[0]), [list(row.values()) for row in rows], f"{name}: settings tried")
            yield folded(f"Settings that the fit tried ({len(rows)})", content)
    if (folder / "config.yaml").is_file():
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        yield folded(f"Settings of {name}", f"<pre>{escape(text)}</pre>\n")
    yield "</section>\n"


def _evaluations(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was measured on each split: test, external, then others."""
    paths = sorted(
        (folder / "evaluation").glob("*/metrics.json"),
        key=lambda path: (path.parent.name != "test", path.parent.name != "external", path.parent.name),
    )
    for path in paths:
        yield path.parent.name, json.loads(path.read_text(encoding="utf-8"))


def _evaluation(metrics: dict[str, Any], where: str) -> str:
    facts = [
        ["films", f"{metrics['n_judged']} judged of {metrics['n_films']}, of {metrics['patients']} patients"],
        ["sources", as_text(metrics["sources"])],
        ["date", metrics["date"]],
        ["hash of the split", metrics["split_hash"]],
    ]
    if metrics.get("seen"):
        films = [f"{one['stage']}: {one['source']} {one['split']} ({one['films']})" for one in metrics["seen"]]
        facts.append(["films of sources and splits that were trained on", ", ".join(films)])
    if metrics.get("threshold") is not None:
        score = f"{_positive(metrics)} score {100 * metrics['threshold']:.1f}"
        facts.append(["threshold", f"{metrics['threshold']} ({score})"])
    out = table(["what", "value"], facts, f"Films of {where}", kind="facts")
    if "confusion_matrix" in metrics:
        names, counts = metrics["confusion_matrix"]["classes"], metrics["confusion_matrix"]["counts"]
        rows = [[truth, *line] for truth, line in zip(names, counts, strict=True)]
        head = ["truth", *(f"answered {name}" for name in names)]
        out += table(head, rows, f"Confusion matrix, in films ({where})", kind="figures")
    if metrics.get("multi_label"):
        out += _by_label(metrics["per_class"], where)
    elif metrics.get("per_class"):
        kinds = list(next(iter(metrics["per_class"].values())))
        rows = [
            [label, *(value if isinstance(value, int) else number(value) for value in (one.get(k) for k in kinds))]
            for label, one in metrics["per_class"].items()
        ]
        out += table(["class", *kinds], rows, f"By class ({where})", kind="figures")
    if isinstance(metrics.get("constant_guess"), dict):
        out += figures_table(
            {"the same guess on every film": metrics["constant_guess"]},
            f"What a guess without looking reaches ({where})",
        )
    return out


def _by_label(figures: dict[str, dict[str, Any]], where: str) -> str:
    """The figures of each label where a film may have several, from metrics.json's `per_class`."""

    def cell(name: str, value: Any) -> str:
        if name in ("auc", "average_precision"):
            return figure({part: value[part] for part in ("value", "ci95")})
        return str(value) if isinstance(value, int) else number(value["value"] if is_figure(value) else value)

    kinds = [name for name in _LABEL_FIGURES if any(name in one for one in figures.values())]
    rows = [
        [label, one["auc"]["n"], *(cell(name, one[name]) if name in one else "" for name in kinds)]
        for label, one in figures.items()
    ]
    head = ["label", "films", *(_LABEL_FIGURES[name] for name in kinds)]
    return table(
        head,
        rows,
        f"By label, on the films where it is known ({where}); all intervals are in metrics.json",
        kind="figures labels",
    )


def _positive(metrics: dict[str, Any]) -> str:
    return metrics.get("positive") or "TB"


def _curves(folder: Path, name: str) -> Iterator[str]:
    rows = _rows(folder / "history.csv") if (folder / "history.csv").is_file() else []
    if not rows:
        return
    epochs = "1 epoch" if len(rows) == 1 else f"{len(rows)} epochs"
    captions = [f"Training curves of {name} over {epochs}, train and val"]
    for column in rows[0]:
        values = [float(row[column]) if row[column] else math.nan for row in rows] if column.startswith("val_") else []
        if values and not all(map(math.isnan, values)):
            best = int(np.nanargmin(values) if column.endswith("loss") else np.nanargmax(values))
            captions.append(f"best {column} {values[best]:.3f} in epoch {best + 1}")
    if (folder / "curves.png").is_file():
        yield "<h3>Curves</h3>\n"
        yield _picture(folder / "curves.png", "; ".join(captions) + ".", wide=True)
    cells = [[_short(value) for value in row.values()] for row in rows]
    yield folded("The curves as a table", table(list(rows[0]), cells, f"{name}: by epoch", kind="figures"))
    if (folder / "labels.png").is_file():
        about = "How often each label is there in the films trained on, and what the films with it and without it "
        yield _picture(folder / "labels.png", about + "contribute to the loss, before and after weighing.", wide=True)


def _plots(folder: Path, name: str, metrics: dict[str, Any]) -> Iterator[str]:
    plots = [path for path in sorted(folder.glob("*.png")) if path.stem not in _SHEETS]
    if plots:
        yield '<div class="plots">\n'
        for path in plots:
            yield _picture(path, _told(path.stem, metrics))
        yield "</div>\n"
    for stem in _SHEETS:
        if (folder / f"{stem}.png").is_file():
            yield _picture(folder / f"{stem}.png", _told(stem, metrics), wide=True)


def _told(plot: str, metrics: dict[str, Any]) -> str:
    """A plot in words, with the figures that it shows."""
    positive = _positive(metrics)
    key = positive.lower()

    def shown(*names: str) -> str:
        parts = [f"{one} {figure(metrics[one])}" for one in names if is_figure(metrics.get(one))]
        return "; ".join(parts) or "no figures"

    where = f"on the {metrics['split']} films"
    if plot == "roc" and metrics.get("multi_label"):
        return f"ROC curves of the labels {where}; means over the labels: {shown('auc', 'average_precision')}."
    if plot == "roc":
        figures = shown(f"auc_{key}", f"average_precision_{key}")
        return f"ROC and precision-recall curves of {positive} {where}: {figures}."
    if plot == "labels":
        return f"AUROC of each label with its interval {where}, and its share of the films. The table above has them."
    if plot == "reliability":
        figures = shown("ece", f"ece_{key}")
        return f"Reliability {where}, share right by confidence, and films by confidence: {figures}."
    if plot == "scores":
        return f"Films by score and true class {where}, with the threshold {metrics.get('threshold', 'none')}."
    if plot == "confusion" and "confusion_matrices" in metrics:
        return f"Right and wrong answers {where}, a table a label, on the films where it is known."
    if plot == "confusion":
        return f"Confusion matrix {where}: {shown('accuracy', 'balanced_accuracy')}. The counts are in the table above."
    if plot == "worst":
        return f"The worst films {where}, small, with the worst first. The table below names them."
    if plot == "random":
        return f"Films drawn at random {where}, small: what is usual."
    return f"{plot} {where}."


def _picture(path: Path, caption: str, *, wide: bool = False) -> str:
    """A picture within the page, its text as alternative and as caption."""
    data, kind = path.read_bytes(), "png"
    if path.stem in _SHEETS:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if image is None:
            return f"<p>{escape(path.name)} is damaged.</p>\n"
        data, kind = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), "jpeg"
    text = escape(caption)
    place = "wide" if wide else "plot"
    return (
        f'<figure class="{place}">'
        f'<img alt="{text}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def _worst(path: Path, stage: str, metrics: dict[str, Any]) -> str:
    """The worst films as a table, in the order of worst.png; empty where there is none (several labels a film)."""
    if not path.is_file() or metrics.get("multi_label"):
        return ""
    if stage == "classify":
        return _worst_answers(_rows(path), _positive(metrics))
    worst = stages.stage_class(stage).worst
    if worst is None:
        return ""
    key, meaning = worst
    judged = sorted((film for film in _rows(path) if film.get(key)), key=lambda film: float(film[key]))[:_SHOWN]
    if not judged:
        return ""
    columns = [name for name in ("source", "status", "label", "predicted") if name in judged[0]]
    rows = [[film["image"], *(film[name] for name in columns), _short(film[key])] for film in judged]
    return folded(
        f"The {len(rows)} worst films by {meaning}",
        table(["film", *columns, meaning], rows, f"Worst films by {meaning}", kind="reasons"),
    )


def _worst_answers(films: list[dict[str, str]], positive: str) -> str:
    from cxr_pipeline.stages.classify_figures import worst_first

    judged = [film for film in films if film.get(f"p_{film['label']}")]
    judged = worst_first(judged, positive, lambda film: film)[:_SHOWN]
    if not judged:
        return ""
    wrong = sum(film["predicted"] != film["label"] for film in judged)
    rows = [
        [film["image"], film["source"], film["label"], film["predicted"]]
        + [_short(film[f"p_{name}"]) for name in (positive, film["label"])]
        for film in judged
    ]
    return folded(
        f"The {len(rows)} worst films, {wrong} of them with a wrong answer",
        table(
            ["film", "source", "truth", "answer", f"probability of {positive}", "of the truth"],
            rows,
            "Worst films: wrong answers first, the most wrong of each kind in turn",
            kind="reasons",
        ),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv_rows(file))


def _short(text: str) -> str:
    """A number of a CSV with four digits behind the point at the most; other texts as they are."""
    try:
        return f"{float(text):.4f}".rstrip("0").rstrip(".") if not text.isdigit() else text
    except ValueError:
        return text
