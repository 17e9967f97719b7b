"""The report's summary of a run: what it counts, in one pass over the rows, and how that is shown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxr_pipeline.report.page import Markup, escape, folded, number, table
from cxr_pipeline.results.worklist import Work, kind_of
from cxr_pipeline.stages.base import FAILED, OK, REFUSED
from cxr_pipeline.stages.sets import NEGATIVE, POSITIVE, UNSURE
from cxr_pipeline.texts import ENGLISH, LEFT_OUT, Texts

SCREENS = (POSITIVE, UNSURE, NEGATIVE)
_BINS = 20
_NAMED = 3  # films named with each reason or warning


def probabilities_of(row: dict[str, str]) -> dict[str, float]:
    """The probabilities of a row of results, 0 to 1, by class."""
    return {name[2:]: float(value) for name, value in row.items() if name.startswith("p_") and value}


@dataclass
class Spread:
    """The probabilities of one label: films in equal steps from 0 to 1, sum and maximum."""

    bins: list[int] = field(default_factory=lambda: [0] * _BINS)
    sum: float = 0.0
    highest: float = 0.0


def _bin(share: float) -> int:
    return min(_BINS - 1, int(share * _BINS))


@dataclass
class Tally:
    """What the summary counts, in one pass over the rows.

    Attributes:
        counts: films by status.
        screens: films by screening answer, and the others by status.
        labels: films by answer; one with several labels counts with each, one that may have some and has none as "".
        bins: films by score, in equal steps from 0 to 100.
        probabilities: of films without a score, by label: films in equal steps from 0 to 1, and the sum and maximum.
        reasons: by status, films by reason.
        warnings: films by warning; `warned` is the number of films that have any.
        examples: by reason or warning, the first films that have it: (file name, the text in full).
        folders: films by the folder that their path names.
    """

    counts: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    bins: list[int] = field(default_factory=lambda: [0] * _BINS)
    probabilities: dict[str, Spread] = field(default_factory=dict)
    reasons: dict[str, Counter] = field(default_factory=lambda: {REFUSED: Counter(), FAILED: Counter()})
    warnings: Counter = field(default_factory=Counter)
    warned: int = 0
    screens: Counter = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    folders: Counter = field(default_factory=Counter)

    @classmethod
    def of(cls, rows: Iterable[dict[str, str]], say: Texts = ENGLISH) -> Tally:
        """The tally of rows; reasons and warnings in the language of `say`, where they have a code."""
        tally = cls()
        for row in rows:
            tally.counts[row["status"]] += 1
            tally.screens[kind_of(row)] += 1
            tally.folders[folder_of(row["image"])] += 1
            if row.get("label"):
                tally.labels.update(row["label"].split("|"))
            if row.get("tb_score"):
                tally.bins[_bin(float(row["tb_score"]) / 100)] += 1
            else:
                tally._spread(row)
            if row["status"] != OK:
                tally._note(tally.reasons[row["status"]], say.failure(row["error"]), row["image"])
            for text in filter(None, row.get("warnings", "").split("; ")):
                tally._note(tally.warnings, say.reason(text), row["image"])
            tally.warned += bool(row.get("warnings"))
        return tally

    def _spread(self, row: dict[str, str]) -> None:
        probabilities = probabilities_of(row)
        if probabilities and not row.get("label"):
            self.labels[""] += 1
        for name, value in probabilities.items():
            spread = self.probabilities.setdefault(name, Spread())
            spread.bins[_bin(value)] += 1
            spread.sum += value
            spread.highest = max(spread.highest, value)

    def _note(self, into: Counter, text: str, image: str) -> None:
        group = reason(text, image)
        into[group] += 1
        named = self.examples.setdefault(group, [])
        if len(named) < _NAMED:
            named.append((name_of(image), text.removeprefix(f"{name_of(image)}: ")))


def name_of(image: str) -> str:
    """The file's own name, of a path of any system."""
    return re.split(r"[/\\]", image)[-1]


def folder_of(image: str) -> str:
    """The folder of a path of any system, as it was given; empty where the path has none."""
    return re.sub(r"[/\\]?[^/\\]*$", "", image)


def reason(error: str, image: str) -> str:
    """An error without what is the film's own: its name, and its numbers."""
    text = error.removeprefix(f"{name_of(image)}: ").replace(image, "the file").replace(name_of(image), "the file")
    return re.sub(r"\d+(?:[.,]\d+)*", "…", text) or "no reason given"


