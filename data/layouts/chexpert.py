"""CheXpert.

Tree, header and meaning of the values: the set's own page (stanfordmlgroup.github.io/competitions/chexpert). Irvin J et
al. CheXpert: a large chest radiograph dataset with uncertainty labels and expert comparison. AAAI 2019.
"""

from __future__ import annotations

import re
from pathlib import Path

from cxr_pipeline.data.layouts.base import (
    Job,
    ManifestRow,
    age_of,
    file_named,
    find_root,
    folders_in,
    joined,
    number_in,
    read_table,
    sex_of,
)
from cxr_pipeline.data.tables import row_dicts

OBSERVATIONS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
_SPLITS = {"train.csv": "train", "valid.csv": "val", "test.csv": "test", "test_labels.csv": "test"}
_BELOW = 4  # levels that are looked at for the parts of the full-size download


def chexpert(folder: Path, job: Job) -> list[ManifestRow]:
    """Stanford Hospital, 2002 to 2017: 14 observations mined from reports by rules::

        CheXpert-v1.0-small/                       or CheXpert-v1.0
          train.csv  valid.csv                     and test.csv or test_labels.csv where you have it
          train/patient00001/study1/view1_frontal.jpg
          valid/patient64541/study1/view1_frontal.jpg

    The parts of the full-size download serve too, `CheXpert-v1.0 batch 1 (validate & csv)/` with the tables and
    `CheXpert-v1.0 batch 2 (train 1)/patient00001/...`: beside each other, each in a folder of its own, or all in one.
    The official test comes as `chexlocalize/CheXpert/test_labels.csv`, its films in `test/` beside it, within
    this folder or beside it.

    A cell is 1 (there), 0 (said to be absent), -1 (uncertain) or empty (not mentioned). Labels with 1 go into
    `findings`, with -1 into `uncertain`, with 0 into `negative`; the others are unknown. "No Finding" makes a film
    NORM; a finding other than "Support Devices" makes it NTB; of the rest (nothing but devices, or nothing certain) the
    label stays empty.

    Lateral films are left out, unless `--all-views`. Splits: the official train, valid (200 studies read by three
    radiologists) as `val`, and test where its table is there. Patients are those of the paths.
    """
    pieces = {name: lambda path, name=name: file_named(path, name) is not None for name in ("train.csv", "valid.csv")}
    root = find_root(folder, pieces, chexpert)
    films, lateral = [], 0
    where = _Places(root, folder)
    for table_path in _tables(root):
        split = _SPLITS[table_path.name]
        # The table of the test that others publish has no "No Finding".
        needed = [name for name in OBSERVATIONS if not (name == "No Finding" and split == "test")]
        table = read_table(table_path, ("Path", *needed), chexpert)
        part = []
        for number, row in enumerate(row_dicts(table), 2):
            if "lateral" in (row.get("Frontal/Lateral", "") or row["Path"]).lower() and not job.all_views:
                lateral += 1
                continue
            values = {name: number_in(row, name, table_path, number) for name in OBSERVATIONS}
            part.append(_film(where.of(table_path.parent, row["Path"]), row, values, split))
        films += job.existing(part, table_path.name)
    if lateral:
        job.note(f"{lateral} lateral films are left out (--all-views takes them)")
    return films


def _tables(root: Path) -> list[Path]:
    """The tables that are there; of the official test one."""
    homes = (root, root / "chexlocalize/CheXpert", root.parent / "chexlocalize/CheXpert", root.parent / "CheXpert")
    tables = [root / "train.csv", root / "valid.csv"]
    tests = [home / name for home in homes for name in ("test.csv", "test_labels.csv") if (home / name).is_file()]
    return tables + tests[:1]


def _film(path: Path, row: dict[str, str], values: dict[str, float], split: str) -> ManifestRow:
    by_value = {wanted: [name for name, value in values.items() if value == wanted] for wanted in (1.0, 0.0, -1.0)}
    positive = by_value[1.0]
    if "No Finding" in positive:
        label = "NORM"
    else:
        label = "NTB" if set(positive) - {"Support Devices"} else ""
    return ManifestRow(
        path,
        patient=f"chexpert-{_patient(row['Path'])}",
        label=label,
        source="chexpert",
        split=split,
        findings=positive,
        extra={
            "uncertain": joined(by_value[-1.0]),
            "negative": joined(by_value[0.0]),
            "age": age_of(row.get("Age", "")),
            "sex": sex_of(row.get("Sex", "")),
            "view": row.get("AP/PA", "") or row.get("Frontal/Lateral", ""),
        },
    )


def _patient(listed: str) -> str:
    return next((part for part in Path(listed).parts if re.fullmatch(r"patient\d+", part)), Path(listed).stem)


class _Places:
    """Where films lie that a table names from the folder above the data set, whatever that was renamed to."""

    def __init__(self, root: Path, given: Path) -> None:
        self._homes = (given, root.parent if "batch" in root.name else root)
        self._patients: dict[str, Path] | None = None

    def of(self, home: Path, listed: str) -> Path:
        parts = Path(listed).parts
        below = Path(*parts[1:]) if parts[0].lower().startswith("chexpert") else Path(listed)
        path = home / below
        if below.parts[0] != "train" or (home / "train").is_dir():
            return path
        # Full size: the patients of train lie in batches 2 to 4, in no folder `train`.
        if self._patients is None:
            self._patients = {}
            for start in self._homes:
                self._look(start, _BELOW, self._patients)
        found = self._patients.get(_patient(listed))
        return found.joinpath(*below.parts[2:]) if found is not None else path

    def _look(self, folder: Path, depth: int, patients: dict[str, Path]) -> None:
        """Note the patients' folders below, those of the other splits left out."""
        for below in folders_in(folder):
            if re.fullmatch(r"patient\d+", below.name):
                patients.setdefault(below.name, below)
            elif depth > 0 and below.name not in ("valid", "test"):
                self._look(below, depth - 1, patients)
