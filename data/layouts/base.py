"""What all importers share: a film's row, errors that show the expected tree, tables, masks joined from two."""

from __future__ import annotations

import hashlib
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import write_bytes
from cxr_pipeline.data.formats import suffixes
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.names import FileIndex
from cxr_pipeline.data.radiograph import RadiographError
from cxr_pipeline.data.splits import patients_by_kind
from cxr_pipeline.data.walk import files_below as walked

PICTURES = tuple(sorted(suffixes()))  # of every format that films are read from
# Levels below the folder given that are looked at for the data set's own: tools that mirror a site keep its path.
_DEPTH = 5
_LOOKED_AT = 2000  # folders of a level: one of a hundred thousand patients is not searched through


class LayoutError(CxrError, ValueError):
    """A folder that is not the data set it was given as, or a manifest that cannot be written where it was to be."""


@dataclass
class ManifestRow:
    """A film on its way into a manifest.

    Attributes:
        image: where it lies.
        patient: with the source's name before it, so that two sets never share one by accident.
        label: TB, NTB, NORM, or "" where the data set does not say.
        own: the data set's own class, "" where it has none.
        source, split: as in a manifest; "" leaves the split to the training.
        findings: labels that are there.
        mask: of the lungs, where there is one; `other_masks` are joined to it when read.
        boxes: finding and box in the film's pixels.
        extra: columns that only this data set has, such as age in years and sex (F or M).
    """

    image: Path
    patient: str
    label: str = ""
    own: str = ""
    source: str = ""
    split: str = ""
    findings: list[str] = field(default_factory=list)
    mask: Path | None = None
    other_masks: list[Path] = field(default_factory=list)
    boxes: list[tuple[str, Box]] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """What an importer may ask and say.

    Attributes:
        beside: folder of the manifest; files that must be made (joined masks, converted films) go below it.
        all_views: lateral films too.
        extra: copies of other data sets too.
        notes: what the user should know of this import, in the order in which it was found out.
    """

    beside: Path
    all_views: bool = False
    extra: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Tell the user something of this import."""
        self.notes.append(text)

    def existing(self, films: Iterable[ManifestRow], table: str) -> list[ManifestRow]:
        """The films whose files exist, be it with an ending in another case; says how many of `table` do not."""
        films = list(films)
        folders: dict[Path, FileIndex] = {}
        for film in films:
            if not os.path.isfile(film.image):
                folder = film.image.parent
                name, problem = folders.setdefault(folder, FileIndex(folder)).find(film.image.name)
                film.image = film.image if problem else folder / name
        found = [film for film in films if os.path.isfile(film.image)]
        if len(found) < len(films):
            gone = next(film.image for film in films if not os.path.isfile(film.image))
            self.note(
                f"{len(films) - len(found)} of {len(films)} films in {table} are missing and left out: {gone}, ..."
            )
        return found

    def mask_of(self, parts: Iterable[Path], name: str) -> Path | None:
        """The masks of the two lungs as one, `masks/<name>` beside the manifest; None and a note where one is bad."""
        try:
            return join_masks(parts, self.beside / "masks" / name)
        except LayoutError as error:
            self.note(f"{error}; its film has no mask")
            return None


def find_root(
    folder: Path,
    pieces: Mapping[str, Callable[[Path], bool]],
    importer: Callable[..., object],
) -> Path:
    """The data set's own folder: `folder` or the nearest one up to five levels below it.

    Args:
        folder: what the user gave.
        pieces: what must be there, by the words that name it; all of them make the folder.
        importer: whose docstring draws the tree.

    Raises:
        LayoutError: there is none; says which piece is missing, whether another folder or another data set was meant,
            shows the tree of the importer's docstring and what `folder` holds.
    """
    nearest: tuple[int, Path, list[str]] | None = None
    level = [folder]
    for depth in range(_DEPTH + 1):
        for candidate in level[:_LOOKED_AT]:
            missing = [words for words, is_there in pieces.items() if not is_there(candidate)]
            if not missing:
                return candidate
            if len(missing) < len(pieces) and (nearest is None or len(missing) < nearest[0]):
                nearest = (len(missing), candidate, missing)
        if depth < _DEPTH:
            level = [below for parent in level[:_LOOKED_AT] for below in folders_in(parent)]
    for above in list(folder.parents)[:3]:
        if all(is_there(above) for is_there in pieces.values()):
            raise wrong_folder(folder, importer, f"this is a sub-folder of it. Give its parent, {above}")
    if nearest is not None:
        raise wrong_folder(folder, importer, f"{nearest[1]} lacks {' and '.join(nearest[2])}")
    raise wrong_folder(folder, importer)


def wrong_folder(folder: Path, importer: Callable[..., object], what: str = "") -> LayoutError:
    """The error that shows what was expected and what is there."""
    from cxr_pipeline.data.layouts import LAYOUTS
    from cxr_pipeline.data.layouts.signs import archives_in, recognised

    name = importer.__name__
    hints = [what] if what else []
    others = [other for other in recognised(folder, LAYOUTS) if other != name]
    if others and not what.startswith("this is a sub-folder"):
        hints.append(f"this looks like {' or '.join(others)}: pipeline data import {others[0]}")
    packed = archives_in(folder)
    if packed and not others:
        hints.append(f"unpack the archive first: {', '.join(packed[:3])}")
    return LayoutError(
        f"{folder} does not hold {name} as it is downloaded{''.join(f': {hint}' for hint in hints)}. Expected, there "
        f"or in a folder below:\n{tree_of(importer)}\nFound: {_shown(folder)}. Give the folder that the download was "
        "unpacked into"
    )


def folder_named(root: Path, *names: str) -> Path | None:
    """The folder in `root` with one of the names, without regard to case, blanks, dashes and underscores."""
    wanted = [_squeezed(name) for name in names]
    found = {_squeezed(path.name): path for path in reversed(folders_in(root))}
    return next((found[name] for name in wanted if name in found), None)


def _squeezed(name: str) -> str:
    return re.sub(r"[ _-]", "", name).casefold()


def file_named(root: Path, *names: str) -> Path | None:
    """The file in `root` with one of the names, without regard to case."""
    found = {name.casefold(): name for name in reversed(_files_in(root))}
    return next((root / found[name.casefold()] for name in names if name.casefold() in found), None)


def _shown(folder: Path) -> str:
    """What a folder holds, in one line; what is in its first three folders too, where one of those may be the set."""
    found = sorted(os.listdir(folder)) if folder.is_dir() else []
    listed = [(f"{name}/" if (folder / name).is_dir() else name) for name in found if not name.startswith(".")]
    lines = [_some(listed)]
    for below in folders_in(folder)[:3]:
        while len(inner := folders_in(below)) == 1 and not _files_in(below):
            below = inner[0]
        lines.append(f"in {below.relative_to(folder).as_posix()}/: {_some(_names_in(below))}")
    return "; ".join(lines)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "nothing") + more


def _names_in(folder: Path) -> list[str]:
    return [f"{below.name}/" for below in folders_in(folder)] + _files_in(folder)


def _files_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
    except OSError:
        return []


def tree_of(importer: Callable[..., object]) -> str:
    """The tree that an importer's docstring draws: its indented block after `::`."""
    _, _, block = (importer.__doc__ or "").partition("::\n\n")
    tree = textwrap.dedent(block.partition("\n\n")[0])
    return textwrap.indent(tree or f"see docs/data.md, {importer.__name__}", "  ")


