"""The lung mask of a manifest's film, wherever the manifest says that it is, and what is wrong with masks.

::

    column                          what it holds
    mask                            a file; several, joined by a pipe sign, are put together
    mask_left, mask_right           a file for each lung
    mask_rle                        run lengths, of both lungs; mask_rle_left and mask_rle_right for each
    mask_height, mask_width         of the picture that run lengths are of; by default the film's
    rle_order                       columns or rows; by default the one that gives two lungs side by side
    mask_labels                     values of label maps that are lung, such as 1,2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.manifest import IN_COLUMN, Manifest
from cxr_pipeline.data.masks import fault_of, fitted, read_mask, side_by_side
from cxr_pipeline.data.names import brief
from cxr_pipeline.data.outlines import from_runs, mask_in_json
from cxr_pipeline.data.radiograph import RadiographError


class MaskError(CxrError, ValueError):
    """Masks that nothing can be learned from; names the first ones and what to do."""


def film_mask(data: Manifest, row: Mapping[str, Any], size: tuple[int, int] | None) -> np.ndarray:
    """The lungs of a row's film, (H, W) uint8, 0 or 1, at the film's `size` (height, width).

    Args:
        row: of the manifest's table, as a dict.
        size: None where the film's size is not known: the mask then keeps its own.

    Raises:
        RadiographError: a mask cannot be read, is none, or has another aspect ratio than the film.
    """
    parts = [part for part in str(row["mask"]).split("|") if part]
    labels = [label for label in str(row.get("mask_labels") or "").replace("|", ",").split(",") if label.strip()]
    joined: np.ndarray | None = None
    for part in parts:
        if part.startswith(IN_COLUMN):
            mask = _of_runs(row, part.removeprefix(IN_COLUMN), size, data.path(row["image"]))
        elif part.lower().endswith(".json"):
            path = data.path(part)
            mask = fitted(mask_in_json(path, size, image=str(row["image"])), size, path)
        else:
            mask = read_mask(data.path(part), size, labels=labels or None)
        if joined is not None and joined.shape != mask.shape:
            raise RadiographError(
                data.path(part), f"the masks of one film differ in size: {mask.shape} and {joined.shape}", "mask_size"
            )
        joined = mask if joined is None else joined | mask
    if joined is None:
        raise RadiographError(data.path(row["image"]), "it has no mask in the manifest", "mask")
    return joined


def _of_runs(row: Mapping[str, Any], column: str, size: tuple[int, int] | None, film: Path) -> np.ndarray:
    names = (("mask_height", "Height"), ("mask_width", "Width"))
    sizes = [str(row.get(name) or row.get(other) or "") for name, other in names]
    try:
        own = (int(float(sizes[0])), int(float(sizes[1]))) if all(sizes) else size
    except (ValueError, OverflowError):
        raise RadiographError(film, f"mask_height and mask_width are no numbers: {sizes}", "mask") from None
    if own is None:
        raise RadiographError(film, "run lengths need the columns mask_height and mask_width", "mask")
    order = str(
        row.get("rle_order") or ("rows" if column.endswith("_lung") else "")
    ).lower()  # CheXmask: along the rows
    text = str(row[column])
    if order:
        return fitted(from_runs(text, own, film, by_rows=order.startswith("row")), size, film)
    down, along = (from_runs(text, own, film, by_rows=by_rows) for by_rows in (False, True))
    # Kaggle's order unless only the other one shows two lungs: on a square film the wrong one lays them on their side.
    return fitted(along if side_by_side(along) and not side_by_side(down) else down, size, film)


def mask_faults(data: Manifest, *, progress: Callable[[int], None] | None = None, workers: int = 4) -> dict[str, str]:
    """What is wrong with the masks of a manifest, by film: unreadable, empty, full, inverted, one lung, another size.

    Films are looked at by their headers; one that cannot be read is not a fault of its mask.
    """
    rows = data.select(has_mask=True).rows()

    def fault_in(row: dict[str, Any]) -> str:
        try:
            return fault_of(film_mask(data, row, size_of_film(data.path(row["image"]))))
        except RadiographError as error:
            return str(error)

    found: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        for number, (row, fault) in enumerate(zip(rows, pool.map(fault_in, rows), strict=True), 1):
            if fault:
                found[row["image"]] = fault
            if progress is not None:
                progress(number)
    return found


def require_sound_masks(data: Manifest) -> None:
    """Stop before a training learns from masks that are wrong.

    Raises:
        MaskError: with the number of faulty masks and the first of them.
    """
    from cxr_pipeline.data.progress import progress_bar

    films = data.select(has_mask=True)
    with progress_bar("masks", len(films)) as update:
        found = mask_faults(films, progress=update)
    if found:
        shown = "\n".join(f"  {brief(image)}: {fault}" for image, fault in list(found.items())[:_SHOWN])
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise MaskError(
            f"{len(found)} of {len(films)} lung masks cannot be learned from:\n{shown}{more}\n"
            "Mend them, or empty their cells in the manifest. `pipeline data check` lists them all; --mask-labels "
            "says which labels are lung"
        )


_SHOWN = 10


def box_faults(data: Manifest) -> list[str]:
    """Boxes of the manifest that reach outside their films, by film; a film without a readable header is left out."""
    faults = []
    for image, boxes in data.boxes.groupby("image", sort=False):
        size = size_of_film(data.path(str(image)))
        if size is None:
            continue
        for box in (Box(*corners) for corners in boxes[list("xywh")].itertuples(index=False, name=None)):
            if box.x < -1 or box.y < -1 or box.x + box.w > size[1] + 1 or box.y + box.h > size[0] + 1:
                faults.append(
                    f"{brief(image)}: the box x {box.x:g}, y {box.y:g}, w {box.w:g}, h {box.h:g} reaches outside the "
                    f"film of {size[1]}x{size[0]} pixels"
                )
    return faults


def size_of_film(path: Path) -> tuple[int, int] | None:
    """(height, width) of a film as it is shown, by its header alone; None where that can't be told."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # only the header is read
    try:
        with Image.open(path) as image:
            wide, high = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (wide, high) if turned else (high, wide)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        pass
    try:
        import pydicom

        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["Rows", "Columns"])
        return int(header.Rows), int(header.Columns)
    except Exception:  # pydicom raises whatever it likes on what is no DICOM
        return None
