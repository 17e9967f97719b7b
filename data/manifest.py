"""The table of films that training and evaluation start from, checked whole before anything runs.

Either a CSV or Excel table with the columns below (only `image` is always needed), boxes in `boxes.csv` beside it::

    manifest.csv    image, mask, label, patient, source, split, findings      paths relative to this file
    boxes.csv       image, finding, x, y, w, h                                native pixels, x right, y down

or a folder with one folder per class; folders of splits may lie above or below them, and masks beside the films::

    films/             films/                films/                    films/
      TB/1.png           train/TB/1.png        TB/train/1.png            TB/images/1.png  TB/masks/1.png
      NORM/2.png         test/NORM/2.png       NORM/test/2.png           NORM/images/...

A mask may also lie in two files (columns `mask_left` and `mask_right`), or be given as run lengths in a column
(`mask_rle`); see `data.filmmasks`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.classfolders import rows_of, split_of, unclear_masks
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.names import FileIndex, brief, printable
from cxr_pipeline.data.tables import Table, TableError, column_named, read_table, row_dicts

log = logging.getLogger("cxr.manifest")
COLUMNS = ("image", "mask", "label", "patient", "source", "split", "findings")
SPLITS = ("train", "val", "test", "external")
# Further columns that give masks: files beside `mask`, and run lengths with the size that they are of.
_MASK_FILES = (
    *("mask_left", "mask_right", "left_mask", "right_mask", "mask_l", "mask_r"),
    *("left_lung_mask", "right_lung_mask", "mask_left_lung", "mask_right_lung"),
)
RUN_COLUMNS = ("mask_rle", "mask_rle_left", "mask_rle_right", "left_lung", "right_lung")
MASK_COLUMNS = (*_MASK_FILES, *RUN_COLUMNS, "mask_height", "mask_width", "rle_order", "mask_labels", "heart_mask")
IN_COLUMN = "column:"  # in `mask`: what follows is the name of the column that holds the mask
BOX_COLUMNS = ("image", "finding", "x", "y", "w", "h")
_SHOWN = 50  # faults listed in one message


class ManifestError(CxrError, ValueError):
    """All faults of a manifest at once, with row numbers as a spreadsheet shows them (the header is row 1)."""

    def __init__(self, path: Path, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        shown = "\n".join(f"  {printable(fault)[:400]}" for fault in self.faults[:_SHOWN])
        more = f"\n  and {len(self.faults) - _SHOWN} more" if len(self.faults) > _SHOWN else ""
        super().__init__(f"{printable(str(path))} has {len(self.faults)} fault(s):\n{shown}{more}")


@dataclass(frozen=True)
class Manifest:
    """Films with what is known of them.

    Attributes:
        table: one row per film; the columns of `COLUMNS` always exist (empty text where unknown; `patient` is the
            image's path and `source` "unknown" where not given), further ones are kept.
        root: folder that relative paths start from.
        boxes: lesion boxes in native pixels, columns `BOX_COLUMNS`; may be empty.
        has_classes: whether labels were made classes already, see `relabelled`.
    """

    table: pd.DataFrame
    root: Path
    boxes: pd.DataFrame
    has_classes: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def rows(self) -> list[dict[str, Any]]:
        """The films as dicts by column, in the order of the table."""
        return row_dicts(self.table)

    def select(
        self,
        *,
        split: str | Sequence[str] | None = None,
        source: str | Sequence[str] | None = None,
        has_mask: bool | None = None,
        labels: str | Sequence[str] | None = None,
    ) -> Manifest:
        """The films that match all that is given."""
        keep = pd.Series(True, index=self.table.index)
        for column, wanted in (("split", split), ("source", source), ("label", labels)):
            if wanted is not None:
                keep &= self.table[column].isin([wanted] if isinstance(wanted, str) else list(wanted))
        if has_mask is not None:
            keep &= (self.table["mask"] != "") == has_mask
        return replace(self, table=self.table[keep].reset_index(drop=True))

    def relabelled(self, class_of: Mapping[str, Sequence[str]] | None) -> Manifest:
        """The films with their class as `label`: the first whose values their label or findings fit, else none.

        Args:
            class_of: values by class, such as ``{"COVID-19": ["Pneumonia/Viral/COVID-19"], "other": ["Pneumonia"]}``; a
                value fits itself and what follows it behind a slash. None leaves labels as they are, and so does a
                manifest whose labels were made classes before: a class need not be among its own values.
        """
        if class_of is None or self.has_classes:
            return self

        def class_name(label: str, findings: str) -> str:
            named = [label, *findings.split("|")]
            for name, values in class_of.items():
                if any(means(text, values) for text in named):
                    return name
            return ""

        labels = [class_name(row["label"], row["findings"]) for row in self.rows()]
        return replace(self, table=self.table.assign(label=labels), has_classes=True)

    def path(self, image: str) -> Path:
        """Where a film or mask of the table lies."""
        return self.root / image  # an absolute path stays itself

    def boxes_of(self, image: str) -> list[tuple[str, Box]]:
        """(finding, box) of one film, in the order of the file."""
        rows = self.boxes[self.boxes["image"] == image]
        return [(row.finding, Box(row.x, row.y, row.w, row.h)) for row in rows.itertuples()]

    def split_hash(self) -> str:
        """16 hex digits over which film of which patient is in which split, whatever their order."""
        lines = sorted(f"{row.image},{row.patient},{row.split}" for row in self.table.itertuples())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def content_hash(self, *, labels: bool) -> str:
        """16 hex digits over all that a training takes from the table, whatever the order of the films.

        Args:
            labels: what is said of the films too (labels, findings, boxes), not only films, masks and splits.
        """
        names = ["image", "mask", "patient", "source", "split"]
        names += [name for name in ("heart_mask",) if name in self.table.columns]
        if self.table["mask"].str.contains(IN_COLUMN, regex=False).any() or "mask_labels" in self.table.columns:
            further = [name for name in MASK_COLUMNS if name in self.table.columns and name not in _MASK_FILES]
            names += [name for name in further if name not in names]
        if labels:
            names += [n for n in ("label", "findings", "negative", "uncertain") if n in self.table.columns]
        lines = sorted(map(repr, self.table[names].itertuples(index=False, name=None)))
        if labels:
            lines += sorted(map(repr, self.boxes.itertuples(index=False, name=None)))
        return hashlib.sha256("\n".join([*names, *lines]).encode()).hexdigest()[:16]


def means(text: str, values: Sequence[str]) -> bool:
    """Whether a label or finding is one of `values`, or one of them with more behind a slash."""
    return bool(text) and any(text == value or text.startswith(value + "/") for value in values)


def read_manifest(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    check_files: bool = True,
    faults_into: list[str] | None = None,
    mask_labels: Sequence[str] | None = None,
) -> Manifest:
    """Read and check a manifest.

    Args:
        path: a table (see `data.tables`), a folder that holds `manifest.csv`, or a folder with one folder per class.
        classes: labels allowed beside an empty one; None allows any.
        check_files: whether films and masks must exist; names that differ from a file's in case, slashes or ending are
            then mended.
        faults_into: takes the faults of rows, which are then not raised.
        mask_labels: values of the masks that count as lung; by default those of the column `mask_labels`, or the
            obvious ones.

    Raises:
        ManifestError: with every fault found.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "manifest.csv").is_file():
            return _with_labels(_from_folders(path, classes), mask_labels)
        path = path / "manifest.csv"
    try:
        read = read_table(path, ["image"])
    except TableError as error:
        raise ManifestError(path, [str(error)]) from None
    table = _normal(read)
    faults = list(read.faults)
    if table.empty:
        faults.append("there are no rows")
    renamed: dict[str, str] = {}
    if check_files:
        faults += _found_files(table, path.parent, read.numbers, renamed)
    table["patient"] = table["patient"].where(table["patient"] != "", table["image"])
    boxes = _read_boxes(path.with_name("boxes.csv"), table, faults, renamed)
    manifest = _with_labels(Manifest(table, path.parent, boxes), mask_labels)
    faults += _row_faults(manifest, classes, read.numbers)
    if faults_into is not None:
        faults_into += faults
    elif faults:
        raise ManifestError(path, faults)
    return manifest


