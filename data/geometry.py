"""Going from the native film to a network's grid and back, without losing alignment.

Every mask and box that a user sees is in native pixels; networks see small squares. `Frame` is the one
place that converts between the two. Pixel centres lie at half-integers (the convention of `cv2.resize`
and of COCO boxes): native x maps to grid ``(x - box.x) * grid_width / box.w``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

_OBLONG = 1.6  # the two scales of a lung box of a film with square pixels differ by less


class Box(NamedTuple):
    """A rectangle in pixels: top-left corner `x, y` (x right, y down), width `w`, height `h`."""

    x: float
    y: float
    w: float
    h: float

    @property
    def area(self) -> float:
        """Width times height; 0 where either is negative."""
        return max(self.w, 0.0) * max(self.h, 0.0)

    def intersect(self, other: Box) -> Box:
        """The common rectangle; width or height 0 where there is none."""
        x0, y0 = max(self.x, other.x), max(self.y, other.y)
        x1, y1 = min(self.x + self.w, other.x + other.w), min(self.y + self.h, other.y + other.h)
        return Box(x0, y0, max(x1 - x0, 0), max(y1 - y0, 0))

    def iou(self, other: Box) -> float:
        """Intersection over union, 0 to 1; 0 where both boxes are empty."""
        common = self.intersect(other).area
        union = self.area + other.area - common
        return common / union if union > 0 else 0.0

    def grown(self, margin: float) -> Box:
        """The box with `margin` times its own width and height added on each side."""
        dx, dy = self.w * margin, self.h * margin
        return Box(self.x - dx, self.y - dy, self.w + 2 * dx, self.h + 2 * dy)

    def scaled(self, down: float, across: float) -> Box:
        """The box on a film that is so many times as high and as wide."""
        return Box(self.x * across, self.y * down, self.w * across, self.h * down)

    def rounded(self) -> Box:
        """The smallest box of whole pixels that holds this one."""
        x0, y0 = int(np.floor(self.x)), int(np.floor(self.y))
        x1, y1 = int(np.ceil(self.x + self.w)), int(np.ceil(self.y + self.h))
        return Box(x0, y0, x1 - x0, y1 - y0)


def resize(image: np.ndarray, height: int, width: int, *, nearest: bool = False) -> np.ndarray:
    """`image` (H, W) or (H, W, C) at (height, width): area averaging down, linear up, so nothing aliases."""
    if image.shape[:2] == (height, width):
        return image
    if nearest:
        how = cv2.INTER_NEAREST_EXACT
    else:
        down, across = height / image.shape[0], width / image.shape[1]
        if min(down, across) < 1 < max(down, across) and max(down, across) > _OBLONG * min(down, across):
            # A film with oblong pixels: neither way of resizing serves both axes.
            middle = (image.shape[0], width) if across < down else (height, image.shape[1])
            return resize(resize(image, *middle), height, width)
        shrinks = height * width < image.shape[0] * image.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)


def coarse(size: tuple[int, int], aspect: float, grid: int) -> bool:
    """Whether a film (height, width) has oblong pixels, and so few along their longer side that a grid shows it.

    A film of many pixels is made square by the averaging that takes it to the grid.
    """
    return aspect != 1 and size[0 if aspect > 1 else 1] < 2 * grid


def squared(image: np.ndarray, aspect: float) -> np.ndarray:
    """A film with oblong pixels as one with square ones: as fine along its coarse side as along the other.

    A pixel twice as high as wide holds the mean of what lies in it. Plain interpolation blurs these means once more,
    and the networks read sharpness: so the result is corrected by what its own means differ from the film.

    Args:
        image: (H, W) float.
        aspect: height of a pixel divided by its width.

    Returns:
        (H x aspect, W) or (H, W / aspect), of the same type.
    """
    height, width = image.shape
    size = (width, max(1, round(height * aspect))) if aspect > 1 else (max(1, round(width / aspect)), height)
    fine = cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4)
    missing = image - cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    np.add(fine, cv2.resize(missing, size, interpolation=cv2.INTER_LANCZOS4), out=fine)
    return np.clip(fine, image.min(), image.max(), out=fine)


def _cell_sums(image: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """The sums of an image (h, w) float32 over cells whose edges may lie within its pixels, which then count in part.

    Args:
        down: (rows + 1,) edges of the cells in pixels, ascending; what lies outside of the image is 0.
        across: (columns + 1,), likewise.

    Returns:
        (rows, columns) float32.
    """
    rows = _row_sums(image, down)
    return np.ascontiguousarray(_row_sums(np.ascontiguousarray(rows.T), across).T)


def _row_sums(image: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The sums (rows, w) of an image's rows between edges that may lie within them.

    The sum up to an edge is interpolated between those up to whole rows, by a cubic Hermite curve: each pixel keeps its
    mean, and has a slope as its neighbours say. At the image's ends a pixel has itself as its neighbour.
    """
    side = image.shape[0]
    at = np.clip(edges, 0, side)
    whole = np.minimum(at.astype(int), side - 1)
    t = (at - whole)[:, None].astype(np.float32)
    bend = t * (1 - t) / 2
    before, here, after = (image[np.clip(whole + step, 0, side - 1)] for step in (-1, 0, 1))
    here *= t * t * (3 - 2 * t) + bend * (1 - 2 * t)  # they are copies
    before *= bend * (1 - t)
    after *= bend * t
    here += before
    here -= after
    sums = np.diff(here, axis=0)
    for row, (first, end) in enumerate(pairwise(whole)):
        if end > first:
            sums[row] += np.add.reduce(image[first:end], axis=0)
    return sums


