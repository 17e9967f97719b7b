"""A public data set into a manifest, with its boxes beside it."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_pipeline.data.files import write_text
from cxr_pipeline.data.layouts import importer_of, layouts
from cxr_pipeline.data.layouts.base import Job, LayoutError, ManifestRow, joined
from cxr_pipeline.data.manifest import BOX_COLUMNS, COLUMNS, Manifest, ManifestError, read_manifest

if TYPE_CHECKING:
    from cxr_pipeline.data.layouts.table import TableOptions


@dataclass(frozen=True)
class Imported:
    """What an import left: the manifest as it reads back, and what to know of it."""

    manifest: Manifest
    path: Path
    notes: list[str]


def import_dataset(
    name: str,
    folder: Path,
    out: Path,
    *,
    labels: str = "tb",
    all_views: bool = False,
    extra: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Write the manifest of a public data set; films stay where they are.

    Paths are relative to the manifest's folder where they lie below it, absolute otherwise. Boxes go into `boxes.csv`
    in that folder, of which there is one: a manifest with boxes needs a folder of its own.

    Args:
        name: of `layouts()`.
        folder: what the download was unpacked into, or the folder above.
        out: the manifest, `.csv`.
        labels: "tb" for TB, NTB and NORM; "own" for the data set's own classes.
        all_views: lateral films too.
        extra: copies of other data sets too, marked in the column `leakage`.
        overwrite: replace the manifest that is there.

    Raises:
        LayoutError: the folder holds something else, or `out` cannot be written there.
    """
    layout = layouts().get(name)
    if layout is None:
        raise LayoutError(f"there is no importer {name!r}. There are {', '.join(layouts())}")
    if labels not in ("tb", "own"):
        raise LayoutError(f"labels are 'tb' or 'own'. Received: {labels!r}")
    out = _checked_out(out, overwrite)
    job = Job(out.parent, all_views=all_views, extra=extra)
    films = importer_of(name, layout)(Path(os.path.abspath(folder)), job)
    if not films:
        raise LayoutError(f"no film of {name} was found in {folder}. " + "; ".join(job.notes))
    if labels == "own" and not any(film.own for film in films):
        raise LayoutError(f"{name} has no classes of its own: its labels are in the column findings. Use --labels tb")
    return _written(films, out, labels, job)


def import_table(given: Path, out: Path, options: TableOptions, *, overwrite: bool = False) -> Imported:
    """Write the manifest of a table or class folders of one's own; see `data.layouts.table`.

    Args:
        given: the table, or the folder with one folder per class.
        out: the manifest, `.csv`.
        options: which columns, folders and classes.
        overwrite: replace the manifest that is there.

    Raises:
        LayoutError: a column is missing, no film is found, or `out` cannot be written there.
    """
    from cxr_pipeline.data.layouts.table import own_films

    out = _checked_out(out, overwrite)
    job = Job(out.parent)
    films = own_films(Path(os.path.abspath(given)), job, options)
    return _written(films, out, "tb", job)


def _checked_out(out: Path, overwrite: bool) -> Path:
    out = Path(os.path.abspath(out))
    if out.suffix.lower() != ".csv" or out.name == "boxes.csv":
        raise LayoutError(f"a manifest is a .csv file, and not boxes.csv. Received: {out}")
    if out.exists() and not overwrite:
        raise LayoutError(f"{out} is there already. Give another --out, or --overwrite to replace it")
    _check_room(out, False)
    return out


def _written(films: list[ManifestRow], out: Path, labels: str, job: Job) -> Imported:
    _check_room(out, any(film.boxes for film in films))
    return Imported(_write(films, out, labels), out, job.notes)


def _check_room(out: Path, boxes: bool) -> None:
    """Refuse where boxes.csv serves, or would have to serve, another manifest of the folder."""
    others = [path for path in sorted(out.parent.glob("*.csv")) if path != out and path.name != "boxes.csv"]
    boxes_file = out.with_name("boxes.csv")
    advice = f"Write it into a folder of its own, such as --out {out.parent / out.stem / 'manifest.csv'}"
    if boxes_file.is_file() and not _images(boxes_file) <= (_images(out) if out.is_file() else set()):
        raise LayoutError(f"{boxes_file} holds boxes of another manifest. {advice}")
    sharing = next((path for path in others if _images(path)), None)
    if boxes and sharing is not None:
        raise LayoutError(f"{sharing} lies in that folder, and boxes.csv cannot serve both. {advice}")


def _images(path: Path) -> set[str]:
    """The cells of the column `image`; none where the file has no such column."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return {row["image"] for row in csv.DictReader(file) if row.get("image")}


def _write(films: list[ManifestRow], out: Path, labels: str) -> Manifest:
    """The manifest, and boxes.csv where there are boxes, as they read back; an older boxes.csv without successor goes.

    Written aside and checked first: a manifest with faults replaces nothing.
    """
    extra = list(dict.fromkeys(column for film in films for column in film.extra))
    rows, boxes = [], []
    for film in films:
        image = _below(film.image, out.parent)
        row = {
            "image": image,
            "mask": "|".join(_below(mask, out.parent) for mask in (film.mask, *film.other_masks) if mask is not None),
            "label": film.own if labels == "own" else film.label,
            "patient": film.patient,
            "source": film.source,
            "split": film.split,
            "findings": joined(film.findings),
        }
        rows.append([row[column] for column in COLUMNS] + [film.extra.get(column, "") for column in extra])
        boxes += [[image, finding, *(f"{value:.6g}" for value in box)] for finding, box in film.boxes]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=out.parent) as aside:
        new, new_boxes = Path(aside, out.name), Path(aside, "boxes.csv")
        _write_csv(new, [*COLUMNS, *extra], rows)
        if boxes:
            _write_csv(new_boxes, list(BOX_COLUMNS), boxes)
        try:
            manifest = read_manifest(new, check_files=False)
        except ManifestError as error:
            raise LayoutError(
                f"the films of {films[0].source} make no manifest, and nothing was written. "
                f"{ManifestError(out, error.faults)}"
            ) from None
        os.replace(new, out)
        if boxes:
            os.replace(new_boxes, out.with_name("boxes.csv"))
        else:
            out.with_name("boxes.csv").unlink(missing_ok=True)
    return replace(manifest, root=out.parent)


def _below(path: Path, folder: Path) -> str:
    path = Path(os.path.abspath(path))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    # Cells as they are: a manifest is read by this program, and a mark against formulas would change names of files.
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue(), durable=True)
