"""CheXpert.

Tree, header and meaning of the values: the set's own page (stanfordmlgroup.github.io/competitions/chexpert). Irvin J et
al. CheXpert: a large chest radiograph dataset with uncertainty labels and expert comparison. AAAI 2019.
"""

from __future__ import annotations

from pathlib import Path

from data.layouts.base import Film, Job, age_of, find_root, joined, read_table, sex_of

OBSERVATIONS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
_SPLITS = {"train.csv": "train", "valid.csv": "val", "test.csv": "test"}


def chexpert(folder: Path, job: Job) -> list[Film]:
    """Stanford Hospital, 2002 to 2017: 14 observations mined from reports by rules::

        CheXpert-v1.0-small/                       or CheXpert-v1.0
          train.csv  valid.csv                     and test.csv where you have it
          train/patient00001/study1/view1_frontal.jpg
          valid/patient64541/study1/view1_frontal.jpg

    The parts of the full-size download serve too, beside each other: `CheXpert-v1.0 batch 1 (validate & csv)/` with
    the tables, `CheXpert-v1.0 batch 2 (train 1)/patient00001/...`.

    A cell is 1 (there), 0 (said to be absent), -1 (uncertain) or empty (not mentioned). Labels with 1 go into
    `findings`, with -1 into `uncertain`, with 0 into `negative`; the others are unknown. "No Finding" makes a film
    NORM; a finding other than "Support Devices" makes it NTB; of the rest (nothing but devices, or nothing certain) the
    label stays empty.

    Lateral films are left out, unless `--all-views`. Splits: the official train, valid (200 studies read by three
    radiologists) as `val`, and test where its table is there. Licence: Stanford's research use agreement. Leakage: none
    known.
    """
    root = find_root(folder, lambda path: (path / "train.csv").is_file() and (path / "valid.csv").is_file(), chexpert)
    films, lateral = [], 0
    for table_name, split in _SPLITS.items():
        if not (root / table_name).is_file():
            continue
        table = read_table(root / table_name, ("Path", *OBSERVATIONS), chexpert)
        part = []
        for row in table.to_dict("records"):
            if "lateral" in (row.get("Frontal/Lateral", "") or row["Path"]).lower() and not job.all_views:
                lateral += 1
                continue
            part.append(_film(root, row, split))
        films += job.there(part, table_name)
    if lateral:
        job.note(f"{lateral} lateral films are left out (--all-views takes them)")
    return films


def _film(root: Path, row: dict[str, str], split: str) -> Film:
    by_value: dict[float, list[str]] = {1.0: [], 0.0: [], -1.0: []}
    for name in OBSERVATIONS:
        if row[name].strip():
            by_value[float(row[name])].append(name)
    positive = by_value[1.0]
    if "No Finding" in positive:
        label = "NORM"
    else:
        label = "NTB" if set(positive) - {"Support Devices"} else ""
    path = _path(root, row["Path"])
    return Film(
        path,
        patient=f"chexpert-{next((part for part in path.parts if part.startswith('patient')), path.stem)}",
        label=label,
        source="chexpert",
        split=split,
        findings=positive,
        more={
            "uncertain": joined(by_value[-1.0]),
            "negative": joined(by_value[0.0]),
            "age": age_of(row.get("Age", "")),
            "sex": sex_of(row.get("Sex", "")),
            "view": row.get("AP/PA", "") or row.get("Frontal/Lateral", ""),
        },
    )


def _path(root: Path, listed: str) -> Path:
    """Where a film lies: tables name it from the folder above the data set, whatever that was renamed to."""
    parts = Path(listed).parts
    below = Path(*parts[1:]) if parts[0].lower().startswith("chexpert") else Path(listed)
    if "batch" not in root.name:
        return root / below
    # Full size: the tables lie in batch 1 with valid/, the patients of train in batches 2 to 4, in no folder `train`.
    if below.parts[0] != "train":
        return root / below
    patient = int("".join(c for c in below.parts[1] if c.isdigit()) or 0)
    for batch in sorted(root.parent.glob("CheXpert-v1.0 batch *(train *)")):
        if (batch / f"patient{patient:05d}").is_dir():
            return batch.joinpath(*below.parts[1:])
    return root / below
