"""Paired tests of `pipeline compare`: two classifiers on the films that both judged, from their films.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from cxr_pipeline.compare.compare import CompareError, Run, number_of, read_table

ALL_PAIRS = 4  # up to this many runs every pair is tested, of more each against the first


@dataclass(frozen=True)
class JudgedClass:
    """What a row of films.csv says of one class."""

    truth: str  # the film's class, or 0 or 1 for the label where a film may have several
    positive: bool
    score: float
    right: bool
    several: bool


def paired_tests(runs: Sequence[Run], notes: list[str]) -> list[dict[str, Any]]:
    """DeLong's and McNemar's test of every pair of runs and every class that both are about; one dict a test.

    Args:
        runs: of classify; those without an evaluation are passed over.
        notes: what cannot be tested is added here, with the reason.

    Raises:
        CompareError: a films.csv is missing or lacks a column, or two disagree about a film's truth.
    """
    rows = {number: _rows_of(run) for number, run in enumerate(runs) if run.evaluation is not None}
    every = combinations(range(len(runs)), 2)
    chosen = every if len(runs) <= ALL_PAIRS else ((0, number) for number in range(1, len(runs)))
    pairs: list[dict[str, Any]] = []
    for first, second in chosen:
        if first not in rows or second not in rows:
            continue
        classes = [_classes_of(runs[number]) for number in (first, second)]
        shared = [name for name in classes[0] if name in classes[1]]
        between = f"{runs[first].name} and {runs[second].name}"
        if not shared:
            listed = " and ".join(", ".join(names) or "none" for names in classes)
            notes.append(f"{between} have no positive class in common ({listed}): not tested.")
            continue
        tested = [_tested(runs[first], runs[second], rows[first], rows[second], name) for name in shared]
        if not any(tested):
            notes.append(f"{between} judged no film in common (by the column image of films.csv): not tested.")
        pairs += [row for row in tested if row]
    return pairs


def _classes_of(run: Run) -> list[str]:
    """What the tests are about: the positive class, or each label where a film may have several."""
    positive = run.metrics.get("positive")
    return [positive] if positive else list(run.metrics.get("classes", ()))


def _several(rows: Sequence[dict[str, str]]) -> bool:
    return bool(rows) and any(name.startswith("true_") for name in rows[0])


def _rows_of(run: Run) -> list[dict[str, str]]:
    """films.csv of a classify evaluation: its judged films."""
    path = (run.evaluation or run.folder) / "films.csv"
    if not path.is_file():
        raise CompareError(f"{path.parent} has metrics.json but no films.csv. Make it again: pipeline evaluate")
    rows = read_table(path)
    if rows:
        needed = {"image", "status"} | (set() if _several(rows) else {"label", "predicted"})
        missing = sorted((needed | {f"p_{name}" for name in _classes_of(run)}) - set(rows[0]))
        if missing:
            raise CompareError(f"{path} lacks the column(s) {', '.join(missing)}. Make it again: pipeline evaluate")
    return [row for row in rows if row["status"] == "ok"]


def _films(run: Run, rows: Sequence[dict[str, str]], name: str) -> dict[str, JudgedClass]:
    """By image, the films of which it is known whether they are of the class, or have the label."""
    several, threshold = _several(rows), _threshold(run.metrics, name)
    films = {}
    for row in rows:
        score, image = number_of(row[f"p_{name}"]), row["image"]
        if np.isnan(score):
            continue
        if not several:
            films[image] = JudgedClass(
                row["label"], row["label"] == name, score, row["predicted"] == row["label"], False
            )
        elif (truth := number_of(row.get(f"true_{name}"))) in (0, 1):
            films[image] = JudgedClass(f"{truth:.0f}", truth == 1, score, (score >= threshold) == (truth == 1), True)
    return films


def _threshold(metrics: dict[str, Any], name: str) -> float:
    """Of one label among several: its own, or else the evaluation's; 0.5 without either."""
    own = metrics.get("per_class", {}).get(name, {}).get("threshold", metrics.get("threshold"))
    return 0.5 if own is None else float(own)


def _tested(
    one: Run, two: Run, rows_one: Sequence[dict[str, str]], rows_two: Sequence[dict[str, str]], name: str
) -> dict[str, Any]:
    """The tests of one class, as a row of pairs.csv; empty where no film is common."""
    from cxr_pipeline.models.figures.significance import delong, mcnemar

    films_one, films_two = _films(one, rows_one, name), _films(two, rows_two, name)
    common = [image for image in films_one if image in films_two]
    if not common:
        return {}
    first, second = [films_one[image] for image in common], [films_two[image] for image in common]
    _same_truth(one, two, common, first, second)
    y = np.array([film.positive for film in first])
    areas = delong(y, *(np.array([film.score for film in films]) for films in (first, second)))
    row = {"first": one.name, "second": two.name, "class": name, "n": len(y)}
    row |= {"auroc_first": areas.first, "auroc_second": areas.second, "p_delong": areas.p}
    if first[0].several == second[0].several:  # else "right" means different things
        right = mcnemar(*(np.array([film.right for film in films]) for films in (first, second)))
        row |= {"accuracy_first": right.first, "accuracy_second": right.second, "p_mcnemar": right.p}
    return row


def _same_truth(
    one: Run, two: Run, images: Sequence[str], first: Sequence[JudgedClass], second: Sequence[JudgedClass]
) -> None:
    differing = [
        (image, a.truth, b.truth)
        for image, a, b in zip(images, first, second, strict=True)
        if a.positive != b.positive or (a.several == b.several and a.truth != b.truth)
    ]
    if differing:
        image, a, b = differing[0]
        raise CompareError(
            f"{one.evaluation} and {two.evaluation} disagree about the truth of {len(differing)} film(s), such as "
            f"{image}: {a!r} and {b!r}. Evaluate both with the same manifest"
        )