def _normal(read: Table) -> pd.DataFrame:
    """The table with all columns of `COLUMNS`, under these names, and its words as they are written here."""
    table = pd.DataFrame(read.rows, columns=read.columns, dtype=str)
    known = (*COLUMNS, *MASK_COLUMNS, "negative", "uncertain")
    spelled = {column_named(name, read.columns): name for name in known}
    table = table.rename(columns={old: new for old, new in spelled.items() if old is not None})
    for column in COLUMNS:
        if column not in table.columns:
            table[column] = ""
    for column in {"findings", "negative", "uncertain"} & set(table.columns):
        table[column] = ["|".join(filter(None, map(str.strip, text.split("|")))) for text in table[column]]
    table["split"] = [split_of(text) or text for text in table["split"]]
    table["source"] = table["source"].where(table["source"] != "", "unknown")
    table["mask"] = [masks_in(row) for row in row_dicts(table)]
    return table


def _found_files(table: pd.DataFrame, root: Path, numbers: Sequence[int], renamed: dict[str, str]) -> list[str]:
    """Put the names of the files that exist into the table; says which don't. `renamed` takes films by old name."""
    index = FileIndex(root)
    faults: list[str] = []
    images, masks, missing = [], [], 0
    for number, image, mask in zip(numbers, table["image"], table["mask"], strict=True):
        found, problem = index.find(image) if image else ("", "")
        images.append(found)
        if found != image:
            renamed[image] = found
        if problem:
            missing += problem == _ABSENT
            message = f"{problem} in {root}" if problem == _ABSENT else problem
            faults.append(f"row {number}: image {brief(image)} {message}")
        parts = []
        for part in filter(None, mask.split("|")):
            name, problem = index.find(part) if not part.startswith(IN_COLUMN) else (part, "")
            parts.append(name)
            if problem:
                message = f"{problem} in {root}" if problem == _ABSENT else problem
                faults.append(f"row {number}: mask {brief(part)} {message}")
        masks.append("|".join(parts))
    if "heart_mask" in table.columns:
        table["heart_mask"] = [
            _heart_file(index, number, heart, root, faults)
            for number, heart in zip(numbers, table["heart_mask"], strict=True)
        ]
    if missing == len(table) > 20:  # a table in another folder than its films: one sentence says more than all rows
        first = os.path.abspath(root / images[0])
        return [
            f"none of its {missing} films exists. The first would be {brief(first, 200)}: paths start from the table"
        ]
    table["image"], table["mask"] = images, masks
    return faults


