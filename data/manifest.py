"""The table of films that training and evaluation start from, checked whole before anything runs.

Either a CSV with the columns below (only `image` is always needed), boxes in `boxes.csv` beside it::

    manifest.csv    image, mask, label, patient, source, split, findings      paths relative to this file
    boxes.csv       image, finding, x, y, w, h                                native pixels, x right, y down

or a folder with one folder a class, split folders above them optional::

    films/                   films/
      TB/1.png                 train/TB/1.png
      NORM/2.png               test/NORM/2.png
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.radiograph import looks_like_image

COLUMNS = ("image", "mask", "label", "patient", "source", "split", "findings")
SPLITS = ("train", "val", "test", "external")
BOX_COLUMNS = ("image", "finding", "x", "y", "w", "h")
_SHOWN = 50  # faults listed in one message


class ManifestError(CxrError, ValueError):
    """All faults of a manifest at once, with row numbers as a spreadsheet shows them (the header is row 1)."""

    def __init__(self, path: Path, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        shown = "\n".join(f"  {fault}" for fault in self.faults[:_SHOWN])
        more = f"\n  and {len(self.faults) - _SHOWN} more" if len(self.faults) > _SHOWN else ""
        super().__init__(f"{path} has {len(self.faults)} fault(s):\n{shown}{more}")


@dataclass(frozen=True)
class Manifest:
    """Films with what is known of them.

    Attributes:
        table: one row a film; the columns of `COLUMNS` always exist (empty text where unknown; `patient` is the image's
            path and `source` "unknown" where not given), further ones are kept.
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
            said = [label, *findings.split("|")]
            for name, values in class_of.items():
                if any(means(text, values) for text in said):
                    return name
            return ""

        labels = [class_name(row.label, row.findings) for row in self.table.itertuples()]
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
) -> Manifest:
    """Read and check a manifest.

    Args:
        path: a CSV file, a folder that holds `manifest.csv`, or a folder with one folder a class.
        classes: labels allowed beside an empty one; None allows any.
        check_files: whether films and masks must exist.
        faults_into: takes the faults of rows, which are then not raised.

    Raises:
        ManifestError: with every fault found.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "manifest.csv").is_file():
            return _from_folders(path, classes)
        path = path / "manifest.csv"
    table = _read_csv(path)
    faults: list[str] = []
    if "image" not in table.columns:
        raise ManifestError(path, [f"no column `image`. Columns there: {', '.join(map(str, table.columns)) or 'none'}"])
    for column in COLUMNS:
        if column not in table.columns:
            table[column] = ""
    for column in ("label", "patient", "source", "split"):
        table[column] = table[column].str.strip()
    for column in {"findings", "negative", "uncertain"} & set(table.columns):
        table[column] = ["|".join(filter(None, map(str.strip, text.split("|")))) for text in table[column]]
    table["patient"] = table["patient"].where(table["patient"] != "", table["image"])
    table["source"] = table["source"].where(table["source"] != "", "unknown")
    if table.empty:
        faults.append("there are no rows")
    manifest = Manifest(table, path.parent, _read_boxes(path.with_name("boxes.csv"), table, faults))
    faults += _row_faults(manifest, classes, check_files)
    if faults_into is not None:
        faults_into += faults
    elif faults:
        raise ManifestError(path, faults)
    return manifest


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ManifestError(
            path, ["there is no such file. Give a CSV with a column `image`, or a folder with one folder a class"]
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(path, [f"it is not UTF-8 text (byte {error.start}). Save the table as CSV UTF-8"]) from None
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    try:
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ManifestError(path, [f"it is no table: {error}"]) from None
    table.columns = [str(name).strip() for name in table.columns]
    return table


def _row_faults(manifest: Manifest, classes: Sequence[str] | None, check_files: bool) -> list[str]:
    faults: list[str] = []
    table = manifest.table
    first_split: dict[str, tuple[str, int]] = {}
    first_row: dict[str, int] = {}
    present = _Files() if check_files else None
    for number, row in enumerate(table.itertuples(), 2):
        if row.image == "":
            faults.append(f"row {number}: no image")
            continue
        if row.image in first_row:
            faults.append(f"row {number}: {row.image} stands in row {first_row[row.image]} already")
        first_row.setdefault(row.image, number)
        for kind in ("image", "mask", "heart_mask"):
            value = getattr(row, kind, "")
            if present is not None and value and not present.has(manifest.path(value)):
                faults.append(f"row {number}: {kind} {value} does not exist in {manifest.root}")
        if classes is not None and row.label and row.label not in classes:
            faults.append(f"row {number}: label {row.label!r} is not one of {', '.join(classes)}")
        if row.split and row.split not in SPLITS:
            faults.append(f"row {number}: split {row.split!r} is not one of {', '.join(SPLITS)}")
        elif row.split:
            seen, where = first_split.setdefault(row.patient, (row.split, number))
            if seen != row.split:
                faults.append(
                    f"row {number}: patient {row.patient!r} is in split {row.split!r} here and {seen!r} in row "
                    f"{where}; a patient belongs to one split"
                )
    return faults


class _Files:
    """Whether files exist, asking each folder once: one look a file is slow on network drives."""

    def __init__(self) -> None:
        self._folders: dict[str, set[str]] = {}

    def has(self, path: Path) -> bool:
        folder = str(path.parent)
        if folder not in self._folders:
            try:
                self._folders[folder] = set(os.listdir(folder))
            except OSError:
                self._folders[folder] = set()
        return path.name in self._folders[folder]


def _read_boxes(path: Path, table: pd.DataFrame, faults: list[str]) -> pd.DataFrame:
    empty = pd.DataFrame(
        {name: pd.Series(dtype=str if name in ("image", "finding") else float) for name in BOX_COLUMNS}
    )
    if not path.is_file():
        return empty
    boxes = _read_csv(path)
    missing = [name for name in BOX_COLUMNS if name not in boxes.columns and name != "finding"]
    if missing:
        faults.append(f"{path.name}: no column {', '.join(missing)}")
        return empty
    if "finding" not in boxes.columns:
        boxes["finding"] = ""
    for name in "xywh":
        boxes[name] = pd.to_numeric(boxes[name], errors="coerce")
    known = set(table["image"])
    for number, row in enumerate(boxes.itertuples(), 2):
        if row.image not in known:
            faults.append(f"{path.name} row {number}: image {row.image!r} is not in the manifest")
        if not (row.w > 0 and row.h > 0 and row.x == row.x and row.y == row.y):  # NaN compares unequal to itself
            faults.append(f"{path.name} row {number}: x, y must be numbers and w, h positive ones")
    return boxes[list(BOX_COLUMNS)]


def _from_folders(root: Path, classes: Sequence[str] | None) -> Manifest:
    rows: list[dict[str, str]] = []
    folders = [("", folder) for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name not in SPLITS]
    for split in SPLITS:
        if (root / split).is_dir():
            folders += [(split, folder) for folder in sorted((root / split).iterdir()) if folder.is_dir()]
    for split, folder in folders:
        films = sorted(
            p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and looks_like_image(p)
        )
        rows += [{"image": p.relative_to(root).as_posix(), "label": folder.name, "split": split} for p in films]
    if not rows:
        raise ManifestError(
            root,
            [
                "no films found. Expected manifest.csv, or one folder a class with films in it"
                + (f": {', '.join(f'{root.name}/{name}/*.png' for name in classes)}" if classes else "")
                + f". Found: {', '.join(sorted(p.name for p in root.iterdir())[:10]) or 'nothing'}"
            ],
        )
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS), fill_value="")
    table["patient"], table["source"] = table["image"], root.resolve().name
    manifest = Manifest(table, root, pd.DataFrame(columns=list(BOX_COLUMNS)))
    unknown = sorted(set(table["label"]) - set(classes)) if classes is not None else []
    if unknown:
        raise ManifestError(
            root, [f"folder {name!r} is not one of the classes {', '.join(classes)}" for name in unknown]
        )
    return manifest
