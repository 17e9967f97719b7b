"""The report of a run: `report.html`, one page that works from disk, by itself, and without a network.

It is made from the run's folder alone (`run.json`, `journal.jsonl`, the pictures), the source films and the weights'
cards where they are still what the run used. The same folder gives the same bytes. It is written film by film, so its
making takes the same memory for ten films and for ten thousand.
"""

from __future__ import annotations

import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.about import PROGRAM, cores
from pipeline.drawing import FAINT, HEAT
from pipeline.isolation import IsolatedReader
from pipeline.journal import FolderLock, JournalReader
from pipeline.outputs import columns
from pipeline.report_films import in_order, pieces, size_of, turbo
from pipeline.report_page import (
    Markup,
    ReportError,
    as_json,
    card_section,
    data_block,
    escape,
    folded,
    number,
    page,
    said,
    table,
)
from pipeline.results import REPORT, run_info
from stages.base import FAILED, OK, REFUSED

EMBEDDED = 2000  # films in the page itself, about 20 KB each; it must open on a small machine too
TIMES = ("<!-- times of run.json -->", "<!-- end of times -->")  # all that differs between two runs of the same films
_BINS = 20
_NAMED = 3  # films named with each reason or warning
_KNOWN = frozenset(columns())  # columns that the page shows in places of their own


