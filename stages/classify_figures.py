"""The figures and pictures of a classify evaluation, from one row per film."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cxr_pipeline.models.figures import metrics, plots
from cxr_pipeline.models.figures.metrics import Figure, bootstrap, bootstrap_mean
from cxr_pipeline.stages.decisions import Rules, decided_error
from cxr_pipeline.stages.scores import AT_THRESHOLD, shown
from cxr_pipeline.stages.sets import undecided

SHOWN = 20  # films in worst.png

Item = TypeVar("Item")


def figures(
    films: list[dict[str, Any]],
    tiles: list[tuple[dict[str, Any], np.ndarray]],
    classes: list[str],
    rules: Rules,
    out: Path,
) -> dict[str, Any]:
    """All that `metrics.json` says of the classifier.

    Args:
        films: image, patient, source, label, status, and for judged films p_<class>, predicted, screen and score.
        tiles: the first of `worst_first` with their pictures, uint8 grey (H, W).
        rules: what decided.
        out: folder for the plots.

    Returns:
        Figures with intervals, `confusion_matrix`, `per_class`, `refusals` and `by_source`. `balanced_accuracy` and
        `recall_<class>` are of the label; `sensitivity` and `specificity` of the threshold, whatever is unsure;
        `unsure` is the share of the films left undecided and `error_decided` what is wrong among the others;
        `precision`, `recall` and `f1` are
        means over the classes that have films, see `models.figures.metrics.macro`.
    """
    judged = [film for film in films if film["status"] == "ok"]
    out.mkdir(parents=True, exist_ok=True)
    positive, threshold = rules.positive, rules.threshold
    result: dict[str, Any] = {"threshold": threshold, "positive": positive, "classes": classes}
    if rules.cutoff != AT_THRESHOLD:
        result["cutoff"] = rules.cutoff
    if rules.sets is not None:
        result["risk"] = rules.sets.risk
    result |= _pooled(judged, classes, rules)
    result["refusals"] = refusals(films)
    by_source = {}
    for source in sorted({film["source"] for film in judged}):
        part = [film for film in judged if film["source"] == source]
        by_source[source] = _pooled(part, classes, rules)
    result["by_source"] = by_source
    if judged:
        _draw(judged, tiles, classes, rules, out)
    return {**result, "films": films}


def refusals(films: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Films not judged, by class and source: where they follow the disease, the sick are missed.

    Returns:
        One dict for each source and class: ``source``, ``label``, ``films``, and ``refused`` (share, with interval).
    """
    kinds = sorted({(film["source"], film["label"]) for film in films})
    out = []
    for kind in [(None, name) for name in sorted({label for _, label in kinds})] + kinds:
        part = [film for film in films if kind[0] in (None, film["source"]) and film["label"] == kind[1]]
        refused = np.array([film["status"] != "ok" for film in part], float)
        share = bootstrap_mean(refused, [film["patient"] for film in part])
        out.append({"source": kind[0] or "all", "label": kind[1], "films": len(part), "refused": share})
    return out


def _pooled(films: list[dict[str, Any]], classes: list[str], rules: Rules) -> dict[str, Any]:
    positive, normal = rules.positive, rules.normal
    truth = np.array([classes.index(film["label"]) for film in films], int)
    guess = np.array([classes.index(film["predicted"]) for film in films], int)
    p = np.array([[film[f"p_{name}"] for name in classes] for film in films]).reshape(-1, len(classes))
    patients = np.array([film["patient"] for film in films])
    is_positive, score = truth == classes.index(positive), p[:, classes.index(positive)]
    called = np.array([shown(film["score"]) >= rules.cutoff for film in films], float)
    screens = np.array([film["screen"] for film in films])
    confidence, right = p.max(axis=1, initial=0), p.argmax(axis=1) == truth if len(films) else truth

    def over(chosen: np.ndarray, statistic: Callable[[np.ndarray], float]) -> Figure:
        """A figure on the films `chosen` (mask) alone."""
        where = np.flatnonzero(chosen)
        return bootstrap(lambda index: statistic(where[index]), patients[where])

    every = np.ones(len(films), bool)

    def recall(c: int) -> Figure:
        return over(truth == c, lambda i: float((guess[i] == c).mean()))

    def macro(name: str) -> Figure:
        return over(every, lambda i: metrics.macro(truth[i], guess[i], len(classes), name))

    key = positive.lower()
    result: dict[str, Any] = {
        "n": len(films),
        "accuracy": over(every, lambda i: metrics.accuracy(truth[i], guess[i])),
        "balanced_accuracy": over(every, lambda i: metrics.balanced_accuracy(truth[i], guess[i])),
        **{f"recall_{name.lower()}": recall(c) for c, name in enumerate(classes) if (truth == c).any()},
        **{name: macro(name) for name in ("precision", "recall", "f1")},
        f"auc_{key}": over(every, lambda i: metrics.auroc(is_positive[i], score[i])),
        f"average_precision_{key}": over(every, lambda i: metrics.average_precision(is_positive[i], score[i])),
        "sensitivity": over(every, lambda i: metrics.sensitivity(is_positive[i], called[i], 0.5)),
        "specificity": over(every, lambda i: metrics.specificity(is_positive[i], called[i], 0.5)),
        "unsure": over(every, lambda i: undecided(screens[i])),
        "error_decided": over(every, lambda i: decided_error(screens[i], is_positive[i])),
        "specificity_at_90_sensitivity": over(
            every, lambda i: metrics.specificity_at_sensitivity(is_positive[i], score[i])
        ),
        "ece": metrics.bootstrap_ece(confidence, right, patients),
        f"ece_{key}": metrics.bootstrap_ece(score, is_positive, patients),
        "confusion_matrix": {
            "classes": classes,
            "counts": metrics.confusion_matrix(truth, guess, len(classes)).tolist(),
        },
        "per_class": metrics.per_class(truth, guess, classes),
    }
    if normal is not None and normal in classes:
        abnormal = 1 - p[:, classes.index(normal)]

        def against_normal(name: str, pair: np.ndarray) -> Figure:
            of_class, ranked = truth == classes.index(name), score if name == positive else abnormal
            return over(pair, lambda i: metrics.auroc(of_class[i], ranked[i]))

        result["auc_abnormal"] = over(every, lambda i: metrics.auroc(truth[i] != classes.index(normal), abnormal[i]))
        # Against normal films alone: a figure over sources that lack a class would measure the hospital.
        for name in classes:
            pair = np.isin(truth, [classes.index(name), classes.index(normal)])
            if name == normal or not (truth == classes.index(name)).any() or not (truth == classes.index(normal)).any():
                continue
            result[f"auc_{name.lower()}_against_{normal.lower()}"] = against_normal(name, pair)
    return result