_ABSENT = "does not exist"


def _heart_file(index: FileIndex, number: int, heart: str, root: Path, faults: list[str]) -> str:
    """The name of the file that exists of a heart mask; a fault is added where there is none."""
    if not heart:
        return ""
    name, problem = index.find(heart)
    if problem:
        where = f" in {root}" if problem == _ABSENT else ""
        faults.append(f"row {number}: heart_mask {brief(heart)} {problem}{where}")
    return name


def _with_labels(manifest: Manifest, mask_labels: Sequence[str] | None) -> Manifest:
    if not mask_labels:
        return manifest
    return replace(manifest, table=manifest.table.assign(mask_labels=",".join(map(str, mask_labels))))


def masks_in(row: Mapping[str, str]) -> str:
    """The masks that a row names in any of its columns, joined by a pipe sign; see `data.filmmasks`."""
    files = [row.get("mask", ""), *(row.get(name, "") for name in _MASK_FILES)]
    named = [f"{IN_COLUMN}{name}" for name in MASK_COLUMNS if name in RUN_COLUMNS and row.get(name, "")]
    return "|".join([part.strip() for text in files for part in text.split("|") if part.strip()] + named)


def _row_faults(manifest: Manifest, classes: Sequence[str] | None, numbers: Sequence[int]) -> list[str]:
    faults: list[str] = []
    first_split: dict[str, tuple[str, int]] = {}
    first_row: dict[str, int] = {}
    for number, row in zip(numbers, manifest.rows(), strict=True):
        image, label, split, patient = row["image"], row["label"], row["split"], row["patient"]
        if image == "":
            faults.append(f"row {number}: no image")
            continue
        if image in first_row:
            faults.append(f"row {number}: {brief(image)} stands in row {first_row[image]} already")
        first_row.setdefault(image, number)
        if classes is not None and label and label not in classes:
            alike = [name for name in classes if name.casefold() == label.casefold()]
            meant = f". Write {alike[0]!r}" if alike else ""
            faults.append(f"row {number}: label {brief(label)!r} is not one of {', '.join(classes)}{meant}")
        if split and split not in SPLITS:
            faults.append(f"row {number}: split {brief(split)!r} is not one of {', '.join(SPLITS)}")
        elif split:
            seen, where = first_split.setdefault(patient, (split, number))
            if seen != split:
                faults.append(
                    f"row {number}: patient {brief(patient)!r} is in split {split!r} here and {seen!r} in row "
                    f"{where}; a patient belongs to one split"
                )
    return faults


