"""Kermany's children and the RSNA challenge: two sets about pneumonia.

Kermany DS et al. Identifying medical diagnoses and treatable diseases by image-based deep learning. Cell
2018;172:1122-1131; data.mendeley.com/datasets/rscbjbr9sj. Shih G et al. Augmenting the National Institutes of Health
chest radiograph dataset with expert annotations of possible pneumonia. Radiology: AI 2019;1(1):e180041;
kaggle.com/c/rsna-pneumonia-detection-challenge.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.layouts.base import (
    PICTURES,
    Job,
    ManifestRow,
    carve_val,
    files_below,
    find_root,
    folder_named,
    number_in,
    read_table,
)
from cxr_pipeline.data.tables import row_dicts

_KINDS = {"bacteria": "bacterial", "virus": "viral"}


def kermany(folder: Path, job: Job) -> list[ManifestRow]:
    """Children of one to five years, Guangzhou: NORMAL (NORM) and PNEUMONIA (NTB)::

        chest_xray/
          train/NORMAL/IM-0115-0001.jpeg            and NORMAL2-IM-0383-0001.jpeg
          train/PNEUMONIA/person1_bacteria_1.jpeg   and person1000_virus_1681.jpeg
          test/...  val/...                         val has 16 films; Mendeley's download has none

    Mendeley's newest version names the same films `NORMAL-1003233-0001.jpeg`, `BACTERIA-1008087-0001.jpeg` and
    `VIRUS-1040110-0001.jpeg`: the patient, then the film's number.

    Findings: PNEUMONIA, and bacterial or viral by the file's name. For the two-class task take `--labels own`.

    Splits: the official test. The official val of 16 films is too small to choose anything by: it joins train, of which
    `val` is carved by patient. Patients are the file names' first numbers. Those of Mendeley's newest version hold
    throughout; films of train whose patient has films in test would be left out. The others start again in the official
    test, which the paper says is of other patients: a patient's name here holds the official part that numbered it,
    train (with val) or test. Bacterial and viral films of one number count as one patient's.

    Beside sets of adults, a network learns age.
    """
    pieces = {
        f"train/{name}": lambda path, name=name: _part(path, "train", name) is not None
        for name in ("PNEUMONIA", "NORMAL")
    }
    root = find_root(folder, pieces, kermany)
    films = []
    for part in ("train", "val", "test"):
        for own in ("NORMAL", "PNEUMONIA"):
            home = _part(root, part, own)
            for path in files_below(home) if home is not None else ():
                films.append(_child(path, own, "test" if part == "test" else "train"))
        if part != "val":
            for own in ("NORMAL", "PNEUMONIA"):
                if not any(film.own == own and film.split == part for film in films):
                    job.note(f"{root / part / own} holds no film: is the download whole?")
    tested = {film.patient for film in films if film.split == "test"}
    shared = [film for film in films if film.split == "train" and film.patient in tested]
    if shared:
        job.note(f"{len(shared)} films of train are of patients of test, and left out, such as {shared[0].image}")
        films = [film for film in films if film.split == "test" or film.patient not in tested]
    val = folder_named(root, "val")
    small = sum(1 for _ in files_below(val)) if val is not None else 0
    if small:
        job.note(f"the official val ({small} films) joined train; val was carved from both by patient")
    return carve_val(films)


def _part(root: Path, part: str, own: str) -> Path | None:
    """The folder of a split and class, in any case."""
    above = folder_named(root, part)
    return folder_named(above, own) if above is not None else None


def _child(path: Path, own: str, part: str) -> ManifestRow:
    numbered = re.match(r"(?:NORMAL|BACTERIA|VIRUS)-(\d+)-\d", path.stem)  # the same number throughout the data set
    if numbered:
        patient = f"kermany-{numbered[1]}"
    else:
        match = re.match(r"(?:NORMAL2-)?IM-\d+|person\d+", path.stem)
        patient = f"kermany-{part}-{match[0] if match else path.stem}"
    kind = next((kind_name for word, kind_name in _KINDS.items() if word in re.split("[_-]", path.stem.lower())), "")
    return ManifestRow(
        path,
        patient=patient,
        label="NORM" if own == "NORMAL" else "NTB",
        own=own,
        source="kermany",
        split=part,
        findings=[] if own == "NORMAL" else ["PNEUMONIA", *([kind] if kind else [])],
    )


def rsna(folder: Path, job: Job) -> list[ManifestRow]:
    """Films of ChestX-ray14 that radiologists read again for the challenge of 2018; 1024x1024 px, 8 bits::

        rsna-pneumonia-detection-challenge/
          stage_2_train_images/0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm
          stage_2_train_labels.csv                  patientId,x,y,width,height,Target: a row a box
          stage_2_detailed_class_info.csv           patientId,class
          stage_2_test_images/                      no labels: left out

    Classes: Normal (NORM), Lung Opacity (NTB, one box or more) and No Lung Opacity / Not Normal (NTB). Films that the
    table of classes does not name have no label without a box: they may be either.

    Patients: `patientId` names a film, not a person, so films of one person may end up in two splits. Splits: none.
    Films that others converted to PNG or JPEG serve too, under the same names.
    """
    labels = "stage_2_train_labels.csv"
    root = find_root(folder, {labels: lambda path: (path / labels).is_file()}, rsna)
    where = _converted(root)
    table = read_table(root / labels, ("patientId", "x", "y", "width", "height", "Target"), rsna)
    classes: dict[str, str] = {}
    if (root / "stage_2_detailed_class_info.csv").is_file():
        detailed = read_table(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), rsna)
        classes = dict(zip(detailed["patientId"], detailed["class"], strict=True))
    else:
        job.note("stage_2_detailed_class_info.csv is missing: films without an opacity have no label")
    films: dict[str, ManifestRow] = {}
    path = root / labels
    for number, row in enumerate(row_dicts(table), 2):
        name = row["patientId"]
        opaque = number_in(row, "Target", path, number) == 1
        own = classes.get(name) or ("Lung Opacity" if opaque else "")
        film = films.setdefault(
            name,
            ManifestRow(
                where.get(name, root / "stage_2_train_images" / f"{name}.dcm"),
                patient=f"rsna-{name}",
                label={"Normal": "NORM", "": ""}.get(own, "NTB"),
                own=own,
                source="rsna",
                findings=["Lung Opacity"] if opaque else [],
                extra={"leakage": "nih"},
            ),
        )
        if opaque:
            box = Box(*(number_in(row, key, path, number) for key in ("x", "y", "width", "height")))
            if not any(map(math.isnan, box)):
                film.boxes.append(("Lung Opacity", box))
    unlabelled = sum(not film.label for film in films.values())
    if classes and unlabelled:
        job.note(f"{unlabelled} films are not in stage_2_detailed_class_info.csv, and have no label")
    job.note("patientId names a film, not a person: films of one person may be in two splits. Never mix with nih")
    return job.existing(films.values(), labels)


def _converted(root: Path) -> dict[str, Path]:
    """Films by name where they lie as PNG or JPEG, in a folder of the train images or below the data set's."""
    found: dict[str, Path] = {}
    for path in files_below(root, PICTURES):
        if "test" not in path.parent.name.lower() and "mask" not in path.parent.name.lower():
            before = found.get(path.stem)
            if before is None or before.suffix.lower() != ".dcm":
                found[path.stem] = path
    return found
