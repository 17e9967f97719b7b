"""TBX11K: tuberculosis with boxes, and copies of four older sets.

Tree and file names: the set's own page (mmcheng.net/tb) and repository (github.com/yun-liu/Tuberculosis). Liu Y, Wu YH,
Ban Y, Wang H, Cheng MM. Rethinking computer-aided tuberculosis diagnosis. CVPR 2020; Liu Y et al. Revisiting
computer-aided tuberculosis diagnosis. IEEE TPAMI 2023.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.layouts.base import (
    Job,
    LayoutError,
    ManifestRow,
    copies_as_one,
    files_below,
    find_root,
    folders_in,
    read_table,
    scaled_boxes,
)
from cxr_pipeline.data.layouts.nlm import film_of
from cxr_pipeline.data.tables import row_dicts

_LABELS = {"health": "NORM", "sick": "NTB", "tb": "TB"}


def tbx11k(folder: Path, job: Job) -> list[ManifestRow]:
    """Healthy (NORM), sick without tuberculosis (NTB) and tuberculosis (TB); all 512x512 px, about 3000 px once::

        TBX11K/
          imgs/health/h0001.png  imgs/sick/s0001.png  imgs/tb/tb0003.png
          imgs/test/                               no labels: left out
          imgs/extra/da+db/{train,val}/            n, nx normal; p, px tuberculosis: nx and px are DA's
          imgs/extra/mc+shenzhen/{train,val}/      MCUCXR_0001_0.png, CHNCXR_0001_0.png: copies
          lists/TBX11K_train.txt  TBX11K_val.txt   and all_*.txt, with those of extra
          annotations/json/TBX11K_trainval.json    COCO, boxes in pixels of the 512 px films

    The boxes of `annotations/xml` are the same in pixels of the films before they were made smaller, and are not read.
    Findings are the kinds of box: ActiveTuberculosis, ObsoletePulmonaryTuberculosis (healed; the papers say latent) and
    PulmonaryTuberculosis (not told which).

    Splits: the official train and val; of `annotations/json` where `lists/` is missing. The labels of the official
    test are not public, so there is no split `test`.
    Patients: none are named, each film counts as one. Others report some fifty films that lie there twice, also in
    train and in val: films equal byte for byte count as one patient's, and leave train where val has them.

    Leakage: `imgs/extra` holds copies of Montgomery and Shenzhen, 512 px wide, and of DA and DB (New Delhi). It is left
    out, because whoever trains on TBX11K and measures on Montgomery would measure on films trained on. With `--extra`
    they come in with their own source (montgomery, shenzhen, da, db), the original's name in the column `leakage`, and
    the patient that the importers `montgomery` and `shenzhen` write: one manifest with both then has that patient
    twice, and `pipeline data check` and `pipeline train` refuse it where the splits differ.

    Kaggle's simplified form serves too: `images/` and `data.csv` (fname, source, bbox, target, tb_type, image_type).
    """
    simplified = next((path for path in _candidates(folder) if _is_simplified(path)), None)
    if simplified is not None:
        return _simplified(simplified, job)
    pieces = {
        "imgs/tb/": lambda path: (path / "imgs" / "tb").is_dir(),
        "lists/ (or annotations/json/)": lambda path: (path / "lists").is_dir() or (path / "annotations/json").is_dir(),
    }
    root = find_root(folder, pieces, tbx11k)
    splits = _splits(root) or _splits_of_json(root, job)
    boxes = _boxes(root)
    if not boxes:
        job.note("no boxes: annotations/json holds no JSON file")
    films, unlisted = [], 0
    for kind in ("health", "sick", "tb", *(["extra"] if job.extra else [])):
        for path in files_below(root / "imgs" / kind):
            name = _plain(path.relative_to(root / "imgs").as_posix())
            film = _copy(path) if kind == "extra" else _own(path, kind)
            if film is None:
                job.note(f"{path} is named as no film of {tbx11k.__name__} is, and is left out")
                continue
            film.split = splits.get(name, "")
            unlisted += not film.split
            for finding, box in boxes.get(name, []):
                film.boxes.append((finding, box))
                if finding not in film.findings:
                    film.findings.append(finding)
            scaled_boxes(film, 512, 512)
            films.append(film)
    listed = sum(not name.startswith(("extra/", "test/")) for name in splits)
    own = [film for film in films if film.source == "tbx11k"]
    if listed > len(own):
        job.note(f"{listed - len(own)} of {listed} films in lists/ are missing and left out")
    films = [*copies_as_one(own, job), *(film for film in films if film.source != "tbx11k")]
    if unlisted:
        job.note(f"{unlisted} films are in no list, and have no split")
    test = sum(1 for _ in files_below(root / "imgs" / "test"))
    if test:
        job.note(f"{test} films of imgs/test have no public label and are left out: there is no split test")
    extra = sum(1 for _ in files_below(root / "imgs" / "extra"))
    if extra and job.extra:
        job.note(
            f"LEAKAGE: {sum(bool(film.extra['leakage']) for film in films)} films are copies of other sets (column "
            "`leakage`). Never measure on montgomery or shenzhen what was trained on these"
        )
    elif extra:
        job.note(
            f"LEAKAGE avoided: {extra} films of imgs/extra are copies of Montgomery, Shenzhen, DA and DB, and left out "
            "(--extra takes them, marked)"
        )
    return films


def _own(path: Path, kind: str) -> ManifestRow:
    return ManifestRow(
        path,
        patient=f"tbx11k-{path.stem}",
        label=_LABELS[kind],
        own=kind,
        source="tbx11k",
        extra={"leakage": ""},
    )


def _copy(path: Path) -> ManifestRow | None:
    """The film of imgs/extra: as the original's own importer names it where there is one."""
    source = {"MCUCXR": "montgomery", "CHNCXR": "shenzhen"}.get(path.stem.split("_")[0])
    if source is not None:
        film = film_of(path, source)
    elif path.stem[:1].lower() in ("n", "p"):
        # DA's are nx and px, in JPEG; DB's n and p. Both number train and val alike.
        source = "da" if path.stem[1:2].lower() == "x" else "db"
        sick = path.stem[0].lower() == "p"
        film = ManifestRow(
            path,
            patient=f"{source}-{path.parent.name}-{path.stem}",
            label="TB" if sick else "NORM",
            own="tb" if sick else "health",
            source=source,
            findings=["Tuberculosis"] if sick else [],
        )
    else:
        return None
    if film is not None:
        film.own = "tb" if film.label == "TB" else "health"
        film.extra = {"leakage": source}
    return film


