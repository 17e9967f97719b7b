"""NumPy arrays (.npy) of one film."""

from __future__ import annotations

import io
from typing import ClassVar

import numpy as np

from cxr_pipeline.data.formats import grey
from cxr_pipeline.data.formats.base import Decoded, Format, RadiographError, check_size


class Npy(Format):
    """A NumPy array (H, W), or (H, W, C) with up to four channels. Arrays of Python objects are never read."""

    name: ClassVar[str] = "npy"
    label: ClassVar[str] = "NumPy"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    def matches(self, head: bytes) -> bool:
        """By its signature."""
        return head.startswith(b"\x93NUMPY")

    def decode(self, raw: bytes, name: str) -> Decoded:
        """The array as samples."""
        stream = io.BytesIO(raw)
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.hasobject or dtype.kind not in "buif":
            raise RadiographError(
                name, f"its elements are {dtype}, and grey levels are numbers. Save the film as numbers", "not_a_film"
            )
        shape = tuple(side for side in shape if side != 1) if len(shape) > 2 else shape
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[-1] > 4 and shape[0] > 4):
            raise RadiographError(
                name,
                f"its shape is {shape}, and a film is (height, width). Save one film a file",
                "multi_frame",
                refused=True,
            )
        planes_first = len(shape) == 3 and shape[-1] > 4
        height, width = shape[1:] if planes_first else shape[:2]
        check_size(name, height, width, 1 if len(shape) == 2 else min(shape), dtype.itemsize)
        samples = np.load(io.BytesIO(raw), allow_pickle=False).reshape(shape)
        if planes_first:
            samples = np.moveaxis(samples, 0, -1)
        return grey.film(samples.astype(samples.dtype.newbyteorder("="), copy=False), name)
