"""From a mask's file to its samples, as they are stored: pictures, NumPy arrays, DICOM and NIfTI."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np

from cxr_pipeline.data.formats.nifti import Nifti, slice_of
from cxr_pipeline.data.radiograph import MAX_PIXELS, RadiographError

_MOST_PLANES = 8  # of an array that holds a plane for each label
_MOST_BYTES = 8 * MAX_PIXELS  # that an array in an archive may unfold to


def samples_of(raw: bytes, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples (H, W) or (H, W, C) in the order red, green, blue, alpha; the palette (N, 3 or 4) where there is one."""
    if raw[:6] == b"\x93NUMPY":
        return _flat(_labelled(np.load(io.BytesIO(raw), allow_pickle=False)), path), None
    if raw[:4] == b"PK\x03\x04":
        return _flat(_labelled(_archived(raw, path)), path), None
    if Nifti().matches(raw[:512]):
        return _flat(slice_of(raw, str(path))[0], path), None
    if raw[128:132] == b"DICM":
        from cxr_pipeline.data.radiograph import read

        return np.round(read(path).pixels * 65535).astype(np.int32), None
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is ours
    with Image.open(io.BytesIO(raw)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise RadiographError(path, "the mask has more pixels than any film. Scale it down", "mask")
        if image.mode == "P":
            return np.asarray(image).astype(np.int32), _palette(image)
        if image.mode not in ("RGB", "RGBA"):
            if image.mode == "CMYK":
                image = image.convert("RGB")
            return _flat(np.asarray(image), path), None
        # Pillow narrows 16-bit colours to 8 bits, where 1 and 255 become 0.
        wide = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED) if image.format != "GIF" else None
        if wide is not None and wide.dtype == np.uint16 and wide.ndim == 3:
            return wide[..., [2, 1, 0, *range(3, wide.shape[2])]].astype(np.int32), None
        return np.asarray(image).astype(np.int32), None


def _palette(image: object) -> np.ndarray:
    """Colours (N, 4) of a palette picture, alpha last."""
    rgb = np.array(image.getpalette("RGB") or [0, 0, 0], np.int32).reshape(-1, 3)  # type: ignore[attr-defined]
    alpha = np.full((len(rgb), 1), 255, np.int32)
    transparent = image.info.get("transparency")  # type: ignore[attr-defined]
    if isinstance(transparent, bytes):
        alpha[: len(transparent), 0] = list(transparent)[: len(rgb)]
    return np.hstack([rgb, alpha])


def _flat(array: np.ndarray, path: Path) -> np.ndarray:
    """Samples of one plane, or of colours; grey with alpha becomes colours."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise RadiographError(path, f"the mask holds no numbers ({array.dtype})", "mask")
    array = np.squeeze(array) if array.ndim > 3 or 1 in array.shape[-1:] else array
    if array.ndim == 3 and array.shape[2] == 2:
        array = array[..., [0, 0, 0, 1]]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise RadiographError(path, f"the mask has the shape {array.shape}. Give one picture", "mask")
    return array


def _archived(raw: bytes, path: Path) -> np.ndarray:
    """The one array of a NumPy archive (.npz).

    Raises:
        RadiographError: it is another kind of archive, holds several arrays, or unfolds to more than any mask has.
    """
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = archive.infolist()
        if len(entries) != 1 or not entries[0].filename.endswith(".npy"):
            held = ", ".join(entry.filename[:40] for entry in entries[:4])
            raise RadiographError(path, f"the archive holds {held}. A mask is one array or a picture", "mask")
        if entries[0].file_size > _MOST_BYTES:
            raise RadiographError(path, "the mask has more bytes than any mask does. Save it as PNG", "mask")
        with archive.open(entries[0]) as file:
            return np.load(io.BytesIO(file.read(_MOST_BYTES)), allow_pickle=False)


def _labelled(array: np.ndarray) -> np.ndarray:
    """A plane for each label, first or last in the array, as one picture of labels; other arrays as they are."""
    array = array.reshape([side for side in array.shape if side != 1]) if array.ndim > 2 else array
    if array.ndim != 3 or array.dtype.kind not in "buif":
        return array
    axis = int(np.argmin(array.shape))
    if not 2 <= array.shape[axis] <= _MOST_PLANES or axis == 1:
        return array
    planes = np.moveaxis(array.astype(np.uint8) if array.dtype == bool else array, axis, 0)
    if np.ptp(planes, axis=0).max() == 0:  # grey saved as colour
        return planes[0]
    if any(len(np.unique(plane)) > 2 for plane in planes):
        return array
    set_ = planes > planes.min()
    if (set_.sum(axis=0) == 1).all():  # one of the planes is what is outside
        return set_.argmax(axis=0).astype(np.int32)
    return (set_ * np.arange(1, len(set_) + 1).reshape(-1, 1, 1)).max(axis=0).astype(np.int32)
