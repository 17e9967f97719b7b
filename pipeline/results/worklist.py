"""What to read first: `worklist.csv`, and `worklist.xlsx` where openpyxl is installed, made from a results folder.

Films that are screen positive come first, then those that are unsure, then those that nobody judged (refused, failed),
then the negative ones; within each, the highest score first.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cxr_pipeline.data.files import mode_like, whole_file, write_csv
from cxr_pipeline.data.names import printable
from cxr_pipeline.results.journal import JournalReader
from cxr_pipeline.results.outputs.identifiers import COLUMNS as IDENTIFIERS
from cxr_pipeline.results.reader import rows, run_info
from cxr_pipeline.stages.base import FAILED, OK, REFUSED
from cxr_pipeline.stages.scores import AT_THRESHOLD
from cxr_pipeline.stages.sets import NEGATIVE, POSITIVE, UNSURE
from cxr_pipeline.texts import ENGLISH, Texts

COLUMNS = ("place", "file", "folder", "id", "screen", "score", "label", "where", "reason")
_ORDER = (POSITIVE, UNSURE, REFUSED, FAILED, NEGATIVE, OK)
_EXCEL_ROWS = 1_048_575  # that a sheet holds below its head


@dataclass(frozen=True)
class Work:
    """How many films there are of each kind.

    Attributes:
        counts: films by kind: positive, unsure, negative, refused, failed, and ok where nothing was decided.
        labels: films by label.
        excel_missing: openpyxl is not installed, so there is no worklist.xlsx.
    """

    counts: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    excel_missing: bool = False

    @property
    def first(self) -> int:
        """How many to read first: positive and unsure ones."""
        return self.counts.get(POSITIVE, 0) + self.counts.get(UNSURE, 0)

    def summary(self, say: Texts = ENGLISH) -> str:
        """In words, a line or two."""
        total = sum(self.counts.values())
        films = say("1 film") if total == 1 else say("{n} films", n=total)
        parts = [f"{self.counts.get(name, 0)} {say(name)}" for name in (REFUSED, FAILED)]
        answers = ", ".join(f"{count} {name}" for name, count in sorted(self.labels.items()))
        likeliest = "\n" + say("Likeliest class: {answers}.", answers=answers) if answers else ""
        if any(self.counts.get(name) for name in (POSITIVE, UNSURE, NEGATIVE)):
            screens = [say("{n} screen positive", n=self.counts.get(POSITIVE, 0))]
            screens += [f"{self.counts.get(name, 0)} {say(name)}" for name in (UNSURE, NEGATIVE)]
            parts = screens + parts
        if self.first:
            likeliest = " " + self.first_sentence(say) + likeliest
        return f"{films}: {', '.join(parts)}.{likeliest}"

    def first_sentence(self, say: Texts = ENGLISH) -> str:
        """How many to read first, as a sentence; empty where there are none."""
        if self.first > 1:
            return say("Read these {n} first.", n=self.first)
        return say("Read this one first.") if self.first else ""


def kind_of(row: Mapping[str, str]) -> str:
    """Positive, unsure, negative, refused or failed; ok where nothing was decided."""
    if row["status"] != OK:
        return row["status"]
    screen = row.get("screen", "")
    return screen if screen in (POSITIVE, UNSURE, NEGATIVE) else OK


def work_of(table: Iterable[Mapping[str, str]]) -> Work:
    """The counts of rows of results.csv."""
    counts: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for row in table:
        counts[kind_of(row)] += 1
        if row.get("label"):
            labels.update(row["label"].split("|"))
    return Work(dict(counts), dict(labels))


def write_worklist(folder: Path) -> Work:
    """Write the worklist of a results folder, each file at once, and count what is in it.

    Who may read run.json may read the worklist. Names that a spreadsheet would take for a formula are marked.

    Raises:
        OSError: a file cannot be read or written.
    """
    run = run_info(folder)
    classify = run.get("config", {}).get("classify", {})
    cutoff, positive = classify.get("cutoff", AT_THRESHOLD), classify.get("positive")
    where = {
        entry["row"]["id"]: _places(entry.get("regions"))
        for entry in JournalReader(folder / "journal.jsonl")
        if entry.get("regions")
    }
    # What is kept of every film is what a run's memory grows by: no names of columns, and texts that many share once.
    table, shared, further = [], dict[str, str](), tuple[str, ...]()
    for number, row in enumerate(rows(folder)):
        kind = kind_of(row)
        score = float(row["tb_score"]) if row.get("tb_score") else None
        above = re.sub(r"[/\\][^/\\]*$", "", row["image"]) if re.search(r"[/\\]", row["image"]) else ""
        further = further or tuple(name for name in IDENTIFIERS if name in row)  # where --identifiers asked for it
        texts = (above, row.get("tb_score", ""), row.get("label", ""), where.get(row["id"], ""))
        above, *often = (shared.setdefault(text, text) for text in (*texts, reason(row, kind, cutoff, positive)))
        values = (re.split(r"[/\\]", row["image"])[-1], above, row["id"], kind, *often)
        order = (_ORDER.index(kind), -(score if score is not None else -1.0), number)
        table.append((order, (*values, *(row[name] for name in further))))
    table.sort(key=lambda item: item[0])
    names = (*COLUMNS, *further)

    def lines() -> Iterator[dict[str, str]]:
        for place, (_, values) in enumerate(table, 1):
            yield dict(zip(names, (str(place), *values), strict=True))

    mode = mode_like(folder / "run.json")
    write_csv(folder / "worklist.csv", names, lines(), mode=mode)
    missing = not _write_excel(folder / "worklist.xlsx", lines(), mode, names)
    counted = work_of(rows(folder))
    return Work(counted.counts, counted.labels, missing)


def _places(regions: list[dict[str, Any]] | None) -> str:
    places = [f"{one['side']} lung, {one['zone']} zone" for one in regions or ()]
    return "; ".join(dict.fromkeys(places))


def reason(row: Mapping[str, str], kind: str, cutoff: float, positive: str | None) -> str:
    """Why a film stands where it does, in a sentence."""
    if kind in (REFUSED, FAILED):
        return f"not judged: {row.get('error') or 'no reason given'}"
    if kind == OK:
        return "nothing was decided"
    score, label = f"{positive} score {row['tb_score']}", row.get("label", "")
    other = f"; likeliest {label}" if label and label != positive else ""
    if kind == POSITIVE:
        text = f"{score} reaches the threshold, {cutoff:g}{other}"
    elif kind == UNSURE:
        side = "reaches" if float(row["tb_score"]) >= cutoff else "is under"
        text = f"{score} {side} the threshold, {cutoff:g}, too near to decide{other}"
    else:
        text = f"{score} is under the threshold, {cutoff:g}{other}"
    doubts = [one for one in row.get("warnings", "").split("; ") if one and not one.startswith("unsure: ")]
    return "; ".join([text, *doubts])


def _write_excel(path: Path, lines: Iterable[dict[str, str]], mode: int, names: Sequence[str]) -> bool:
    """The worklist as a workbook; False where openpyxl is not installed."""
    path.unlink(missing_ok=True)
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.styles import Font
        from openpyxl.utils import get_column_letter
    except ImportError:
        return False
    book = Workbook(write_only=True)
    sheet = book.create_sheet("worklist")
    sheet.freeze_panes = "A2"
    for number, width in enumerate((7, 30, 40, 30, 10, 8, 8, 40, 90), 1):
        sheet.column_dimensions[get_column_letter(number)].width = width
    head = [WriteOnlyCell(sheet, name) for name in names]
    for cell in head:
        cell.font = Font(bold=True)
    sheet.append(head)
    for line in islice(lines, _EXCEL_ROWS):
        cells = []
        for name in names:
            value: Any = printable(line[name])  # a workbook cannot hold control characters
            if name in ("place", "score") and value:
                value = float(value) if name == "score" else int(value)
            cell = WriteOnlyCell(sheet, value)
            if isinstance(value, str):
                cell.data_type = "s"  # never a formula
            cells.append(cell)
        sheet.append(cells)
    written = io.BytesIO()
    book.save(written)
    with whole_file(path, mode=mode) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in zipfile.ZipFile(written).namelist():  # without times: the same films give the same bytes
            data = re.sub(rb"\d{4}-\d\d-\d\dT[\d:]+Z", b"2000-01-01T00:00:00Z", zipfile.ZipFile(written).read(name))
            packed.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return True