def _draw(
    films: list[dict[str, Any]],
    tiles: list[tuple[dict[str, Any], np.ndarray]],
    classes: list[str],
    rules: Rules,
    out: Path,
) -> None:
    positive, threshold, cutoff = rules.positive, rules.threshold, rules.cutoff
    points = np.array([film["score"] for film in films])
    label = np.array([film["label"] for film in films])
    source = np.array([film["source"] for film in films])
    p = np.array([[film[f"p_{name}"] for name in classes] for film in films])
    score = p[:, classes.index(positive)]
    curves = {name: (label[source == name] == positive, score[source == name]) for name in sorted(set(source))}
    if "unknown" in curves:  # what a manifest without sources has; as a name on a plot it says nothing
        curves["all films" if len(curves) == 1 else "no source given"] = curves.pop("unknown")
    if len(curves) > 1:  # of one source, it would lie on that source's own
        curves = {"all": (label == positive, score)} | curves
    plots.roc_and_precision_recall(curves, threshold, out / "roc.png", positive)
    truth = np.array([classes.index(name) for name in label])
    plots.reliability(p.max(axis=1), p.argmax(axis=1) == truth, out / "reliability.png")
    guess = np.array([classes.index(film["predicted"]) for film in films])
    plots.confusion(metrics.confusion_matrix(truth, guess, len(classes)), classes, out / "confusion.png")
    plots.score_histogram(
        {name: points[label == name] for name in classes if (label == name).any()}, cutoff / 100, out / "scores.png"
    )
    if tiles:
        captions = [caption(film, positive) for film, _ in tiles]
        legend_text = "Wrong labels first, the most wrong of each kind in turn; "
        legend_text += "then right ones, the least probable first. Number: probability of the class named."
        plots.contact_sheet([crop for _, crop in tiles], captions, out / "worst.png", legend=[(legend_text, None)])


def worst_first(items: Sequence[Item], positive: str, of: Callable[[Item], Mapping[str, Any]]) -> list[Item]:
    """Judged films, the worst first: those with a wrong answer, the most wrong of each kind in turn, then the others.

    A kind is a pair of truth and answer. Most wrong are, of the films called positive, those with the highest
    probability of it; of all others, those with the lowest probability of their true class. The first n of many are
    always among the first n of a part and the rest, so a few can be kept while films pass by.

    Args:
        items: films as rows of films.csv (label, predicted, p_<class>), or what holds one.
        of: gives the row of an item.
    """

    def wrongness(item: Item) -> float:
        film = of(item)
        if film["predicted"] == positive and film["label"] != positive:
            return float(film[f"p_{positive}"])
        return 1 - float(film[f"p_{film['label']}"])

    kinds: dict[tuple[str, str], list[Item]] = {}
    right: list[Item] = []
    for item in sorted(items, key=wrongness, reverse=True):
        film = of(item)
        same = film["predicted"] == film["label"]
        (right if same else kinds.setdefault((film["label"], film["predicted"]), [])).append(item)
    in_turn = chain.from_iterable(zip_longest(*([(item,) for item in kind] for kind in kinds.values()), fillvalue=()))
    return [*chain.from_iterable(in_turn), *right]


def caption(film: dict[str, Any], positive: str) -> str:
    """Truth, answer, and the probability that decided: of the positive class, or of the truth where neither is it."""
    name = positive if positive in (film["label"], film["predicted"]) else film["label"]
    verdict = f"truth {film['label']}, answer {film['predicted']}"
    return f"{verdict}\n{name} {float(film[f'p_{name}']):.2f}: {Path(film['image']).stem}"