def _plain(name: str) -> str:
    """A film's path below imgs/, without regard to case."""
    return name.removeprefix("imgs/").casefold()


def _splits(root: Path) -> dict[str, str]:
    """Official split of each film, named by its path below imgs/. TBX11K_trainval.txt and the like name both."""
    splits: dict[str, str] = {}
    for split in ("train", "val"):
        for prefix in ("all", "TBX11K"):
            path = root / "lists" / f"{prefix}_{split}.txt"
            if path.is_file():
                for line in path.read_text(encoding="utf-8").splitlines():
                    name = _plain(line.strip())
                    if name:
                        splits[name] = split
    return splits


def _splits_of_json(root: Path, job: Job) -> dict[str, str]:
    """Official splits by the films that the files of boxes name, where `lists/` is missing."""
    splits: dict[str, str] = {}
    for split in ("train", "val"):
        for prefix in ("all", "TBX11K"):
            path = root / "annotations" / "json" / f"{prefix}_{split}.json"
            if path.is_file():
                try:
                    images = json.loads(path.read_text(encoding="utf-8"))["images"]
                    splits |= {_plain(str(image["file_name"])): split for image in images}
                except (ValueError, KeyError, TypeError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    raise LayoutError(f"{path} names no films ({reason}). Download it again") from None
    job.note(
        "lists/ is missing: the splits are those of annotations/json"
        if splits
        else "lists/ is missing, and annotations/json has no TBX11K_train.json and TBX11K_val.json: no splits"
    )
    return splits


def _boxes(root: Path) -> dict[str, list[tuple[str, Box]]]:
    """Boxes by the film's path below imgs/; files overlap (train, val, trainval), so each is taken once."""
    boxes: dict[str, list[tuple[str, Box]]] = {}
    for path in files_below(root / "annotations" / "json", (".json",)):  # none of the hidden files of macOS
        try:
            _boxes_in(json.loads(path.read_text(encoding="utf-8")), boxes)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise LayoutError(f"{path} is no list of boxes in COCO's format ({reason}). Download it again") from None
    return boxes


def _boxes_in(content: dict, boxes: dict[str, list[tuple[str, Box]]]) -> None:
    kinds = {kind["id"]: kind["name"] for kind in content.get("categories", [])}
    names = {image["id"]: _plain(image["file_name"]) for image in content.get("images", [])}
    for found in content.get("annotations", []):
        box = (kinds[found["category_id"]], Box(*(float(value) for value in found["bbox"])))
        known = boxes.setdefault(names[found["image_id"]], [])
        if box not in known and box[1].w > 0 and box[1].h > 0:
            known.append(box)


_BBOX = re.compile(r"'(xmin|ymin|width|height)':\s*(-?[\d.]+)")


def _candidates(folder: Path) -> list[Path]:
    return [folder, *(home for below in folders_in(folder)[:50] for home in (below, *folders_in(below)[:50]))]


def _is_simplified(path: Path) -> bool:
    table = path / "data.csv"
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        return {"fname", "image_type"} <= {name.strip() for name in file.readline().split(",")}


def _simplified(root: Path, job: Job) -> list[ManifestRow]:
    """The films of Kaggle's simplified form: one row per box, or per film without any."""
    table = read_table(root / "data.csv", ("fname", "source", "bbox", "tb_type", "image_type"), tbx11k)
    names = {"active_tb": "ActiveTuberculosis", "latent_tb": "ObsoletePulmonaryTuberculosis"}
    labels = {"healthy": "NORM", "sick_but_no_tb": "NTB", "tb": "TB"}
    own = {"healthy": "health", "sick_but_no_tb": "sick", "tb": "tb"}
    films: dict[str, ManifestRow] = {}
    for row in row_dicts(table):
        name = row["fname"]
        kind = row["image_type"].strip()
        film = films.setdefault(
            name,
            ManifestRow(
                root / "images" / name,
                patient=f"tbx11k-{Path(name).stem}",
                label=labels.get(kind, ""),
                own=own.get(kind, ""),
                source="tbx11k",
                split={"train": "train", "val": "val"}.get(row["source"].strip(), ""),
                extra={"leakage": ""},
            ),
        )
        values = {key: float(value) for key, value in _BBOX.findall(row["bbox"])}
        if len(values) == 4 and values["width"] > 0 and values["height"] > 0:
            finding = names.get(row["tb_type"].strip(), "PulmonaryTuberculosis")
            film.boxes.append((finding, Box(values["xmin"], values["ymin"], values["width"], values["height"])))
            if finding not in film.findings:
                film.findings.append(finding)
    found = job.existing(films.values(), "data.csv")
    for film in found:
        scaled_boxes(film, 512, 512)
    job.note("Kaggle's simplified form: the films without a public label (test) and those of extra are not in it")
    return copies_as_one(found, job)
