"""JSRT with the lung masks of SCR.

Format of `.IMG` (2048x2048 samples of 16 bits, big-endian, no header, 12 bits used, 0.175 mm a pixel) and of the
clinical tables: Shiraishi J et al. Development of a digital image database for chest radiographs with and without a
lung nodule. AJR 2000;174:71-74, and the database's own pages, db.jsrt.or.jp/eng.php. Samples are film densities: air,
which blackens the film, is high. Public readers turn them round (4095 or 4096 minus the sample) before they show or
train on them, and so does this one, so that bright is dense. Masks: van Ginneken B, Stegmann MB, Loog M. Segmentation
of anatomical structures in chest radiographs using supervised methods. Med Image Anal 2006;10:19-40.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.layouts.base import (
    PICTURES,
    Job,
    ManifestRow,
    age_of,
    files_below,
    read_table,
    scaled_boxes,
    sex_of,
    write_png,
    wrong_folder,
)
from cxr_pipeline.data.progress import track
from cxr_pipeline.data.tables import row_dicts

SIDE = 2048  # pixels
MILLIMETRES = 0.175  # a pixel
_NAME = re.compile(r"(JPC[LN]N\d{3})", re.IGNORECASE)
# Folders of pictures that are no films, by their whole name: SCR's masks and landmarks, and films with the bones taken
# out. Other names with such words in them count where films lie elsewhere too.
_NO_FILMS = re.compile(
    r"masks?|(left|right)[ _]lung|heart|(left|right)[ _]clavicle|landmarks?|points|bse.*|.*[ _-]bse|.*suppress.*",
    re.IGNORECASE,
)
_MASKS = re.compile(r"(lung[ _])?masks?", re.IGNORECASE)
_ORGANS = re.compile(r"heart|clavicle|landmark|points")
_HARDLY_FILMS = re.compile(r"mask|lungs?$|heart|clavicle|landmark|points", re.IGNORECASE)


def jsrt(folder: Path, job: Job) -> list[ManifestRow]:
    """Films with one lung nodule each (JPCLN, NTB) and without (JPCNN, NORM)::

        JSRT/                                       any depth; only file names count
          All247images/JPCLN001.IMG                 or .png .jpg .tif, taken where there
          CLNDAT_EN.txt  CNNDAT_EN.TXT              Clinical_Information.zip: age, sex, place of the nodule
          scratch/fold1/masks/left lung/JPCLN001.gif
          scratch/fold1/masks/right lung/JPCLN001.gif
          scratch/fold2/masks/...

    A film in `.IMG` alone is converted into `images/jsrt/` beside the manifest, as 16-bit PNG of its 12 bits, turned
    round so that bright is dense. PNG that others converted is taken as it is: look at one, the lungs should be dark.
    The masks of the two lungs are joined into `masks/jsrt/`; they have 1024 px a side, and readers scale them up. The
    box of a nodule is its centre and diameter from CLNDAT_EN.txt.

    The form of Kaggle serves too: `images/`, `masks/` with one mask of both lungs, and `jsrt_metadata.csv` (study_id,
    size, age, gender, x, y) in place of the clinical tables.

    A patient has one film. Column `fold`: SCR's, 1 or 2, for its two-fold comparison.
    """
    images, masks = _found(folder)
    if not images:
        raise wrong_folder(folder, jsrt, "no file is named JPCLN001 to JPCLN154 or JPCNN001 to JPCNN093")
    about = _clinical(folder)
    films = []
    twice = sum(len(paths) > 1 for paths in images.values())
    if twice:
        job.note(
            f"{twice} films lie there several times; the first was taken, such as {next(iter(images.values()))[0]}"
        )
    converted = 0
    for name, paths in track(sorted(images.items()), "films", len(images)):
        path = paths[0]
        if path.suffix.lower() == ".img":
            pixels = read_img(path)
            if pixels is None:
                job.note(f"{path} has not {2 * SIDE * SIDE} bytes and is left out. Download it again")
                continue
            path = job.beside / "images" / "jsrt" / f"{name}.png"
            write_png(path, pixels)
            converted += 1
        nodule = name.startswith("JPCLN")
        age, sex, box = about.get(name, ("", "", None))
        film = ManifestRow(
            path,
            patient=f"jsrt-{name}",
            label="NTB" if nodule else "NORM",
            own="Nodule" if nodule else "Non-nodule",
            source="jsrt",
            findings=["Nodule"] if nodule else [],
            boxes=[("Nodule", box)] if box else [],
            extra={"age": age, "sex": sex, "fold": ""},
        )
        scaled_boxes(film, SIDE, SIDE)
        lungs = masks.get(name, {})
        if {"left lung", "right lung"} <= set(lungs):
            film.mask = job.mask_of(lungs.values(), f"jsrt/{name}.png")
            fold = re.search(r"fold(\d)", str(lungs["left lung"].relative_to(folder)))
            film.extra["fold"] = fold[1] if fold else ""
        elif "both" in lungs:
            film.mask = lungs["both"]
        films.append(film)
    if not about:
        job.note("no boxes, ages and sexes: CLNDAT_EN.txt and CNNDAT_EN.TXT (Clinical_Information.zip) are not there")
    if converted:
        job.note(f"{converted} .IMG files were converted to 16-bit PNG in {job.beside / 'images' / 'jsrt'}")
    without = sum(film.mask is None for film in films)
    pairs = sum({"left lung", "right lung"} <= set(masks.get(name, {})) for name in images)
    if pairs:
        job.note(f"{pairs} pairs of lung masks were joined into {job.beside / 'masks' / 'jsrt'}")
    if without:
        job.note(
            f"{without} of {len(films)} films have no lung mask (looked for SCR's masks/left lung, masks/right lung)"
        )
    return films


def read_img(path: Path) -> np.ndarray | None:
    """A `.IMG` film as (2048, 2048) uint16, 0 to 4095, bright = dense; None where it has another size."""
    stored = np.fromfile(path, ">u2")
    if stored.size != SIDE * SIDE:
        return None
    return (4095 - np.minimum(stored, 4095)).astype(np.uint16).reshape(SIDE, SIDE)


def _found(root: Path) -> tuple[dict[str, list[Path]], dict[str, dict[str, Path]]]:
    """Films by name, pictures before `.IMG`; and masks by name and "left lung" or "right lung"."""
    images: dict[str, list[Path]] = {}
    doubtful: dict[str, list[Path]] = {}
    masks: dict[str, dict[str, Path]] = {}
    for path in files_below(root, (*PICTURES, ".img")):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            continue
        name = match[1].upper()
        side = path.parent.name.lower().replace("_", " ")
        if side in ("left lung", "right lung"):
            masks.setdefault(name, {})[side] = path
            continue
        folders = path.relative_to(root).parts[:-1]
        if any(map(_MASKS.fullmatch, folders)) and not _ORGANS.search(side):
            masks.setdefault(name, {})["both"] = path
            continue
        if path.suffix.lower() != ".gif" and not any(map(_NO_FILMS.fullmatch, folders)):
            found = doubtful if any(map(_HARDLY_FILMS.search, folders)) else images
            found.setdefault(name, []).append(path)
    images = images or doubtful
    for paths in images.values():
        paths.sort(key=lambda path: (path.suffix.lower() == ".img", str(path)))
        if paths[0].suffix.lower() != ".img":
            paths[:] = [path for path in paths if path.suffix.lower() != ".img"]
    return images, masks


def _clinical(root: Path) -> dict[str, tuple[str, str, Box | None]]:
    """Age, sex and the nodule's box in pixels of 2048, by name.

    Lines of CLNDAT_EN.txt: name, subtlety, diameter in mm, age, sex, x and y of the centre, then words; of
    CNNDAT_EN.TXT: name, age, sex. Blanks and tabs between them vary.
    """
    about = _metadata(root)
    for path in files_below(root, ("nndat_en.txt", "lndat_en.txt")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            cells = line.split()
            match = _NAME.match(cells[0]) if cells else None
            if match is None:
                continue
            name = match[1].upper()
            if name.startswith("JPCNN"):
                about[name] = (age_of(" ".join(cells[1:2])), sex_of(" ".join(cells[2:3])), None)
            elif len(cells) >= 7:
                box = _nodule(cells[2], cells[5], cells[6])
                about[name] = (age_of(cells[3]), sex_of(cells[4]), box)
    return about


def _nodule(size: str, x: str, y: str) -> Box | None:
    """The box of a nodule of `size` millimetres around a centre in pixels of 2048; None where a cell is no number."""
    try:
        side, across, down = float(size) / MILLIMETRES, float(x), float(y)
    except ValueError:
        return None
    box = Box(across - side / 2, down - side / 2, side, side)
    return box if side > 0 and across > 0 and down > 0 and all(map(math.isfinite, box)) else None


def _metadata(root: Path) -> dict[str, tuple[str, str, Box | None]]:
    """Age, sex and the nodule's box by name, of the table that Kaggle's copy has."""
    about: dict[str, tuple[str, str, Box | None]] = {}
    for path in files_below(root, ("jsrt_metadata.csv",)):
        for row in row_dicts(read_table(path, ("study_id",), jsrt)):
            match = _NAME.match(row["study_id"])
            if match is not None:
                box = _nodule(row.get("size", ""), row.get("x", ""), row.get("y", ""))
                nodule = match[1].upper().startswith("JPCLN")
                sex = sex_of(row.get("gender", "") or row.get("sex", ""))
                about[match[1].upper()] = (age_of(row.get("age", "")), sex, box if nodule else None)
    return about
