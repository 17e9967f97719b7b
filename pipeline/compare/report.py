"""What `pipeline compare` prints and writes.

The folder that `--out DIR` names::

    DIR/
      compare.md    the table, the paired tests and the notes, to read
      compare.csv   one row per run, for programs
      pairs.csv     one row per pair of runs and class: paired tests (classify only)
      compare.png   loss and accuracy on val by epoch, where a run has a history
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_pipeline.compare.compare import BATCH, Comparison, curve_names
from cxr_pipeline.data.files import csv_text, write_text

_WORDS = {
    "best_epoch": "best epoch",
    "n": "films judged",
    "positive": "positive class",
    "auroc": "AUROC (95 % interval)",
    "parameters": "parameters",
    "ms_per_image": f"ms per image (ONNX Runtime, batch of {BATCH})",
    "serving_mb": "serving file, MB",
}


def as_text(comparison: Comparison) -> str:
    """The table, a column per run, the paired tests and the notes, as Markdown that reads well as it is."""
    rows = comparison.rows
    shown = [key for key in rows[0] if key != "run" and not key.endswith(("_low", "_high"))]
    table = [["", *(run.name for run in comparison.runs)]]
    for key in shown:
        word = _WORDS.get(key, key.replace("_positive", ", positive class").replace("_", " ").replace("f1", "F1"))
        table.append([word, *(_cell(row, key) for row in rows)])
    parts = [_markdown(table)]
    if comparison.pairs:
        head = ["paired tests", "class", "films", "AUROC", "p (DeLong)", "accuracy", "p (McNemar)"]
        lines = [
            [
                f"{pair['first']} against {pair['second']}",
                pair["class"],
                str(pair["n"]),
                f"{_plain(pair['auroc_first'])}, {_plain(pair['auroc_second'])}",
                _plain(pair["p_delong"]),
                f"{_plain(pair.get('accuracy_first'))}, {_plain(pair.get('accuracy_second'))}",
                _plain(pair.get("p_mcnemar")),
            ]
            for pair in comparison.pairs
        ]
        parts.append(_markdown([head, *lines]))
        parts.append(
            "Paired tests: on the films that both judged, two-sided, films taken as independent, not corrected for the "
            "number of pairs."
        )
    return "\n\n".join([*parts, *comparison.notes])


def _markdown(table: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in table
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(row: dict[str, Any], key: str) -> str:
    text = _plain(row[key])
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return text if low is None or high is None else f"{text} ({low:.3f} to {high:.3f})"


def _plain(value: Any) -> str:
    """A figure for people: three decimals, more where it is small; a dash where there is none."""
    if value is None or value != value:
        return "-"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def write(comparison: Comparison, out: Path) -> None:
    """Write the files that the module's head lists, in place of those of an earlier comparison."""
    from cxr_pipeline.models.figures.plots import compared_curves

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "compare.md", "# Runs compared\n\n" + as_text(comparison) + "\n")
    write_text(out / "compare.csv", _csv(comparison.rows))
    if comparison.pairs:
        write_text(out / "pairs.csv", _csv(comparison.pairs))
    curves = [(run.name, run.history) for run in comparison.runs if run.history]
    if curves:
        compared_curves(curves, curve_names(curves[0][1])[:2], out / "compare.png")


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    def cells(row: dict[str, Any]) -> dict[str, Any]:
        blank = {key: "" for key, value in row.items() if value is None or value != value}
        return {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} | blank

    return csv_text(list(dict.fromkeys(key for row in rows for key in row)), map(cells, rows))
