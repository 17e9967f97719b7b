"""What `pipeline data summary` says of a manifest: films by source, class and split; as text, CSV and picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cxr_pipeline.data.files import csv_text, write_text
from cxr_pipeline.data.manifest import SPLITS, Manifest
from cxr_pipeline.data.names import FileIndex
from cxr_pipeline.data.tables import row_dicts

_FINDINGS_SHOWN = 20
NO_SPLIT, NO_LABEL = "no split", "no label"


def counts(manifest: Manifest) -> pd.DataFrame:
    """Columns source, label, split, films, patients, masks: a row for each group that has films."""
    table = manifest.table.assign(
        label=manifest.table["label"].replace("", NO_LABEL), split=manifest.table["split"].replace("", NO_SPLIT)
    )
    groups = table.groupby(["source", "label", "split"], sort=True)
    return groups.agg(
        films=("image", "size"), patients=("patient", "nunique"), masks=("mask", lambda masks: int((masks != "").sum()))
    ).reset_index()


def findings(manifest: Manifest) -> pd.DataFrame:
    """Columns finding, split, films: how many films each finding is said to be in."""
    table = pd.DataFrame(
        {
            "finding": manifest.table["findings"].str.split("|"),
            "split": manifest.table["split"].replace("", NO_SPLIT),
        }
    ).explode("finding")
    table = table[table["finding"].fillna("") != ""]
    return table.groupby(["finding", "split"]).size().rename("films").reset_index()


def missing(manifest: Manifest) -> int:
    """How many films of the table are no files, by any of the names that `read_manifest` would mend."""
    index = FileIndex(manifest.root)
    return sum(bool(index.find(image)[1]) for image in manifest.table["image"] if image)


def as_text(manifest: Manifest) -> str:
    """Films by source and class, a column per split; then findings, the commonest first."""
    table = manifest.table
    lines = [
        f"{len(table)} films of {table['patient'].nunique()} patients from {table['source'].nunique()} source(s); "
        f"{int((table['mask'] != '').sum())} with a lung mask, {manifest.boxes['image'].nunique()} with boxes",
        "",
        *_grid(counts(manifest), ["source", "label"], "all"),
    ]
    found = findings(manifest)
    if len(found):
        total = found.groupby("finding")["films"].sum().sort_values(ascending=False, kind="stable")
        shown = found[found["finding"].isin(total.index[:_FINDINGS_SHOWN])]
        lines += ["", *_grid(shown, ["finding"], None, order=list(total.index))]
        if len(total) > _FINDINGS_SHOWN:
            lines.append(f"and {len(total) - _FINDINGS_SHOWN} findings more")
    return "\n".join(lines)


def _csv(table: pd.DataFrame) -> str:
    return csv_text([str(name) for name in table.columns], row_dicts(table.fillna("")))


def write(manifest: Manifest, folder: Path) -> list[Path]:
    """summary.csv, findings.csv where there are any, and summary.png in `folder`."""
    from cxr_pipeline.models.figures.plots import films_by_class

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "summary.csv"]
    write_text(paths[0], _csv(counts(manifest)))
    found = findings(manifest)
    if len(found):
        paths.append(folder / "findings.csv")
        write_text(paths[-1], _csv(found))
    bars = {
        (source, split): dict(zip(part["label"], part["films"], strict=True))
        for (source, split), part in counts(manifest).groupby(["source", "split"])
    }
    order = [*SPLITS, NO_SPLIT]
    rows = sorted(bars, key=lambda bar: (bar[0], order.index(bar[1]) if bar[1] in order else len(order)))
    paths.append(films_by_class({f"{s}, {p}": bars[s, p] for s, p in rows}, folder / "summary.png"))
    return paths


def _grid(table: pd.DataFrame, rows: list[str], total: str | None, order: list[str] | None = None) -> list[str]:
    """Lines of a table: `rows` to the left, splits across, a sum at the right, and below where `total` names it."""
    grid = table.pivot_table(index=rows, columns="split", values="films", aggfunc="sum", fill_value=0)
    known = [split for split in (*SPLITS, NO_SPLIT) if split in grid.columns]
    grid = grid[known + [split for split in grid.columns if split not in known]]
    if order is not None:
        grid = grid.reindex([name for name in order if name in grid.index])
    cells = [[*rows, *grid.columns, "all"]]
    for key, row in grid.iterrows():
        cells.append([*(key if isinstance(key, tuple) else (key,)), *map(str, row), str(int(row.sum()))])
    if total:
        cells.append([total, *[""] * (len(rows) - 1), *map(str, grid.sum()), str(int(grid.to_numpy().sum()))])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < len(rows) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
