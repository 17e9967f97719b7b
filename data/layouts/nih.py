"""ChestX-ray14.

Tree, table headers and lists: the set's own pages (nihcc.app.box.com/v/ChestXray-NIHCC) with its FAQ and
README_CHESTXRAY.pdf. Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: hospital-scale chest X-ray
database and benchmarks on weakly-supervised classification and localization of common thorax diseases. CVPR 2017.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.layouts.base import (
    Job,
    LayoutError,
    ManifestRow,
    age_of,
    carve_val,
    file_named,
    files_below,
    find_root,
    number_in,
    read_table,
    scaled_boxes,
    sex_of,
)
from cxr_pipeline.data.tables import row_dicts

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "sample_labels.csv")  # the last of Kaggle's sample
_SIDE = 1024  # of the films as they are distributed, which boxes refer to


def nih(folder: Path, job: Job) -> list[ManifestRow]:
    """NIH Clinical Center: frontal films, 14 findings mined from reports; 1024x1024 px, 8 bits::

        ChestX-ray14/
          Data_Entry_2017_v2020.csv                 or Data_Entry_2017.csv
          images_001/images/00000001_000.png ...    or images/00000001_000.png
          train_val_list.txt  test_list.txt         also train_val_list_NIH.txt, test_list_NIH.txt
          BBox_List_2017.csv

    "No Finding" is NORM, everything else NTB. Findings are said to be right in over 90 %; radiologists who looked at
    the films found less for some. All 14 were looked for in every report: what is not listed counts as absent.

    Splits: the official test; `val` is carved from the official train_val by patient. Smaller copies of the films
    serve too: boxes are scaled to what lies there.

    Kaggle's sample of 5,606 films serves too: `sample_labels.csv` and `images/`, without official splits. Patients are
    the table's.
    """
    pieces = {"Data_Entry_2017_v2020.csv": lambda path: file_named(path, *_TABLES) is not None}
    root = find_root(folder, pieces, nih)
    table_path = file_named(root, *_TABLES) or root / _TABLES[0]
    table = read_table(table_path, ("Image Index", "Finding Labels", "Patient ID"), nih)
    where = {path.name.casefold(): path for path in files_below(root)}
    splits = _splits(root, job)
    boxes = _boxes(root, job)
    sex = "Patient Sex" if "Patient Sex" in table.columns else "Patient Gender"  # v2020 renamed it
    films = []
    for number, row in enumerate(row_dicts(table), 2):
        name = row["Image Index"]
        person = number_in(row, "Patient ID", table_path, number)
        if math.isnan(person):
            raise LayoutError(f"{table_path}, row {number}: no Patient ID. Is the download whole?")
        findings = row["Finding Labels"].split("|")
        film = ManifestRow(
            where.get(name.casefold(), root / "images" / name),
            patient=f"nih-{int(person):08d}",
            label="NORM" if findings == ["No Finding"] else "NTB",
            source="nih",
            split=splits.get(name, ""),
            findings=findings,
            boxes=boxes.get(name, []),
            extra={
                "age": age_of(row.get("Patient Age", "")),
                "sex": sex_of(row.get(sex, "")),
                "view": row.get("View Position", ""),
            },
        )
        films.append(film)
    films = job.existing(films, table_path.name)
    unlisted = sum(not film.split for film in films) if splits else 0
    if unlisted:
        job.note(f"{unlisted} films are in neither list, and have no split: training leaves them out")
    for film in films:
        scaled_boxes(film, _SIDE, _SIDE)
    return carve_val(films)


def _splits(root: Path, job: Job) -> dict[str, str]:
    splits: dict[str, str] = {}
    for name, split in (("train_val_list", "train"), ("test_list", "test")):
        # Copies of 224 px have another name of the same lists.
        for path in (root / f"{name}.txt", root / f"{name}_NIH.txt"):
            if path.is_file():
                splits |= dict.fromkeys(path.read_text(encoding="utf-8", errors="replace").split(), split)
    if set(splits.values()) != {"train", "test"}:
        job.note("train_val_list.txt or test_list.txt is missing: no official splits, training splits by patient")
        return {}
    return splits


def _boxes(root: Path, job: Job) -> dict[str, list[tuple[str, Box]]]:
    """Boxes by file name. The header is `Image Index,Finding Label,Bbox [x,y,w,h],,,`: columns go by place."""
    path = root / "BBox_List_2017.csv"
    boxes: dict[str, list[tuple[str, Box]]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for number, cells in enumerate(csv.reader(file), 1):
                if number == 1 or not any(cells):
                    continue
                if len(cells) < 6:
                    raise LayoutError(f"{path}, row {number}: six cells are needed, not {cells}. Download it again")
                row = dict(zip("xywh", cells[2:6], strict=True))
                box = Box(*(number_in(row, name, path, number) for name in row))
                if not any(map(math.isnan, box)):
                    finding = {"Infiltrate": "Infiltration"}.get(cells[1], cells[1])  # as the other table spells it
                    boxes.setdefault(cells[0], []).append((finding, box))
    if not boxes:
        job.note(f"no boxes: BBox_List_2017.csv {'is empty' if path.is_file() else 'is missing'}")
    return boxes