def folders_in(folder: Path) -> list[Path]:
    """Folders in a folder, by name; hidden ones and those of macOS archives left out, none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
    except OSError:
        return []
    return [folder / name for name in names]


def files_below(root: Path, suffixes: tuple[str, ...] = PICTURES) -> Iterator[Path]:
    """Files with one of the suffixes, see `data.walk`: linked folders are followed."""
    return walked(root, suffixes)


def read_table(path: Path, columns: Iterable[str], importer: Callable[..., object]) -> pd.DataFrame:
    """A CSV as text, empty where a cell is; header cells stripped.

    Raises:
        LayoutError: it is no table, or lacks one of `columns`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.ParserWarning)  # rows of ChestX-ray14 end in a comma
            table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding_errors="replace")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise LayoutError(f"{path} is no table: {error}. Download it again") from None
    table.columns = [str(name).strip() for name in table.columns]
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise LayoutError(
            f"{path} has no column {', '.join(missing)}. Columns there: {', '.join(table.columns)}. "
            f"It should be the table that {importer.__name__} is downloaded with"
        )
    return table


def number_in(row: dict[str, str], column: str, path: Path, number: int) -> float:
    """The number in a cell; nan where it is empty.

    Raises:
        LayoutError: it is no number; names the table, its row (the header is row 1) and the cell.
    """
    text = str(row.get(column) or "").strip()
    try:
        return float(text or "nan")
    except ValueError:
        raise LayoutError(f"{path}, row {number}: {column} is no number: {text!r}. Download the table again") from None