def answers_of(tally: Tally, facts: dict[str, Any], say: Texts = ENGLISH) -> list[tuple[str, int]]:
    """The films by answer: of several labels a film every label, in the order of the classes, and those with none."""
    if not facts["several"]:
        return sorted(tally.labels.items())
    if not tally.probabilities:
        return []
    return [*((name, tally.labels[name]) for name in facts["classes"]), (say("none of them"), tally.labels[""])]


def summary(run: dict[str, Any], tally: Tally, facts: dict[str, Any], say: Texts = ENGLISH) -> str:
    """The page's first section: what `run.json` and the tally say, as HTML; `facts` as the page's script gets them."""
    total = sum(tally.counts.values())
    boxes = [(say("films"), total), *((say(status), tally.counts[status]) for status in (OK, REFUSED, FAILED))]
    screened = [name for name in SCREENS if any(tally.screens[one] for one in SCREENS)]
    boxes += [(say("screen {screen}", screen=say(name)), tally.screens[name]) for name in screened]
    word = say("likeliest {label}") if screened else say("answered {label}")
    boxes += [(word.replace("{label}", label), count) for label, count in answers_of(tally, facts, say)]
    out = f'<section aria-labelledby="summary">\n<h2 id="summary">{escape(say("Summary"))}</h2>\n'
    if not run.get("finished"):
        text = say("This run has not finished: the page shows what it has done so far.")
        out += f'<p class="warning">{escape(text)}</p>\n'
    if "shard" in run:
        shard = run["shard"]
        part = {"number": shard["number"], "of": shard["of"], "n": shard["inputs"]}
        text = say("Part {number} of {of} of a run over {n} films.", **part)
        out += f'<p class="warning">{escape(text)}</p>\n'
    if run.get("unchecked"):
        out += f'<p class="warning">{escape(run["unchecked"])}.</p>\n'
    if screened:
        work = Work(dict(tally.screens))
        what = say("What to read first, and why, is in worklist.csv.")
        out += f'<p class="first"><strong>{escape(work.summary(say))}</strong> {escape(what)}</p>\n'
    out += '<dl class="counts">\n'
    out += "".join(f"<div><dt>{escape(name)}</dt><dd>{count}</dd></div>\n" for name, count in boxes) + "</dl>\n"
    if sum(tally.bins):
        out += _histogram(tally.bins, facts["cutoff"], say("{name} score", name=facts["positive"]), say)
    elif facts["several"] and tally.probabilities:
        out += _by_label(tally, facts)
    else:
        text = say("No film has a score: the chain ended before the classifier, or no film was judged.")
        out += f"<p>{escape(text)}</p>\n"
    titles = {REFUSED: say("Films refused, by reason"), FAILED: say("Films failed, by reason")}
    for status, reasons in tally.reasons.items():
        if reasons:
            out += _grouped(titles[status], reasons, tally, say)
    if tally.warned:
        out += _grouped(say("Warnings, on {m} of {n} films", m=tally.warned, n=total), tally.warnings, tally, say)
    else:
        out += f"<p>{escape(say('No film has a warning.'))}</p>\n"
    return out + _inputs(run, tally, say) + "</section>\n"


def _inputs(run: dict[str, Any], tally: Tally, say: Texts) -> str:
    """Where the films lay, which of them are equal, and what was left out."""
    out = ""
    if len(tally.folders) > 1:
        most = tally.folders.most_common(_FOLDERS)
        rest = len(tally.folders) - len(most)
        rows = [[folder or ".", count] for folder, count in sorted(most)]
        rows += [[say("and {n} more", n=rest), sum(tally.folders.values()) - sum(count for _, count in most)]] * bool(
            rest
        )
        out += table([say("folder"), say("films")], rows, say("Films by folder"), kind="reasons")
    if run.get("same_files"):
        text = say(
            "{n} film(s) are byte for byte the same file as another, which their warnings name.", n=run["same_files"]
        )
        out += f'<p class="warning">{escape(text)}</p>\n'
    left = {why: part for why, part in (run.get("left_out") or {}).items() if isinstance(part, dict)}
    if left:
        rows = [
            [say(LEFT_OUT.get(why, why)), part["count"], ", ".join(map(name_of, part["files"][:_NAMED]))]
            for why, part in left.items()
        ]
        title = say("Files left out, which are in no count; all of them are in left_out.csv")
        out += table([say("what"), say("files"), say("such as")], rows, title, kind="reasons")
    return out


_FOLDERS = 20  # that the summary lists


def _grouped(title: str, counted: Counter, tally: Tally, say: Texts) -> str:
    rows = []
    for group, count in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        names, texts = zip(*tally.examples[group], strict=True)
        rows.append([texts[0] or group if count == 1 else group, count, _names(names, count, say)])
    return table([say("what"), say("films"), say("such as")], rows, title, kind="reasons")


