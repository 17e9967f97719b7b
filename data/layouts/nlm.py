"""Montgomery and Shenzhen: the two tuberculosis sets of the U.S. National Library of Medicine.

Trees and readings: the read-me files that ship with the sets (NLM-MontgomeryCXRSet-ReadMe.pdf,
NLM-ChinaCXRSet-ReadMe.docx); Jaeger S, Candemir S, Antani S, Wang YX, Lu PX, Thoma G. Two public chest X-ray datasets
for computer-aided screening of pulmonary diseases. Quant Imaging Med Surg 2014;4(6):475-477.
"""

from __future__ import annotations

import re
from pathlib import Path

from cxr_pipeline.data.layouts.base import Film, Job, age_of, files_below, find_root, sex_of
from cxr_pipeline.data.progress import track


def montgomery(folder: Path, job: Job) -> list[Film]:
    """Montgomery County, Maryland: tuberculosis screening; 4020x4892 px, 12 bits, some turned to landscape::

        MontgomerySet/
          CXR_png/MCUCXR_0001_0.png              _0 normal, _1 tuberculosis
          ManualMask/leftMask/MCUCXR_0001_0.png
          ManualMask/rightMask/MCUCXR_0001_0.png
          ClinicalReadings/MCUCXR_0001_0.txt     Patient's Sex: F / Patient's Age: 027Y / normal

    The masks of the two lungs are joined into one each, written into `masks/montgomery/` beside the manifest; where
    `masks/MCUCXR_0001_0.png` holds both lungs already, as in the set of Kaggle that joins both sets, that one is taken.

    A patient has one film. Licence: public, U.S. National Library of Medicine; not to be passed on. Leakage: the films
    are in TBX11K (imgs/extra) and in the TB Chest Radiography Database.
    """
    root = find_root(folder, lambda path: any((path / "CXR_png").glob("MCUCXR_*.png")), montgomery)
    films = _films(root, "MCUCXR", "montgomery")
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


def shenzhen(folder: Path, job: Job) -> list[Film]:
    """Shenzhen No. 3 People's Hospital, Guangdong: a month of its outpatients in 2012; about 3000x3000 px, 8 bits::

        ChinaSet_AllFiles/
          CXR_png/CHNCXR_0001_0.png              _0 normal, _1 tuberculosis
          ClinicalReadings/CHNCXR_0001_0.txt     male 45yrs / normal
          mask/CHNCXR_0001_0_mask.png            by Stirenko et al., a download of its own (shcxr-lung-mask), in any
                                                 folder here, or in mask, masks or shcxr-lung-mask beside this one

    A patient has one film. Licence: public, U.S. National Library of Medicine; not to be passed on. Masks: Stirenko S
    et al. Chest X-ray analysis of tuberculosis by deep learning with segmentation and augmentation. IEEE ELNANO 2018,
    arXiv:1803.01199; 566 films have one. Leakage: the films are in TBX11K (imgs/extra) and in the TB Chest Radiography
    Database.
    """
    root = find_root(folder, lambda path: any((path / "CXR_png").glob("CHNCXR_*.png")), shenzhen)
    films = _films(root, "CHNCXR", "shenzhen")
    places = [root, *(root.parent / name for name in ("mask", "masks", "shcxr-lung-mask"))]
    masks: dict[str, Path] = {}
    for path in (path for place in places for path in files_below(place, ("_mask.png",))):
        masks.setdefault(path.name.lower(), path)
    for film in films:
        film.mask = masks.get(f"{film.image.stem}_mask.png".lower())
    _note_masks(films, job, "mask/CHNCXR_0001_0_mask.png (Stirenko et al.)")
    return films


def film_of(image: Path, source: str) -> Film | None:
    """The film of a file named as these sets name theirs, None where it is not; TBX11K holds copies."""
    match = re.fullmatch(r"(?:MCUCXR|CHNCXR)_(\d+)_([01])", image.stem)
    if match is None:
        return None
    sick = match[2] == "1"
    return Film(
        image,
        patient=f"{source}-{match[1]}",
        label="TB" if sick else "NORM",
        own="Tuberculosis" if sick else "Normal",
        source=source,
        findings=["Tuberculosis"] if sick else [],
    )


def _films(root: Path, prefix: str, source: str) -> list[Film]:
    found = (film_of(image, source) for image in sorted((root / "CXR_png").glob(f"{prefix}_*.png")))
    films = [film for film in found if film is not None]
    for film in films:
        film.more = _reading(root / "ClinicalReadings" / f"{film.image.stem}.txt")
    return films


def _reading(path: Path) -> dict[str, str]:
    """Sex, age and what the radiologist wrote; Shenzhen has the first two in one line, Montgomery in two."""
    if not path.is_file():
        return {"age": "", "sex": "", "reading": ""}
    lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    about = [line for line in lines if re.match(r"patient's|femal|male", line, re.IGNORECASE)]
    said = " ".join(about)
    reading = " ".join(line for line in lines if line and line not in about)
    return {"age": age_of(said), "sex": sex_of(said), "reading": reading}


def _note_masks(films: list[Film], job: Job, where: str) -> None:
    without = sum(film.mask is None for film in films)
    if without:
        job.note(f"{without} of {len(films)} films have no lung mask (looked for {where})")
