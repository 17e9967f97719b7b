"""VinDr-CXR.

Tree and columns: the set's page, physionet.org/content/vindr-cxr/1.0.0. Nguyen HQ et al. VinDr-CXR: an open dataset of
chest X-rays with radiologist's annotations. Sci Data 2022;9:429.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.layouts.base import (
    PICTURES,
    Job,
    ManifestRow,
    carve_val,
    files_below,
    find_root,
    number_in,
    read_table,
)
from cxr_pipeline.data.tables import row_dicts

_SPELT = {"Other disease": "Other diseases"}  # the test's table has one, train's the other
_SAME = 0.4  # overlap (IoU) from which boxes of two radiologists are taken to mean one lesion


def vindr(folder: Path, job: Job) -> list[ManifestRow]:
    """Two hospitals of Hanoi: frontal films, 22 local and 6 global labels by radiologists::

        vindr-cxr/1.0.0/
          train/000434271f63a053c4128a0ba6352c7f.dicom
          test/...
          annotations/annotations_train.csv         image_id,rad_id,class_name,x_min,y_min,x_max,y_max
          annotations/image_labels_train.csv        image_id,rad_id, a column per label with 0 or 1
          annotations/annotations_test.csv          without rad_id: five radiologists in consensus
          annotations/image_labels_test.csv

    Three radiologists read each film of train. A finding is there where more than half of them say so; "No finding" of
    more than half is NORM, Tuberculosis of more than half is TB, everything else NTB, also where each saw something
    else (its findings are then empty). A box is kept where more than half drew one of that finding, overlapping by 0.4
    (IoU) or more with the first: it is their mean.

    Kaggle's challenge of 2021 serves too: `train/` and `train.csv` (image_id, class_name, rad_id, x_min, ...), films as
    .dicom, or as PNG of their full size. It has the 14 local findings, without tuberculosis, and no labels of test.

    Patients are unknown, each film counts as one. Splits: the official test; `val` is carved from train.
    """
    pieces = {"annotations/image_labels_train.csv (or train.csv)": lambda path: _tables_of(path) is not None}
    root = find_root(folder, pieces, vindr)
    if _tables_of(root) == "train.csv":
        return _challenge(root, job)
    films: list[ManifestRow] = []
    for part in ("train", "test"):
        labels_path = root / "annotations" / f"image_labels_{part}.csv"
        boxes_path = root / "annotations" / f"annotations_{part}.csv"
        if not labels_path.is_file():
            job.note(f"{labels_path.name} is missing: no films of {part}")
            continue
        votes = read_table(labels_path, ("image_id", "No finding"), vindr)
        votes = votes.rename(columns=_SPELT)
        boxes = _boxes(boxes_path) if boxes_path.is_file() else {}
        if not boxes:
            job.note(f"no boxes of {part}: {boxes_path.name} {'has none' if boxes_path.is_file() else 'is missing'}")
        films += job.existing(_films(root / part, votes, boxes, part), labels_path.name)
    return carve_val(films)


def _films(
    folder: Path, votes: pd.DataFrame, boxes: dict[str, list[tuple[str, str, Box]]], split: str
) -> list[ManifestRow]:
    names = [name for name in votes.columns if name not in ("image_id", "rad_id")]
    by_film = votes[names].apply(pd.to_numeric, errors="coerce").fillna(0).groupby(votes["image_id"])
    readers = by_film.size()
    films = []
    for image, count in by_film.sum().to_dict("index").items():
        most = readers[image] // 2 + 1
        findings = [name for name in names if count[name] >= most]
        if "Tuberculosis" in findings:
            label = "TB"
        else:
            label = "NORM" if "No finding" in findings else "NTB"
        film = ManifestRow(
            folder / f"{image}.dicom",
            patient=f"vindr-{image}",
            label=label,
            source="vindr",
            split=split,
            findings=findings,
        )
        for finding in findings:
            drawn = [(reader, box) for reader, name, box in boxes.get(image, []) if name.lower() == finding.lower()]
            film.boxes += [(finding, box) for box in agreed(drawn, most)]
        films.append(film)
    return films


def agreed(drawn: list[tuple[str, Box]], least: int) -> list[Box]:
    """Boxes that at least `least` different readers drew, each the mean of theirs.

    Args:
        drawn: (reader, box), all of one finding on one film.
    """
    groups: list[list[tuple[str, Box]]] = []
    for reader, box in drawn:
        group = next((g for g in groups if g[0][1].iou(box) >= _SAME and reader not in {r for r, _ in g}), None)
        if group is None:
            groups.append([(reader, box)])
        else:
            group.append((reader, box))
    return [
        Box(*(sum(values) / len(group) for values in zip(*(box for _, box in group), strict=True)))
        for group in groups
        if len(group) >= least
    ]


def _boxes(path: Path) -> dict[str, list[tuple[str, str, Box]]]:
    """(reader, finding, box) by film; rows of "No finding" have no box."""
    table = read_table(path, ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max"), vindr)
    boxes: dict[str, list[tuple[str, str, Box]]] = {}
    for number, row in enumerate(row_dicts(table), 2):
        corners = [number_in(row, name, path, number) for name in ("x_min", "y_min", "x_max", "y_max")]
        if not any(map(math.isnan, corners)) and corners[2] > corners[0] and corners[3] > corners[1]:
            box = Box(corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1])
            finding = _SPELT.get(row["class_name"], row["class_name"])
            boxes.setdefault(row["image_id"], []).append((row.get("rad_id", ""), finding, box))
    return boxes


def _tables_of(root: Path) -> str | None:
    """Which tables a folder has: "annotations", "train.csv" of Kaggle's challenge, or none."""
    if (root / "annotations" / "image_labels_train.csv").is_file():
        return "annotations"
    table = root / "train.csv"
    if not table.is_file():
        return None
    with table.open(encoding="utf-8", errors="replace") as file:
        header = {name.strip() for name in file.readline().split(",")}
    return "train.csv" if {"image_id", "class_name", "rad_id"} <= header else None


def _challenge(root: Path, job: Job) -> list[ManifestRow]:
    """The films of Kaggle's challenge: what most readers drew, as votes."""
    path = root / "train.csv"
    table = read_table(path, ("image_id", "class_name", "rad_id"), vindr)
    marks = table[["image_id", "rad_id", "class_name"]].drop_duplicates().assign(marked=1)
    votes = marks.pivot_table(index=["image_id", "rad_id"], columns="class_name", values="marked", fill_value=0)
    films = _films(root / "train", votes.reset_index(), _boxes(path), "train")
    where = {path.stem: path for path in files_below(root / "train", PICTURES)}
    for film in films:
        film.image = where.get(film.image.stem, film.image)
    job.note("Kaggle's challenge: no tuberculosis among its findings, and no labels of test")
    return carve_val(job.existing(films, "train.csv"))
