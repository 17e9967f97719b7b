"""Near-duplicate films: the same exposure under two names, which lets a network be tested on what it learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cxr_pipeline.data.radiograph import RadiographError, read

SIDE = 48
# Correlation of two films' thumbnails from which they count as one exposure. On 3,904 films of six sources the 16 pairs
# that are one lie at 0.98 and above, a near-identical pair of one person at 0.94; of 7.6 million pairs of different
# people one in a hundred thousand reaches 0.89, and the highest, two upright chests of one hospital, 0.93.
ALIKE = 0.935


@dataclass(frozen=True)
class Pair:
    """Two films that look alike: their numbers in the list given, the first the smaller, and the correlation."""

    first: int
    second: int
    correlation: float


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """What a film is compared by: (SIDE * SIDE,) float32 of zero mean and unit norm.

    Grey levels are replaced by their ranks, so that exposure, contrast curve and bit depth do not matter, and the
    coarse shades that all chests share are taken out.

    Args:
        pixels: (H, W) float32 in [0, 1].
    """
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    ranks = np.argsort(np.argsort(small, axis=None, kind="stable"), kind="stable").reshape(SIDE, SIDE)
    fine = ranks.astype(np.float32) - cv2.GaussianBlur(ranks.astype(np.float32), (0, 0), SIDE / 8)
    fine -= fine.mean()
    return (fine / max(float(np.linalg.norm(fine)), 1e-6)).ravel()


def near_duplicates(thumbnails: np.ndarray, alike: float = ALIKE, block: int = 2048) -> list[Pair]:
    """All pairs of films whose thumbnails correlate by at least `alike`, strongest first.

    Finds copies that were rescaled, brightened, compressed or stored in another depth; not those that were turned,
    mirrored or cropped. Memory is `block` times the number of films; time grows with its square (3,904 films: 0.3 s).

    Args:
        thumbnails: (N, SIDE * SIDE) float32, see `thumbnail`.
    """
    found = []
    for start in range(0, len(thumbnails), block):
        table = thumbnails[start : start + block] @ thumbnails.T
        for row, column in zip(*np.nonzero(table >= alike), strict=True):
            if start + row < column:
                found.append(Pair(int(start + row), int(column), float(table[row, column])))
    return sorted(found, key=lambda pair: (-pair.correlation, pair.first, pair.second))


def thumbnails_of(
    paths: Sequence[Path], *, progress: Callable[[int], None] | None = None, workers: int = 4
) -> tuple[np.ndarray, list[int], dict[int, str]]:
    """Thumbnails of films that can be read.

    Returns:
        (M, SIDE * SIDE) float32, the numbers of the M films in `paths`, and for the others what is wrong by number.
    """

    def thumbnail_of(path: Path) -> np.ndarray | str:
        try:
            return thumbnail(read(path).pixels)
        except RadiographError as error:
            return str(error)

    seen, numbers, wrong = [], [], {}
    with ThreadPoolExecutor(workers) as pool:
        for number, answer in enumerate(pool.map(thumbnail_of, paths)):
            if isinstance(answer, str):
                wrong[number] = answer
            else:
                seen.append(answer)
                numbers.append(number)
            if progress is not None:
                progress(number + 1)
    return np.array(seen, np.float32).reshape(-1, SIDE * SIDE), numbers, wrong