@dataclass(frozen=True)
class Frame:
    """A native rectangle of whole pixels, shown on a grid of `grid` = (height, width).

    The rectangle may reach outside the film; what lies outside is filled with 0 on the way in and cut
    off on the way back. `aspect` is the height of a native pixel divided by its width: see `squared`.
    """

    native: tuple[int, int]
    box: Box
    grid: tuple[int, int]
    aspect: float = 1.0

    def __post_init__(self) -> None:
        if self.box.w < 1 or self.box.h < 1 or min(self.grid) < 1 or min(self.native) < 1:
            raise ValueError(f"a frame needs at least one pixel on each side. Received: {self}")

    @classmethod
    def letterbox(cls, native: tuple[int, int], size: int, aspect: float = 1.0) -> Frame:
        """The whole film, centred in the smallest square that holds it: its aspect ratio is kept.

        Args:
            native: (height, width) of the film in pixels.
            size: side of the grid.
            aspect: height of a native pixel divided by its width. Where it is not 1, the box is a square as the film
                was taken, and not in pixels.
        """
        height, width = native
        side = max(height * aspect, width)
        across, down = max(width, round(side)), max(height, round(side / aspect))
        return cls(native, Box((width - across) // 2, (height - down) // 2, across, down), (size, size), aspect)

    @classmethod
    def crop(cls, native: tuple[int, int], box: Box, size: int) -> Frame:
        """A rectangle of the film, stretched to a square."""
        return cls(native, box.rounded(), (size, size))

    def _visible(self) -> tuple[int, int, int, int]:
        """The part of the box on the film: x0, y0, x1, y1 in native pixels."""
        height, width = self.native
        part = self.box.intersect(Box(0, 0, width, height)).rounded()
        return int(part.x), int(part.y), int(part.x + part.w), int(part.y + part.h)

    def to_grid(self, image: np.ndarray, *, nearest: bool = False, times: int = 1) -> np.ndarray:
        """Native `image` (H, W) or (H, W, C), any dtype that OpenCV takes, on the grid; its values so many `times`."""
        if image.shape[:2] != self.native:
            raise ValueError(f"the frame was made for a film of {self.native} pixels. Received: {image.shape}")
        x0, y0, x1, y1 = self._visible()
        bx, by, bw, bh = (int(v) for v in self.box)
        part = image[y0:y1, x0:x1]
        if times != 1:  # of no more than is needed
            part = part * part.dtype.type(times)
        if part.shape[:2] != (bh, bw):
            whole = np.zeros((bh, bw, *image.shape[2:]), image.dtype)
            whole[y0 - by : y1 - by, x0 - bx : x1 - bx] = part
            part = whole
        if part.ndim == 2 and part.dtype.kind == "f" and coarse(part.shape, self.aspect, max(self.grid)):
            part = squared(part, self.aspect)
        # The part itself may stay a view of the film: a copy of a large one takes longer than to shrink it.
        return np.ascontiguousarray(resize(part, *self.grid, nearest=nearest))

    def small_to_grid(self, image: np.ndarray, scale: int, centre: float) -> np.ndarray:
        """The film on the grid, from fewer pixels than it has natively; without rounding the box to these.

        Args:
            image: (h, w) float32, one pixel for `scale` native ones each way.
            scale: native pixels from one of its pixels to the next.
            centre: native coordinate of the centre of its first pixel, each way.

        Returns:
            (height, width) of the grid, float32; 0 outside the film.
        """
        rows, columns = self.grid
        edges, parts, missing = [], [], []
        for at, length, cells, axis in ((self.box.y, self.box.h, rows, 0), (self.box.x, self.box.w, columns, 1)):
            native = np.clip(at + length / cells * np.arange(cells + 1), 0, self.native[axis])
            found = (native - centre) / scale + 0.5  # 0.5: of edges, not of centres
            # The part in which they lie, and what its slopes hang on: summing all of a large film takes far longer.
            first = int(np.clip(np.floor(found[0]) - 1, 0, image.shape[axis] - 1))
            end = int(np.clip(np.ceil(found[-1]) + 2, first + 1, image.shape[axis] + 1))
            edges.append(found - first)
            parts.append(slice(first, end))
            # Its last pixels may end before the film does, and its first begin before: cells count what is film.
            missing.append(max(0, end - image.shape[axis]))
        part = image[parts[0], parts[1]]
        if any(missing):
            part = cv2.copyMakeBorder(part, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
        return _cell_sums(part, *edges) * np.float32(scale**2 * rows * columns / self.box.area)

    def to_native(self, grid: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """A map on the grid, at native size (H, W) or (H, W, C); 0 outside the frame's box."""
        if grid.shape[:2] != self.grid:
            raise ValueError(f"the frame's grid is {self.grid}. Received: {grid.shape}")
        x0, y0, x1, y1 = self._visible()
        bx, by, bw, bh = (int(v) for v in self.box)
        large = resize(grid, bh, bw, nearest=nearest)
        seen = large[y0 - by : y1 - by, x0 - bx : x1 - bx]
        if large is not grid and seen.shape[:2] == self.native:
            return np.ascontiguousarray(seen)
        out = np.zeros((*self.native, *grid.shape[2:]), grid.dtype)
        out[y0:y1, x0:x1] = seen
        return out

    def box_to_native(self, box: Box) -> Box:
        """A box in grid pixels, in native pixels (not cut to the film)."""
        sx, sy = self.box.w / self.grid[1], self.box.h / self.grid[0]
        return Box(box.x * sx + self.box.x, box.y * sy + self.box.y, box.w * sx, box.h * sy)

    def box_to_grid(self, box: Box) -> Box:
        """A box in native pixels, in grid pixels (not cut to the grid)."""
        sx, sy = self.grid[1] / self.box.w, self.grid[0] / self.box.h
        return Box((box.x - self.box.x) * sx, (box.y - self.box.y) * sy, box.w * sx, box.h * sy)


def bounding_box(mask: np.ndarray) -> Box | None:
    """The smallest box around the non-zero pixels of `mask` (H, W); None where there are none."""
    if not mask.size:
        return None
    pixels = mask.view(np.uint8) if mask.dtype.kind == "b" else mask
    if pixels.dtype != np.uint8:  # OpenCV takes other types for lists of points
        pixels = (pixels != 0).view(np.uint8)
    x, y, w, h = cv2.boundingRect(pixels)
    return Box(float(x), float(y), float(w), float(h)) if w else None
