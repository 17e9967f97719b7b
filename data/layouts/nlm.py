"""Montgomery and Shenzhen: the two tuberculosis sets of the U.S. National Library of Medicine.

Trees and readings: the read-me files that ship with the sets (NLM-MontgomeryCXRSet-ReadMe.pdf,
NLM-ChinaCXRSet-ReadMe.docx); Jaeger S, Candemir S, Antani S, Wang YX, Lu PX, Thoma G. Two public chest X-ray datasets
for computer-aided screening of pulmonary diseases. Quant Imaging Med Surg 2014;4(6):475-477.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cxr_pipeline.data.layouts.base import (
    PICTURES,
    Job,
    ManifestRow,
    age_of,
    files_below,
    find_root,
    read_table,
    sex_of,
)
from cxr_pipeline.data.progress import track
from cxr_pipeline.data.tables import row_dicts


def montgomery(folder: Path, job: Job) -> list[ManifestRow]:
    """Montgomery County, Maryland: tuberculosis screening; 4020x4892 px, 12 bits, some turned to landscape::

        MontgomerySet/
          CXR_png/MCUCXR_0001_0.png              _0 normal, _1 tuberculosis
          ManualMask/leftMask/MCUCXR_0001_0.png
          ManualMask/rightMask/MCUCXR_0001_0.png
          ClinicalReadings/MCUCXR_0001_0.txt     Patient's Sex: F / Patient's Age: 027Y / normal

    The masks of the two lungs are joined into one each, written into `masks/montgomery/` beside the manifest; where
    `masks/MCUCXR_0001_0.png` holds both lungs already, as in the set of Kaggle that joins both sets, that one is taken.

    The form of Kaggle serves too: films in `images/images/`, or `images/`, and `montgomery_metadata.csv` (study_id,
    sex, age, findings) in place of the readings. A patient has one film.
    """
    root, images = _home(folder, "MCUCXR", montgomery)
    films = _films(root, images, "MCUCXR", "montgomery")
    made = 0
    for film in track(films, "masks", len(films)):
        lungs = [root / "ManualMask" / side / film.image.name for side in ("leftMask", "rightMask")]
        both = root / "masks" / film.image.name
        if all(mask.is_file() for mask in lungs):
            film.mask = job.mask_of(lungs, f"montgomery/{film.image.name}")
            made += film.mask is not None
        elif both.is_file():
            film.mask = both
    if made:
        job.note(f"{made} pairs of lung masks were joined into {job.beside / 'masks' / 'montgomery'}")
    _note_masks(films, job, "ManualMask/leftMask and rightMask")
    return films


def shenzhen(folder: Path, job: Job) -> list[ManifestRow]:
    """Shenzhen No. 3 People's Hospital, Guangdong: a month of its outpatients in 2012; about 3000x3000 px, 8 bits::

        ChinaSet_AllFiles/
          CXR_png/CHNCXR_0001_0.png              _0 normal, _1 tuberculosis
          ClinicalReadings/CHNCXR_0001_0.txt     male 45yrs / normal
          mask/CHNCXR_0001_0_mask.png            by Stirenko et al., a download of its own (shcxr-lung-mask), in any
                                                 folder here, or in mask, masks or shcxr-lung-mask beside this one

    The form of Kaggle serves too: films in `images/images/`, or `images/`, and `shenzhen_metadata.csv` (study_id, sex,
    age, findings) in place of the readings. A patient has one film; 566 films have a mask.
    """
    root, images = _home(folder, "CHNCXR", shenzhen)
    films = _films(root, images, "CHNCXR", "shenzhen")
    places = [root, *(root.parent / name for name in ("mask", "masks", "shcxr-lung-mask"))]
    masks: dict[str, Path] = {}
    for path in (path for place in places for path in files_below(place, ("_mask.png",))):
        masks.setdefault(path.name.lower(), path)
    for film in films:
        film.mask = masks.get(f"{film.image.stem}_mask.png".lower())
    _note_masks(films, job, "mask/CHNCXR_0001_0_mask.png (Stirenko et al.)")
    return films


def film_of(image: Path, source: str) -> ManifestRow | None:
    """The film of a file named as these sets name theirs, None where it is not; TBX11K holds copies."""
    match = re.fullmatch(r"(?:MCUCXR|CHNCXR)_(\d+)_([01])", image.stem)
    if match is None:
        return None
    sick = match[2] == "1"
    return ManifestRow(
        image,
        patient=f"{source}-{match[1]}",
        label="TB" if sick else "NORM",
        own="Tuberculosis" if sick else "Normal",
        source=source,
        findings=["Tuberculosis"] if sick else [],
    )


def _home(folder: Path, prefix: str, importer: Callable[..., object]) -> tuple[Path, Path]:
    """The data set's folder, and the one in it that holds the films."""

    def images_of(path: Path) -> Path | None:
        places = (path / "CXR_png", path / "images" / "images", path / "images")
        return next((place for place in places if any(place.glob(f"{prefix}_*.*"))), None)

    pieces = {f"films {prefix}_*.png in CXR_png/ or images/": lambda path: images_of(path) is not None}
    root = find_root(folder, pieces, importer)
    return root, images_of(root) or root


def _films(root: Path, images: Path, prefix: str, source: str) -> list[ManifestRow]:
    paths = sorted(path for path in images.glob(f"{prefix}_*.*") if path.suffix.lower() in PICTURES)
    films = [film for film in (film_of(path, source) for path in paths) if film is not None]
    details = _metadata(root / f"{source}_metadata.csv")
    for film in films:
        reading = root / "ClinicalReadings" / f"{film.image.stem}.txt"
        film.extra = details.get(film.image.stem, _UNKNOWN) if not reading.is_file() else _reading(reading)
        film.extra = dict(film.extra)
    return films


_UNKNOWN = {"age": "", "sex": "", "reading": ""}


def _metadata(path: Path) -> dict[str, dict[str, str]]:
    """Age, sex and reading by film, of the table that Kaggle's copies have."""
    if not path.is_file():
        return {}
    table = read_table(path, ("study_id", "findings"), _metadata)
    return {
        Path(row["study_id"]).stem: {
            "age": age_of(row.get("age", "")),
            "sex": sex_of(row.get("sex", "") or row.get("gender", "")),
            "reading": " ".join(row["findings"].split()),
        }
        for row in row_dicts(table)
    }


def _reading(path: Path) -> dict[str, str]:
    """Sex, age and what the radiologist wrote; Shenzhen has the first two in one line, Montgomery in two."""
    lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    about = [line for line in lines if re.match(r"patient's|femal|male", line, re.IGNORECASE)]
    text = " ".join(about)
    reading = " ".join(line for line in lines if line and line not in about)
    return {"age": age_of(text), "sex": sex_of(text), "reading": reading}


def _note_masks(films: list[ManifestRow], job: Job, where: str) -> None:
    without = sum(film.mask is None for film in films)
    if without:
        job.note(f"{without} of {len(films)} films have no lung mask (looked for {where})")