def size_of(path: Path) -> tuple[int, int] | None:
    """(width, height) of a picture by its header; None where it has none that is known."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # only the header is read
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError):
        return None


def scaled_boxes(film: ManifestRow, width: float, height: float) -> None:
    """Bring a film's boxes from a picture of width x height to the film as it lies there: many keep smaller copies."""
    size = size_of(film.image) if film.boxes else None
    if size is not None and size != (width, height):
        across, down = size[0] / width, size[1] / height
        film.boxes = [
            (name, Box(box.x * across, box.y * down, box.w * across, box.h * down)) for name, box in film.boxes
        ]


def copies_as_one(films: list[ManifestRow], job: Job) -> list[ManifestRow]:
    """The films, those of equal files as one patient; of equal files in train and elsewhere, the one in train goes.

    For data sets that name no patients: a film filed twice would otherwise be learned and measured on.
    """
    by_size: dict[int, list[ManifestRow]] = {}
    for film in films:
        by_size.setdefault(os.path.getsize(film.image), []).append(film)
    by_content: dict[bytes, list[ManifestRow]] = {}
    for same in by_size.values():
        for film in same if len(same) > 1 else ():
            by_content.setdefault(hashlib.sha256(film.image.read_bytes()).digest(), []).append(film)
    copied = left = 0
    out: set[int] = set()
    for same in by_content.values():
        if len(same) == 1:
            continue
        copied += len(same)
        elsewhere = {film.split for film in same} - {"train"}
        for film in same:
            film.patient = same[0].patient
            if elsewhere - {""} and film.split == "train":
                out.add(id(film))
                left += 1
    if copied:
        job.note(f"{copied} films are byte for byte the same as another: such films count as one patient's")
    if left:
        job.note(f"{left} films of train are the same as one of another split, and left out of train")
    return [film for film in films if id(film) not in out]


def carve_val(films: list[ManifestRow], share: float = 0.15, seed: int = 1) -> list[ManifestRow]:
    """The films, with `share` of the patients of train moved to val; dealt as `data.splits.split_by_patient` does."""
    train = [film for film in films if film.split == "train"]
    moved: set[str] = set()
    for patients in patients_by_kind(((film.patient, film.source, film.label) for film in train), seed):
        moved.update(patients[: round(share * len(patients))])
    for film in train:
        if film.patient in moved:
            film.split = "val"
    return films


def join_masks(parts: Iterable[Path], out: Path) -> Path:
    """One mask, 0 and 255, of several (the two lungs) in the same size; written as PNG.

    Raises:
        LayoutError: one cannot be read, or sizes differ.
    """
    from cxr_pipeline.data.masks import read_mask

    joined: np.ndarray | None = None
    for part in parts:
        try:
            mask = read_mask(part)
        except RadiographError as error:
            raise LayoutError(f"the mask {part} cannot be read ({error.reason}). Download it again") from None
        if joined is not None and joined.shape != mask.shape:
            raise LayoutError(f"the masks of the two lungs differ in size: {part} is {mask.shape}, not {joined.shape}")
        joined = mask if joined is None else joined | mask
    if joined is None:
        raise LayoutError("there is no mask to join")
    write_png(out, joined * np.uint8(255))
    return out


def write_png(path: Path, image: np.ndarray) -> None:
    """Grey samples (H, W), uint8 or uint16."""
    write_bytes(path, cv2.imencode(".png", image)[1].tobytes())


def age_of(text: str) -> str:
    """Age in years, as text, of what data sets write: "027Y", "45yrs", "8 months", "58", "61.0"; "" where unknown."""
    match = re.search(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.lower())
    if match is None:
        return ""
    unit = match[2][:1] or "y"
    years = float(match[1]) / {"y": 1, "m": 12, "w": 52.18, "d": 365.25}.get(unit, 1)
    return f"{years:.4g}" if years <= 120 else ""  # ages of 150 to 414 years stand in the first table of ChestX-ray14


def sex_of(text: str) -> str:
    """F, M or ""."""
    match = re.search(r"\b(female?|male|f|m)(?![a-z])", text.lower())  # one reading of Shenzhen says "femal"
    return match[1][0].upper() if match else ""


def joined(findings: Iterable[str]) -> str:
    """Findings as a manifest has them."""
    return "|".join(findings)
