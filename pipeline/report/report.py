"""The report of a run: `report.html`, one page that works from disk, by itself, and without a network.

It is made from the run's folder alone (`run.json`, `journal.jsonl`, the pictures), the source films and the weights'
cards where they are still what the run used. The same folder gives the same bytes. It is written film by film, so its
making takes the same memory for ten films and for ten thousand.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cxr_pipeline.about import PROGRAM, cores
from cxr_pipeline.report.films import in_order, pieces, size_of, turbo
from cxr_pipeline.report.page import (
    ReportError,
    as_json,
    as_text,
    card_section,
    data_block,
    escape,
    page,
    table,
    template,
)
from cxr_pipeline.report.pictures import EMBEDDED, Pictures
from cxr_pipeline.report.summary import Tally, answers_of, probabilities_of, summary
from cxr_pipeline.results.drawing import FAINT, HEAT
from cxr_pipeline.results.folder import REPORT, run_info
from cxr_pipeline.results.journal import FolderLock, JournalReader
from cxr_pipeline.results.outputs import columns
from cxr_pipeline.results.reader import film_file
from cxr_pipeline.run.isolation import IsolatedReader
from cxr_pipeline.stages.base import FAILED, OK, REFUSED
from cxr_pipeline.stages.scores import AT_THRESHOLD, Scale, probability_at
from cxr_pipeline.texts import Texts

TIMES = ("<!-- times of run.json -->", "<!-- end of times -->")  # all that differs between two runs of the same films
_KNOWN = frozenset(columns())  # columns that the page shows in places of their own


class _Work(NamedTuple):
    """How the pictures are made: in so many threads, telling how many are done, and which need not be read."""

    workers: int
    progress: Callable[[int], None]
    pictures: Pictures | None


def write_report(
    folder: Path,
    *,
    embed: int = EMBEDDED,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    language: str | None = None,
    pictures: Pictures | None = None,
) -> Path:
    """Write `report.html` into the folder of a run, finished or not; an older one is replaced at once or not at all.

    Args:
        folder: what `pipeline run --out` or `pipeline merge` left.
        embed: films whose pictures are in the page, those with the highest scores; the others are links to overlays/.
        workers: threads; by default one a core.
        progress: called with the number of films done.
        language: one of `texts.LANGUAGES`; by default that of the run.
        pictures: of films that the run has just judged; the others are read again.

    Raises:
        LanguageError: there is no such language.
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
    say = Texts(language or run.get("language") or "en")
    lock = FolderLock(folder)
    if not lock.acquire():
        raise ReportError(f"a run is working in {folder}. Wait for it, then ask for the report again")
    try:
        work = _Work(workers or cores(), progress or (lambda done: None), pictures)
        return _write(folder, run, journal, embed, work, say)
    finally:
        lock.release()


def _write(
    folder: Path,
    run: dict[str, Any],
    journal: JournalReader,
    embed: int,
    work: _Work,
    say: Texts,
) -> Path:
    tally = Tally.of((entry["row"] for entry in journal), say)
    linked = sum(tally.counts.values()) > embed
    chosen = set(_best(journal, embed)) if linked else None
    config = run.get("config", {})
    classify = config.get("classify", {})
    several = bool(classify.get("multi_label"))
    facts = {
        "classes": run.get("classes", []),
        "several": several,
        "positive": None if several else classify.get("positive", "TB"),
        **_operating(classify, several),
        # One above 1 is never reached: the label was not learned.
        "thresholds": {name: value for name, value in classify.get("thresholds", {}).items() if value <= 1},
        "asked": config.get("localize", {}).get("label"),
        "colours": turbo(),
        "faint": FAINT,
        "heat": HEAT,
        "texts": say.table,
    }
    with page(folder / REPORT, say("Chest X-ray run"), "report.js", linked=linked, say=say) as file:
        for part in (summary(run, tally, facts, say), _films(tally, facts, linked, embed, say), _about(run, say)):
            file.write(part.encode())
        file.write(data_block("facts", facts).encode())
        file.write(b'<script type="application/json" id="rows">[')
        for place, entry in enumerate(journal):
            embedded = chosen is None or place in chosen
            file.write(((",\n" if place else "\n") + as_json(_row(entry, embedded, say))).encode())
        file.write(b"\n]</script>\n")
        reader = IsolatedReader()
        try:
            _write_films(file.write, _numbered(journal, chosen), folder, reader, work)
        finally:
            reader.close()
    return folder / REPORT


def _operating(classify: dict[str, Any], several: bool) -> dict[str, float | None]:
    """The score from which a film is positive, and the probability that has it; None where there is none."""
    threshold = classify.get("threshold")
    if several or threshold is None or not math.isfinite(threshold):
        return {"threshold": None, "cutoff": None}
    cutoff = classify.get("cutoff", AT_THRESHOLD)
    return {"threshold": probability_at(cutoff, threshold, Scale.of(classify.get("score"))), "cutoff": cutoff}


def _write_films(
    write: Callable[[bytes], Any],
    films: Iterator[tuple[int, dict[str, Any]]],
    folder: Path,
    reader: IsolatedReader,
    work: _Work,
) -> None:
    def one(number: int, entry: dict[str, Any]) -> str:
        return data_block(f"film-{number}", pieces(folder, entry, reader, work.pictures))

    jobs = (partial(one, number, entry) for number, entry in films)
    for done, block in enumerate(in_order(jobs, work.workers), 1):
        write(block.encode())
        work.progress(done)


