"""NIfTI files of one slice."""

from __future__ import annotations

import gzip
import io
from typing import Any, ClassVar

import numpy as np

from cxr_pipeline.data.formats import grey
from cxr_pipeline.data.formats.base import MAX_BYTES, Decoded, Format, RadiographError, check_size


class Nifti(Format):
    """NIfTI-1 and NIfTI-2 in one file, with nibabel; gzipped ones are told by their suffix."""

    name: ClassVar[str] = "nifti"
    label: ClassVar[str] = "NIfTI"
    suffixes: ClassVar[tuple[str, ...]] = (".nii",)
    requires: ClassVar[tuple[str, ...]] = ("nibabel",)

    def matches(self, head: bytes) -> bool:
        """By its magic, after the length of its header; or a gzip stream whose content begins so."""
        if head.startswith(b"\x1f\x8b"):
            try:
                head = gzip.GzipFile(fileobj=io.BytesIO(head)).read1(360)
            except (OSError, EOFError, ValueError):
                return False
            return head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
        return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"

    def decode(self, raw: bytes, name: str) -> Decoded:
        """The one slice, turned as viewers show it, see `slice_of`."""
        samples, (rows, columns) = slice_of(raw, name)
        film = grey.film(samples, name)
        if rows > 0 and columns > 0:
            film.spacing, film.aspect = (rows, columns), rows / columns
        return film


def slice_of(raw: bytes, name: str) -> tuple[np.ndarray, tuple[float, float]]:
    """The one slice (H, W), or (H, W, C) of colours, and the height and width of a pixel.

    It is turned as viewers show it: the first axis runs across, and the second upwards, unless its affine says no.

    Raises:
        RadiographError: it is a volume, or unfolds to too much.
    """
    import nibabel

    if raw.startswith(b"\x1f\x8b"):
        raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise RadiographError(
                name, f"it unfolds to more than {MAX_BYTES / 1e6:.0f} MB. Scale the film down", "too_large"
            )
    kind = nibabel.Nifti2Image if raw[4:8] == b"n+2\0" else nibabel.Nifti1Image
    image = kind.from_bytes(raw)
    shape = tuple(side for side in image.shape if side != 1)
    if len(shape) != 2:
        raise RadiographError(
            name, f"it is a volume of {image.shape}, no single film. Save the film alone", "multi_frame", refused=True
        )
    check_size(name, shape[1], shape[0], 1, image.get_data_dtype().itemsize)
    samples = np.asarray(image.dataobj).reshape(shape)
    if samples.dtype.names:  # colours
        samples = np.stack([samples[colour] for colour in samples.dtype.names], axis=-1)
    columns, rows = (float(v) for v, side in zip(image.header.get_zooms(), image.shape, strict=False) if side != 1)
    samples = np.swapaxes(samples, 0, 1)
    return np.ascontiguousarray(samples[::-1] if _upwards(image) else samples), (rows, columns)


def _upwards(image: Any) -> bool:
    """Whether the second axis runs upwards, or forwards, as it does by default; downwards as SimpleITK writes it."""
    axis = [at for at, side in enumerate(image.shape[:3]) if side != 1][1]
    column = np.asarray(image.affine)[:3, axis]
    return bool(column[np.abs(column).argmax()] >= 0)