def write_report(
    folder: Path,
    *,
    embed: int = EMBEDDED,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write `report.html` into the folder of a run, finished or not; an older one is replaced at once or not at all.

    Args:
        folder: what `pipeline run --out` or `pipeline merge` left.
        embed: films whose pictures are in the page, those with the highest scores; the others are links to overlays/.
        workers: threads; by default one a core.
        progress: called with the number of films done.

    Raises:
        ReportError: the folder holds no run, or a run is working in it.
        OSError: a file cannot be read or written.
    """
    try:
        run = run_info(folder)
        journal = JournalReader(folder / "journal.jsonl")
    except FileNotFoundError as error:
        raise ReportError(
            f"{folder} holds no results (no {Path(error.filename).name}), and no trained stage. "
            "Give a folder of `pipeline run`, `pipeline merge` or `pipeline train`"
        ) from None
    except ValueError as error:
        raise ReportError(f"{folder / 'run.json'} is not a run of this program ({error})") from None
    lock = FolderLock(folder)
    if not lock.acquire():
        raise ReportError(f"a run is working in {folder}. Wait for it, then ask for the report again")
    try:
        return _write(folder, run, journal, embed, workers or cores(), progress or (lambda done: None))
    finally:
        lock.release()


def _write(
    folder: Path,
    run: dict[str, Any],
    journal: JournalReader,
    embed: int,
    workers: int,
    progress: Callable[[int], None],
) -> Path:
    tally = Tally.of(entry["row"] for entry in journal)
    linked = sum(tally.counts.values()) > embed
    chosen = set(_best(journal, embed)) if linked else None
    config = run.get("config", {})
    classify = config.get("classify", {})
    threshold = classify.get("threshold")
    several = bool(classify.get("multi_label"))
    facts = {
        "classes": run.get("classes", []),
        "several": several,
        "positive": None if several else classify.get("positive", "TB"),
        "threshold": None if several or threshold is None or not math.isfinite(threshold) else threshold,
        # One above 1 is never reached: the label was not learned.
        "thresholds": {name: value for name, value in classify.get("thresholds", {}).items() if value <= 1},
        "asked": config.get("localize", {}).get("label"),
        "colours": turbo(),
        "faint": FAINT,
        "heat": HEAT,
    }
    with page(folder / REPORT, "Chest X-ray run", "report.js", linked=linked) as file:
        for part in (_summary(run, tally, facts), _films(tally, facts, linked, embed), _about(run)):
            file.write(part.encode())
        file.write(data_block("facts", facts).encode())
        file.write(b'<script type="application/json" id="rows">[')
        for place, entry in enumerate(journal):
            embedded = chosen is None or place in chosen
            file.write(((",\n" if place else "\n") + as_json(_row(entry, embedded))).encode())
        file.write(b"\n]</script>\n")
        reader = IsolatedReader()
        try:
            _write_films(file.write, _numbered(journal, chosen), folder, reader, workers, progress)
        finally:
            reader.close()
    return folder / REPORT


def _write_films(
    write: Callable[[bytes], Any],
    films: Iterator[tuple[int, dict[str, Any]]],
    folder: Path,
    reader: IsolatedReader,
    workers: int,
    progress: Callable[[int], None],
) -> None:
    def one(number: int, entry: dict[str, Any]) -> str:
        return data_block(f"film-{number}", pieces(folder, entry, reader))

    jobs = (partial(one, number, entry) for number, entry in films)
    for done, block in enumerate(in_order(jobs, workers), 1):
        write(block.encode())
        progress(done)


def _numbered(journal: JournalReader, chosen: set[int] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((number, entry) for number, entry in enumerate(journal) if chosen is None or number in chosen)


def _best(journal: JournalReader, count: int) -> list[int]:
    """The places of the films with the highest scores (or probabilities of a label), those without one last."""

    def score(row: dict[str, str]) -> float:
        return float(row.get("tb_score") or 100 * max(_probabilities(row).values(), default=-0.01))

    scores = ((score(entry["row"]), -place) for place, entry in enumerate(journal))
    return [-place for _, place in heapq.nlargest(count, scores)]


def _probabilities(row: dict[str, str]) -> dict[str, float]:
    return {name[2:]: float(value) for name, value in row.items() if name.startswith("p_") and value}


def _row(entry: dict[str, Any], embedded: bool) -> dict[str, Any]:
    """A film as the page's table has it; what is empty is left out."""
    row = entry["row"]
    size = size_of(row)
    out = {
        "id": row["id"],
        "image": row["image"],
        "status": row["status"],
        "error": row.get("error"),
        "size": [size[1], size[0]] if size else None,
        "lungs": float(row["lung_fraction"]) if row.get("lung_fraction") else None,
        "label": row.get("label"),
        "score": float(row["tb_score"]) if row.get("tb_score") else None,
        "p": _probabilities(row),
        "heatmap_label": entry.get("heatmap_label"),
        "regions": entry.get("regions"),
        "warnings": row.get("warnings"),
        "sha256": row.get("sha256"),
        "further": {k: v for k, v in row.items() if k not in _KNOWN and not k.startswith("p_") and v},
        "embedded": embedded,
        "overlay": "overlays" in entry["files"],
    }
    return {key: value for key, value in out.items() if value or value == 0 or key == "regions"}


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
        labels: films by answer; one with several labels counts with each, one that may have some and has none as "".
        bins: films by score, in equal steps from 0 to 100.
        probabilities: of films without a score, by label: films in equal steps from 0 to 1, and the sum and maximum.
        reasons: by status, films by reason.
        warnings: films by warning; `warned` is the number of films that have any.
        examples: by reason or warning, the first films that have it: (file name, the text in full).
    """

    counts: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    bins: list[int] = field(default_factory=lambda: [0] * _BINS)
    probabilities: dict[str, Spread] = field(default_factory=dict)
    reasons: dict[str, Counter] = field(default_factory=lambda: {REFUSED: Counter(), FAILED: Counter()})
    warnings: Counter = field(default_factory=Counter)
    warned: int = 0
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[dict[str, str]]) -> Tally:
        """The tally of rows."""
        tally = cls()
        for row in rows:
            tally.counts[row["status"]] += 1
            if row.get("label"):
                tally.labels.update(row["label"].split("|"))
            if row.get("tb_score"):
                tally.bins[_bin(float(row["tb_score"]) / 100)] += 1
            else:
                tally._spread(row)
            if row["status"] != OK:
                tally._note(tally.reasons[row["status"]], row["error"], row["image"])
            for text in filter(None, row.get("warnings", "").split("; ")):
                tally._note(tally.warnings, text, row["image"])
            tally.warned += bool(row.get("warnings"))
        return tally

    def _spread(self, row: dict[str, str]) -> None:
        probabilities = _probabilities(row)
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


def reason(error: str, image: str) -> str:
    """An error without what is the film's own: its name, and its numbers."""
    text = error.removeprefix(f"{name_of(image)}: ").replace(image, "the file").replace(name_of(image), "the file")
    return re.sub(r"\d+(?:[.,]\d+)*", "…", text) or "no reason given"


def _answers(tally: Tally, facts: dict[str, Any]) -> list[tuple[str, int]]:
    """The films by answer: of several labels a film every label, in the order of the classes, and those with none."""
    if not facts["several"]:
        return sorted(tally.labels.items())
    if not tally.probabilities:
        return []
    return [*((name, tally.labels[name]) for name in facts["classes"]), ("none of them", tally.labels[""])]


def _summary(run: dict[str, Any], tally: Tally, facts: dict[str, Any]) -> str:
    total = sum(tally.counts.values())
    boxes = [("films", total), *((status, tally.counts[status]) for status in (OK, REFUSED, FAILED))]
    boxes += [(f"answered {label}", count) for label, count in _answers(tally, facts)]
    out = '<section aria-labelledby="summary">\n<h2 id="summary">Summary</h2>\n'
    if not run.get("finished"):
        out += '<p class="warning">This run has not finished: the page shows what it has done so far.</p>\n'
    if "shard" in run:
        shard = run["shard"]
        out += (
            f'<p class="warning">Part {shard["number"]} of {shard["of"]} of a run over {shard["inputs"]} films.</p>\n'
        )
    if run.get("unchecked"):
        out += f'<p class="warning">{escape(run["unchecked"])}.</p>\n'
    out += '<dl class="counts">\n'
    out += "".join(f"<div><dt>{escape(name)}</dt><dd>{count}</dd></div>\n" for name, count in boxes) + "</dl>\n"
    if sum(tally.bins):
        out += _histogram(tally.bins, facts["threshold"], f"{facts['positive']} score")
    elif facts["several"] and tally.probabilities:
        out += _by_label(tally, facts)
    else:
        out += "<p>No film has a score: the chain ended before the classifier, or no film was judged.</p>\n"
    for status, reasons in tally.reasons.items():
        if reasons:
            out += _grouped(f"Films {status}, by reason", reasons, tally)
    if tally.warned:
        out += _grouped(f"Warnings, on {tally.warned} of {total} films", tally.warnings, tally)
    else:
        out += "<p>No film has a warning.</p>\n"
    return out + "</section>\n"


def _grouped(title: str, counted: Counter, tally: Tally) -> str:
    rows = []
    for group, count in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        names, texts = zip(*tally.examples[group], strict=True)
        rows.append([texts[0] or group if count == 1 else group, count, _names(names, count)])
    return table(["what", "films", "such as"], rows, title, kind="reasons")


def _names(named: Sequence[str], count: int) -> str:
    more = count - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


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


def _histogram(bins: list[int], threshold: float | None, score_name: str) -> str:
    """Films by score as an SVG with the threshold, and the same as a table."""
    width, height, left, top, bottom = 720, 200, 44, 22, 42
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
        marks += f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{score}</text>'
    marks += f'<line class="axis" x1="{left}" y1="{base}" x2="{width - 10}" y2="{base}"/>'
    marks += f'<text x="{left - 6}" y="{top + 5}" text-anchor="end">{peak}</text>'
    marks += f'<text x="{left - 6}" y="{base}" text-anchor="end">0</text>'
    marks += f'<text x="{(left + width) / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(score_name)}</text>'
    told = f"{sum(bins)} films by {score_name}, in steps of {100 // len(bins)} from 0 to 100."
    if threshold is not None:
        x = left + threshold * step * len(bins)
        marks += f'<line class="threshold" x1="{x:.1f}" y1="{top - 6}" x2="{x:.1f}" y2="{base}"/>'
        anchor, dx = ("end", -5) if threshold > 0.7 else ("start", 5)
        marks += f'<text x="{x + dx:.1f}" y="{top - 8}" text-anchor="{anchor}">threshold {100 * threshold:.1f}</text>'
        told += f" The threshold is {100 * threshold:.1f}."
    rows = [[f"{100 * n // len(bins)} to {100 * (n + 1) // len(bins)}", count] for n, count in enumerate(bins)]
    return (
        f'<figure class="histogram"><svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="hist-text">'
        f'<title id="hist-text">{escape(told)} The counts are in the table below.</title>{marks}</svg>\n'
        f"<figcaption>{escape(told)}</figcaption></figure>\n"
        + folded("The counts as a table", table(["score", "films"], rows, f"Films by {score_name}"))
    )


def _films(tally: Tally, facts: dict[str, Any], linked: bool, embed: int) -> str:
    text = (Path(__file__).parent / "templates" / "films.html").read_text(encoding="utf-8")
    note = '<p class="small">This page holds small copies of the films: treat it like the films themselves.</p>\n'
    if linked:
        note += (
            f'<p class="warning">The page itself holds the pictures of the {embed} films with the highest scores. '
            "Those of the others are links to the folder overlays beside it: keep it there to see them.</p>"
        )
    answers = [label for label, _ in _answers(tally, facts)]
    if facts["several"] and answers:
        answers.pop()
    options = "".join(f"<option>{escape(label)}</option>" for label in answers)
    if facts["several"]:
        options += '<option value="|">none of them</option>'
    text = text.replace("<!-- note -->", note).replace("<!-- labels -->", options)
    score, head = ("Probability, %", "Probability, %") if facts["several"] else ("Score", f"{facts['positive']} score")
    return text.replace("<!-- score -->", score).replace("<!-- score head -->", escape(head))


def _about(run: dict[str, Any]) -> str:
    """What made the results: times, weights with their cards, versions, settings."""
    seconds = run.get("seconds") or {}
    total = sum((run.get("counts") or {}).get(status, 0) for status in (OK, REFUSED, FAILED))
    rows = [[name, f"{value:.1f}"] for name, value in seconds.items()]
    times = table(["part", "seconds"], rows, "Seconds by part; of all threads together, except the total")
    when = f"<p>{total} films, from {escape(run.get('started'))} to {escape(run.get('ended'))}.</p>\n"
    out = '<section aria-labelledby="made">\n<h2 id="made">What made these results</h2>\n'
    out += (
        TIMES[0] + "\n" + (when + times if rows else "<p>No times: the run has not finished.</p>\n") + TIMES[1] + "\n"
    )
    facts = [
        ["weights", run.get("weights", "not said")],
        ["program", f"{PROGRAM} {run.get('version')}, runtime {run.get('runtime')}"],
        ["versions", said(run.get("versions") or {})],
        ["arguments", said({k: v for k, v in (run.get("arguments") or {}).items() if v not in (None, False)})],
        ["fingerprints", said(run.get("fingerprints") or {})],
    ]
    out += table(["what", "value"], facts, "The run", kind="facts")
    for stage, decisions in (run.get("config") or {}).items():
        card = card_of(run, stage)
        if card is None:
            out += '<p class="warning">The card of these weights is not at hand, or is not the one that the run used: '
            out += "of what follows, only the decisions are known.</p>\n"
        out += card_section(stage, card or {}, decisions)
    return out + "</section>\n"


def card_of(run: dict[str, Any], stage: str) -> dict[str, Any] | None:
    """The card that the run used; None where it is gone, or its hash is another."""
    from models.weights import CARD_FILE, WeightsError, bundle_of, find, read_card
    from pipeline.reading import file_hash

    hashed = (run.get("hashes") or {}).get(stage, {}).get(CARD_FILE)
    try:
        bundle = bundle_of(find(run.get("weights", "")), stage)
        return read_card(bundle) if hashed and file_hash(bundle / CARD_FILE) == hashed else None
    except (WeightsError, OSError, json.JSONDecodeError):
        return None