def _names(named: Sequence[str], count: int, say: Texts) -> str:
    more = count - len(named)
    return ", ".join(named) + (" " + say("and {n} more", n=more) if more > 0 else "")


def _by_label(tally: Tally, facts: dict[str, Any]) -> str:
    """Of each label a film may have: how many films have it, and how its probabilities spread."""
    rows = []
    for name in facts["classes"]:
        spread, threshold = tally.probabilities[name], facts["thresholds"].get(name)
        mean = spread.sum / sum(spread.bins)
        drawn = Markup(_small_histogram(spread.bins, threshold))
        limit = "not learned" if threshold is None else number(threshold)
        rows.append([name, tally.labels[name], limit, number(mean), number(spread.highest), drawn])
    head = ["label", "films with it", "threshold", "mean probability", "highest", "films by probability, 0 to 1"]
    films = sum(tally.probabilities[facts["classes"][0]].bins)
    what = f"The labels of {films} films; a film may have several, and has those that reach their threshold (the mark)"
    return table(head, rows, what, kind="figures labels")


def _small_histogram(bins: list[int], threshold: float | None) -> str:
    """Films by probability as a small SVG, each bar at least visible; in the text beside it are the figures."""
    peak, step = max(bins), 100 / len(bins)
    marks = "".join(
        f'<rect class="bar" x="{n * step + 0.3:.1f}" y="{20 - max(1.5, 20 * count / peak):.1f}" '
        f'width="{step - 0.6:.1f}" height="{max(1.5, 20 * count / peak):.1f}"/>'
        for n, count in enumerate(bins)
        if count
    )
    if threshold is not None:
        x = f"{100 * threshold:.1f}"
        marks += f'<line class="threshold" x1="{x}" y1="0" x2="{x}" y2="20" vector-effect="non-scaling-stroke"/>'
    return f'<svg viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">{marks}</svg>'


def _histogram(bins: list[int], cutoff: float | None, score_name: str, say: Texts) -> str:
    """Films by score as an SVG with the threshold (a score), and the same as a table."""
    threshold = None if cutoff is None else cutoff / 100
    width, height, left, top, bottom = 720, 222, 44, 30, 56  # room for letters twice as large, as on a phone
    peak = max(bins)
    step, tall = (width - left - 10) / len(bins), height - top - bottom
    base = top + tall
    marks = "".join(
        f'<rect class="bar" x="{left + n * step + 1:.1f}" y="{base - tall * count / peak:.1f}" '
        f'width="{step - 2:.1f}" height="{tall * count / peak:.1f}"/>'
        for n, count in enumerate(bins)
        if count
    )
    for score in range(0, 101, 10):
        x = left + score / 100 * step * len(bins)
        marks += f'<text x="{x:.1f}" y="{base + 4}" text-anchor="middle" dominant-baseline="hanging">{score}</text>'
    marks += f'<line class="axis" x1="{left}" y1="{base}" x2="{width - 10}" y2="{base}"/>'
    marks += f'<text x="{left - 6}" y="{top + 5}" text-anchor="end">{peak}</text>'
    marks += f'<text x="{left - 6}" y="{base}" text-anchor="end">0</text>'
    marks += f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(score_name)}</text>'
    counts = {"n": sum(bins), "score": score_name, "step": 100 // len(bins)}
    shown = say("{n} films by {score}, in steps of {step} from 0 to 100.", **counts)
    if threshold is not None:
        x = left + threshold * step * len(bins)
        marks += f'<line class="threshold" x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{base}"/>'
        anchor, dx = ("end", -5) if threshold > 0.7 else ("start", 5)
        marks += f'<text x="{x + dx:.1f}" y="{top - 8}" text-anchor="{anchor}">'
        marks += f"{escape(say('threshold'))} {100 * threshold:.1f}</text>"
        shown += " " + say("The threshold is {threshold}.", threshold=f"{100 * threshold:.1f}")
    rows = [[f"{100 * n // len(bins)}–{100 * (n + 1) // len(bins)}", count] for n, count in enumerate(bins)]
    return (
        f'<figure class="histogram"><svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="hist-text">'
        f'<title id="hist-text">{escape(shown + " " + say("The counts are in the table below."))}</title>'
        f"{marks}</svg>\n"
        f"<figcaption>{escape(shown)}</figcaption></figure>\n"
        + folded(
            say("The counts as a table"),
            table([say("score"), say("films")], rows, say("Films by {score}", score=score_name)),
        )
    )