def _numbered(journal: JournalReader, chosen: set[int] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((number, entry) for number, entry in enumerate(journal) if chosen is None or number in chosen)


def _best(journal: JournalReader, count: int) -> list[int]:
    """The places of the films with the highest scores (or probabilities of a label), those without one last."""

    def score(row: dict[str, str]) -> float:
        return float(row.get("tb_score") or 100 * max(probabilities_of(row).values(), default=-0.01))

    scores = ((score(entry["row"]), -place) for place, entry in enumerate(journal))
    return [-place for _, place in heapq.nlargest(count, scores)]


def _row(entry: dict[str, Any], embedded: bool, say: Texts) -> dict[str, Any]:
    """A film as the page's table has it; what is empty is left out. `said` and `noted` are translations."""
    row = entry["row"]
    size = size_of(row)
    error, warnings = row.get("error") or "", row.get("warnings") or ""
    said, noted = say.failure(error), say.reasons(warnings)
    out = {
        "id": row["id"],
        "image": row["image"],
        "status": row["status"],
        "error": error,
        "said": said if said != error else None,
        "size": [size[1], size[0]] if size else None,
        "lungs": float(row["lung_fraction"]) if row.get("lung_fraction") else None,
        "label": row.get("label"),
        "screen": row.get("screen"),
        "score": float(row["tb_score"]) if row.get("tb_score") else None,
        "p": probabilities_of(row),
        "heatmap_label": entry.get("heatmap_label"),
        "regions": entry.get("regions"),
        "warnings": warnings,
        "noted": noted if noted != warnings else None,
        "sha256": row.get("sha256"),
        "further": {k: v for k, v in row.items() if k not in _KNOWN and not k.startswith("p_") and v},
        "embedded": embedded,
        "overlay": film_file(entry, "overlays"),
    }
    return {key: value for key, value in out.items() if value or value == 0 or key == "regions"}


def _films(tally: Tally, facts: dict[str, Any], linked: bool, embed: int, say: Texts) -> str:
    text = template("films.html", say)
    copies = say("This page holds small copies of the films: treat it like the films themselves.")
    note = f'<p class="small">{escape(copies)}</p>\n'
    if linked:
        links = say(
            "The page itself holds the pictures of the {n} films with the highest scores. Those of the others are "
            "links to the folder overlays beside it: keep it there to see them.",
            n=embed,
        )
        note += f'<p class="warning">{escape(links)}</p>'
    answers = [label for label, _ in answers_of(tally, facts, say)]
    if facts["several"] and answers:
        answers.pop()
    options = "".join(f"<option>{escape(label)}</option>" for label in answers)
    if facts["several"]:
        options += f'<option value="|">{escape(say("none of them"))}</option>'
    text = text.replace("<!-- note -->", note).replace("<!-- labels -->", options)
    head = say("Probability, %") if facts["several"] else say("{name} score", name=facts["positive"])
    return text.replace("<!-- score head -->", escape(head))


def _about(run: dict[str, Any], say: Texts) -> str:
    """What made the results: times, weights with their cards, versions, settings."""
    seconds = run.get("seconds") or {}
    total = sum((run.get("counts") or {}).get(status, 0) for status in (OK, REFUSED, FAILED))
    rows = [[name, f"{value:.1f}"] for name, value in seconds.items()]
    times = table(["part", "seconds"], rows, "Seconds by part; of all threads together, except the total")
    when = f"<p>{total} films, from {escape(run.get('started'))} to {escape(run.get('ended'))}.</p>\n"
    out = (
        f'<section class="made" aria-labelledby="made">\n<h2 id="made">{escape(say("What made these results"))}</h2>\n'
    )
    out += (
        TIMES[0] + "\n" + (when + times if rows else "<p>No times: the run has not finished.</p>\n") + TIMES[1] + "\n"
    )
    facts = [
        ["weights", run.get("weights", "not said")],
        ["program", f"{PROGRAM} {run.get('version')}, runtime {run.get('runtime')}"],
        ["versions", as_text(run.get("versions") or {})],
        ["arguments", as_text({k: v for k, v in (run.get("arguments") or {}).items() if v not in (None, False)})],
        ["fingerprints", as_text(run.get("fingerprints") or {})],
    ]
    out += table(["what", "value"], facts, "The run", kind="facts")
    hashes = run.get("hashes") or {}
    for stage, decisions in (run.get("config") or {}).items():
        card = card_of(run, stage)
        if card is None and stage in hashes and not hashes[stage]:
            out += f"<h3>{escape(stage)}</h3>\n<p>A stage without weights. {escape(as_text(decisions))}</p>\n"
            continue
        if card is None:
            out += '<p class="warning">The card of these weights is not at hand, or is not the one that the run used: '
            out += "of what follows, only the decisions are known.</p>\n"
        out += card_section(stage, card or {}, decisions)
    return out + "</section>\n"


def card_of(run: dict[str, Any], stage: str) -> dict[str, Any] | None:
    """The card that the run used; None where it is gone, or its hash is another."""
    from cxr_pipeline.models.store import CARD_FILE, WeightsError, bundle_of, find, read_card
    from cxr_pipeline.run.reading import file_hash

    hashed = (run.get("hashes") or {}).get(stage, {}).get(CARD_FILE)
    try:
        bundle = bundle_of(find(run.get("weights", "")), stage)
        return read_card(bundle) if hashed and file_hash(bundle / CARD_FILE) == hashed else None
    except (WeightsError, OSError, json.JSONDecodeError):
        return None