def _read_boxes(
    path: Path, table: pd.DataFrame, faults: list[str], renamed: Mapping[str, str] | None = None
) -> pd.DataFrame:
    empty = pd.DataFrame(
        {name: pd.Series(dtype=str if name in ("image", "finding") else float) for name in BOX_COLUMNS}
    )
    if not path.is_file():
        return empty
    try:
        read = read_table(path, [name for name in BOX_COLUMNS if name != "finding"])
    except TableError as error:
        faults.append(f"{path.name}: {error}")
        return empty
    faults += [f"{path.name} {fault}" for fault in read.faults]
    boxes = pd.DataFrame(read.rows, columns=read.columns, dtype=str)
    boxes = boxes.rename(columns={column_named("finding", read.columns) or "finding": "finding"})
    if "finding" not in boxes.columns:
        boxes["finding"] = ""
    for name in "xywh":
        boxes[name] = pd.to_numeric(boxes[name], errors="coerce")
    boxes["image"] = [(renamed or {}).get(name, name) for name in boxes["image"]]
    known = set(table["image"])
    for number, row in zip(read.numbers, boxes.itertuples(), strict=True):
        if row.image not in known:
            faults.append(f"{path.name} row {number}: image {brief(row.image)!r} is not in the manifest")
        sound = row.w > 0 and row.h > 0 and max(map(abs, (row.x, row.y, row.w, row.h))) < 1e6
        if not sound:  # of a NaN too, which compares as false
            faults.append(f"{path.name} row {number}: x, y must be numbers and w, h positive ones")
    return boxes[list(BOX_COLUMNS)]


def _from_folders(root: Path, classes: Sequence[str] | None) -> Manifest:
    unclear: list[str] = []
    rows = rows_of(root, classes, unclear)
    if unclear:
        log.warning("%s: %s", root, unclear_masks(unclear))
    if not any(row["label"] for row in rows):
        found = ", ".join(sorted(brief(p.name, 40) for p in root.iterdir())[:10]) or "nothing"
        what = "films lie in no folder of a class" if rows else "no films found"
        raise ManifestError(
            root,
            [
                f"{what}. Expected manifest.csv, or one folder per class with films in it"
                + (f": {', '.join(f'{root.name}/{name}/*.png' for name in classes)}" if classes else "")
                + f". Found: {found}"
            ],
        )
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS), fill_value="")
    table["patient"], table["source"] = table["image"], root.resolve().name
    manifest = Manifest(table, root, pd.DataFrame(columns=list(BOX_COLUMNS)))
    unknown = sorted(set(table["label"]) - set(classes) - {""}) if classes is not None else []
    if classes is not None and unknown:
        shown = [
            f"folder {brief(name)!r} is not one of the classes {', '.join(classes)}. Name what it means: pipeline data "
            f"import table {brief(root.name)} --map {brief(name)!r}={classes[0]} --out manifest.csv"
            for name in unknown
        ]
        raise ManifestError(root, shown)
    return manifest
