"""A table of one's own, or a folder of classes, into a manifest: its columns, its labels, its films."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxr_pipeline.data.boxfiles import name_of, read_boxes
from cxr_pipeline.data.classfolders import rows_of, unclear_masks
from cxr_pipeline.data.filmmasks import size_of_film
from cxr_pipeline.data.layouts.base import Job, LayoutError, ManifestRow
from cxr_pipeline.data.names import FileIndex, brief
from cxr_pipeline.data.radiograph import looks_like_image
from cxr_pipeline.data.tables import IMAGE_NAMES, Table, TableError, column_named, missing_column, read_table
from cxr_pipeline.data.walk import files_below

TAGS = ("PatientID", "StudyInstanceUID", "SOPInstanceUID")
_GUESSES = {
    "image": ("image", *IMAGE_NAMES),
    "label": ("label", "class", "diagnosis", "target", "category", "labels", "finding labels"),
    "patient": ("patient", "patient id", "subject", "subject id", "case id"),
    "split": ("split", "subset"),
    "mask": ("mask", "mask path", "lung mask"),
    "findings": ("findings",),
}


@dataclass(frozen=True)
class TableOptions:
    """What a person says of a table.

    Attributes:
        image, label, patient, split: names of columns; None takes the one that is called so, or nearly.
        films: folder that the films lie in, at any depth; None: names start from the table.
        masks: folders of masks, named as the films; two of them are the two lungs.
        classes: what labels become, such as ``{"Tuberculosis": "TB"}``, without regard to case.
        join: a DICOM tag of `TAGS` that the column `image` holds in place of file names.
        boxes: a file or folder of boxes, see `data.boxfiles`.
        source: name of the source; by default the table's or folder's.
    """

    image: str | None = None
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    films: Path | None = None
    masks: Sequence[Path] = ()
    classes: Mapping[str, str] = field(default_factory=dict)
    join: str | None = None
    boxes: Path | None = None
    source: str | None = None


def own_films(given: Path, job: Job, options: TableOptions) -> list[ManifestRow]:
    """The films of a table, or of a folder with one folder per class.

    Raises:
        LayoutError: a column is missing, or no film is found.
        BoxFileError: the boxes cannot be read.
    """
    source = options.source or (given.name if given.is_dir() else given.stem)
    films = _of_folders(given, source, job) if given.is_dir() else _of_table(given, job, options, source)
    if not films:
        raise LayoutError(f"no film of {given} was found. " + "; ".join(job.notes))
    _map_labels(films, options.classes, job)
    if options.masks:
        _add_masks(films, options.masks, job)
    if options.boxes is not None:
        _add_boxes(films, options.boxes, job)
    return films


def _of_folders(root: Path, source: str, job: Job) -> list[ManifestRow]:
    films = []
    unclear: list[str] = []
    rows = rows_of(root, unclear=unclear)
    if unclear:
        job.note(unclear_masks(unclear))
    for row in rows:
        masks = [root / part for part in row["mask"].split("|") if part]
        films.append(
            ManifestRow(
                root / row["image"],
                patient=f"{source}-{row['image']}",
                label=row["label"],
                own=row["label"],
                source=source,
                split=row["split"],
                mask=masks[0] if masks else None,
                other_masks=masks[1:],
            )
        )
    return films


def _of_table(path: Path, job: Job, options: TableOptions, source: str) -> list[ManifestRow]:
    try:
        named = options.image or options.join
        table = read_table(path, likely=[named] if named else _GUESSES["image"])
    except TableError as error:
        raise LayoutError(f"{path}: {error}") from None
    job.notes.extend(table.faults[:3])
    columns = {name: _column(table, name, getattr(options, name, None)) for name in _GUESSES}
    if options.join and options.image is None:
        columns["image"] = column_named(options.join, table.columns) or columns["image"]
    key = columns["image"]
    if key is None:
        raise LayoutError(
            f"{path}: {missing_column(options.join or 'image', table.columns)}. Name it with --image COLUMN"
        )
    if columns["label"] is None:
        job.note(
            f"no column of labels was found among {brief(', '.join(table.columns), 200)}: name it with --label COLUMN"
        )
    finder = _by_tag(options, path.parent) if options.join else _Finder(options.films or path.parent)
    used = {name for name in columns.values() if name is not None}
    films: list[ManifestRow] = []
    absent: list[str] = []
    for row in table.rows:
        found = (finder.get(row[key]) if row[key] else None) or []
        if not found:
            absent.append(row[key])
        cells = {name: row[column] if column else "" for name, column in columns.items()}
        for image in found:
            mask = _Finder(path.parent).get(cells["mask"]) if cells["mask"] else []
            films.append(
                ManifestRow(
                    image,
                    patient=f"{source}-{cells['patient'] or row[key]}",
                    label=cells["label"],
                    own=cells["label"],
                    source=source,
                    split=cells["split"],
                    findings=[part.strip() for part in cells["findings"].split("|") if part.strip()],
                    mask=mask[0] if mask else None,
                    extra={name: text for name, text in row.items() if name not in used and _safe(name)},
                )
            )
    if absent:
        place = options.films or path.parent
        job.note(f"{len(absent)} of {len(table.rows)} rows have no film in {place}: {brief(absent[0])}, ...")
    return _once(films, job)


def _safe(name: str) -> bool:
    """Whether a further column of a table may keep its name: those of a manifest mean something else."""
    from cxr_pipeline.data.manifest import COLUMNS, MASK_COLUMNS

    return name not in (*COLUMNS, *MASK_COLUMNS, "negative", "uncertain")


def _column(table: Table, name: str, wanted: str | None) -> str | None:
    if wanted is not None:
        found = column_named(wanted, table.columns)
        if found is None:
            raise LayoutError(f"--{name} {wanted}: {missing_column(wanted, table.columns)}")
        return found
    return next((found for guess in _GUESSES[name] if (found := column_named(guess, table.columns))), None)


def _once(films: list[ManifestRow], job: Job) -> list[ManifestRow]:
    """The films, each file once: of several rows for one the first counts."""
    first: dict[Path, ManifestRow] = {}
    differing = 0
    for film in films:
        before = first.setdefault(film.image, film)
        differing += before is not film and before.label != film.label
    if len(first) < len(films):
        text = f"{len(films) - len(first)} rows name a film again; the first row counts"
        job.note(text + (f", although {differing} have another label" if differing else ""))
    return list(first.values())


class _Finder:
    """Films below a folder by what a table calls them: a path, a file name, or a name without its ending."""

    def __init__(self, root: Path) -> None:
        self._root, self._index = root, FileIndex(root)
        self._names: dict[str, list[Path]] | None = None

    def get(self, name: str) -> list[Path]:
        found, problem = self._index.find(name)
        if not problem:
            return [self._root / found]
        if self._names is None:
            self._names = defaultdict(list)
            for path in files_below(self._root):
                for key in {path.name.casefold(), path.stem.casefold()}:
                    self._names[key].append(path)
        last = Path(name.replace("\\", "/")).name.casefold()
        paths = [path for path in self._names.get(last, []) if looks_like_image(path)]
        return paths if len(paths) == 1 else []


def _by_tag(options: TableOptions, beside: Path) -> Mapping[str, list[Path]]:
    """Films by the value of a DICOM tag; others than DICOM are not looked at."""
    import pydicom

    from cxr_pipeline.data.progress import track

    if options.join not in TAGS:
        raise LayoutError(f"--join is one of {', '.join(TAGS)}. Received: {options.join!r}")
    found: dict[str, list[Path]] = defaultdict(list)
    paths = [path for path in files_below(options.films or beside) if looks_like_image(path)]
    for path in track(paths, "headers", len(paths)):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[options.join])
            value = str(header.get(options.join, "")).strip()
        except Exception:  # pydicom raises whatever it likes on what is no DICOM
            continue
        if value:
            found[value].append(path)
    if not found:
        raise LayoutError(
            f"no DICOM file with {options.join} in {options.films or beside}. Give the folder with --films"
        )
    return found


def _map_labels(films: list[ManifestRow], classes: Mapping[str, str], job: Job) -> None:
    """Labels become classes as told; what was not named stays, and is named."""
    wanted = {name.casefold(): label for name, label in classes.items()}
    left: Counter[str] = Counter()
    for film in films:
        own = film.label
        if own.casefold() in wanted:
            film.label = wanted[own.casefold()]
            if not film.findings and own and film.label != "NORM":
                film.findings = [own]
        elif classes and own:
            left[own] += 1
    unused = set(wanted) - {film.own.casefold() for film in films}
    if unused:
        job.note(f"no film has the label {', '.join(map(brief, sorted(unused)))}, which --map names")
    if left:
        some = ", ".join(f"{brief(name, 40)} ({n})" for name, n in left.most_common(8))
        job.note(f"labels that --map does not name stay as they are: {some}")


def _add_masks(films: list[ManifestRow], folders: Sequence[Path], job: Job) -> None:
    unclear: list[str] = []
    by_folder = [_masks_in(folder, films, unclear) for folder in folders]
    without = 0
    for film in films:
        parts = [found[film.image] for found in by_folder if film.image in found]
        if len(parts) == len(folders):
            film.mask, film.other_masks = parts[0], parts[1:]
        without += film.mask is None
    if unclear:
        job.note(unclear_masks(sorted(set(unclear))))
    if without:
        job.note(f"{without} of {len(films)} films have no mask in {', '.join(map(str, folders))}")


def _masks_in(folder: Path, films: Sequence[ManifestRow], unclear: list[str]) -> dict[Path, Path]:
    """The mask of each film in a folder, by name; `unclear` takes those that may be of several films."""
    masks = _mask_names(folder)
    alike: dict[str, list[Path]] = defaultdict(list)
    for film in films:
        alike[film.image.stem.casefold()].append(film.image)
    chosen: dict[Path, Path] = {}
    for stem, images in alike.items():
        found = masks.get(stem, [])
        if len(images) == len(found) == 1:
            chosen[images[0]] = found[0]
            continue
        # Of several, those in folders of the same name belong together: TB/1.png and masks/TB/1.png.
        for mask in found:
            same = [image for image in images if _folder_name(image) == _folder_name(mask)]
            rivals = [other for other in found if _folder_name(other) == _folder_name(mask)]
            if len(same) == len(rivals) == 1 and mask.parent != folder:
                chosen[same[0]] = mask
            elif images:
                unclear.append(str(mask))
    return chosen


def _folder_name(path: Path) -> str:
    return path.parent.name.casefold()


def _mask_names(folder: Path) -> dict[str, list[Path]]:
    """Masks in a folder by the name of their film: those of just that name, else those with an ending such as _mask."""
    exact: dict[str, list[Path]] = defaultdict(list)
    ended: dict[str, list[Path]] = defaultdict(list)
    for path in files_below(folder):
        if not looks_like_image(path):
            continue
        stem = path.stem.casefold()
        exact[stem].append(path)
        for ending in ("_mask", "-mask", "_seg", "_lung", "_lungs"):
            if stem.endswith(ending):
                ended[stem.removesuffix(ending)].append(path)
    return {**ended, **exact}


def _add_boxes(films: list[ManifestRow], path: Path, job: Job) -> None:
    by_name = {name_of(film.image.name): film for film in films}

    def size_of(name: str) -> tuple[int, int] | None:
        film = by_name.get(name.casefold())
        return size_of_film(film.image) if film is not None else None

    boxes = read_boxes(path, size_of, by_name)
    strangers = [name for name in boxes if name not in by_name]
    for name, found in boxes.items():
        if name in by_name:
            by_name[name].boxes = list(found)
    if strangers:
        job.note(
            f"boxes of {len(strangers)} films that the table does not hold are left out: {brief(strangers[0])}, ..."
        )
    if not any(film.boxes for film in films):
        raise LayoutError(f"no box of {path} is of a film of the table: do the names match? {os.path.basename(path)}")
