"""One reader for lung masks: pictures of every kind, label maps, run lengths and polygons become 0 and 1.

A mask is told by what it holds and not by its name. Two-valued pictures (0/1, 0/255, black and white, 16 bit, palettes,
colours, alpha) are read as they are. Of a picture with labels, those named by `mask_labels` count, or the two that are
side by side and as tall as lungs are; a message names them. What is no mask raises `RadiographError`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from cxr_pipeline.data.maskfiles import samples_of
from cxr_pipeline.data.radiograph import RadiographError

log = logging.getLogger("cxr.masks")

_FEW_LABELS = 8  # a label map that was saved as JPEG holds so many, and grey levels around each
_SNAP, _LEAST_LABEL, _MEANT = 0.04, 0.01, 0.95  # of the range; of the picture; of the picture that lies near a label
_GREYISH = 4  # by which the channels of a grey picture of lossy WebP or JPEG may differ
_MOST_LABELS = 64  # a picture with more values is no label map
_FILE_BYTES = 256 * 1024 * 1024  # larger than any mask; a JSON of polygons of a whole data set is the largest kind
# Masks of lungs, 827 of three public sets: the lower lung is at least 0.29 of the film high, and the smaller one 0.4 of
# the larger in area but for six films; hearts are under 0.3 high and lie across the middle.
_TALL = 0.22
_SHARE = 0.2
_ASPECT = 0.02  # by how much the aspect ratio of a mask may differ from its film's

_advised: set[str] = set()


@dataclass(frozen=True)
class Values:
    """A mask's picture before it is known what counts as lung.

    Attributes:
        index: (H, W) int32, the number of each pixel's value in `names`, from the darkest to the brightest.
        names: what a person calls the values: numbers, or colours as "#rrggbb".
        levels: brightness of each value, float64, in the file's own units.
        colours: whether values are colours, of which the commonest on the border is the background.
    """

    index: np.ndarray
    names: tuple[str, ...]
    levels: np.ndarray
    colours: bool = False


def read_mask(
    path: str | Path, size: tuple[int, int] | None = None, *, labels: Sequence[str | int] | None = None
) -> np.ndarray:
    """A mask file as (H, W) uint8, 0 or 1.

    Args:
        path: a picture, a `.npy` array, or a JSON with polygons or run lengths (COCO of one film, LabelMe).
        size: (height, width) of the film, to which the mask is scaled; None keeps the mask's own.
        labels: values that count as lung, such as ``["1", "2"]`` or ``["#800000"]``; None takes the obvious reading.

    Raises:
        RadiographError: it cannot be read, is no mask, or its aspect ratio is another than the film's.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        from cxr_pipeline.data.outlines import mask_in_json

        return fitted(mask_in_json(path, size), size, path)
    return fitted(lung_of(values_of(path), path, labels), size, path)


def fitted(mask: np.ndarray, size: tuple[int, int] | None, path: str | Path) -> np.ndarray:
    """The mask (H, W) uint8 at the film's size, (height, width), by nearest pixel.

    Raises:
        RadiographError: the aspect ratios differ by more than 2 %.
    """
    if size is None or mask.shape == tuple(size):
        return mask
    high, wide = mask.shape
    if abs(high * size[1] - wide * size[0]) > _ASPECT * high * size[1]:
        raise RadiographError(
            path, f"the mask is {wide}x{high} pixels and its film {size[1]}x{size[0]}. Make them match", "mask_size"
        )
    return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def values_of(path: Path) -> Values:
    """The values that a mask's picture holds.

    Raises:
        RadiographError: the file is missing, too large, or no picture.
    """
    try:
        if path.stat().st_size > _FILE_BYTES:
            raise RadiographError(path, "the mask has more bytes than any mask does. Save it as PNG", "mask")
        raw = path.read_bytes()
    except OSError as error:
        raise RadiographError(
            path, f"the mask cannot be read ({error.strerror or error}). Check the path", "mask"
        ) from None
    try:
        samples, palette = samples_of(raw, path)
    except RadiographError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = " ".join(str(error).split())[:120]
        raise RadiographError(
            path, f"the mask cannot be read ({reason}). Give a PNG with 0 outside the lungs and 255 inside", "mask"
        ) from None
    if samples.ndim == 2 and palette is None:
        return _grey(samples)
    return _coloured(samples, palette)


def _grey(samples: np.ndarray) -> Values:
    samples = np.nan_to_num(samples) if samples.dtype.kind == "f" else samples
    if samples.dtype.kind != "f" and samples.min() >= 0 and samples.max() < 65536:  # without sorting 20 million pixels
        levels = np.flatnonzero(np.bincount(samples.ravel(), minlength=1))
        rank = np.zeros(int(levels[-1]) + 1, np.int32)
        rank[levels] = np.arange(len(levels), dtype=np.int32)
        index = rank[samples]
    else:
        levels, index = np.unique(samples, return_inverse=True)
    names = tuple(f"{level:g}" for level in levels[: _MOST_LABELS + 1])
    return Values(index.reshape(samples.shape).astype(np.int32), names, levels.astype(np.float64))


def _coloured(samples: np.ndarray, palette: np.ndarray | None) -> Values:
    """Values of colours; what is transparent counts as black, where some of it is opaque and some not."""
    if palette is not None:
        used = np.unique(samples)
        rgba = palette[np.minimum(np.arange(int(used.max()) + 1), len(palette) - 1)]
        if (rgba[used, 0] == rgba[used, 1]).all() and (rgba[used, 1] == rgba[used, 2]).all():
            if (
                np.ptp(rgba[used], axis=0).max() == 0 and len(used) > 1
            ):  # a palette that nobody filled in: the numbers are meant
                return _grey(samples)
            if np.ptp(rgba[used, 3]) == 0:  # a grey ramp
                return _grey(rgba[samples, 0])
        elif np.ptp(rgba[used, 3]) == 0:  # values are called by their number, as labelling tools do
            levels = rgba[used, :3] @ np.array([0.299, 0.587, 0.114])
            return _sorted(np.searchsorted(used, samples), [str(number) for number in used], levels, colours=True)
        samples = rgba[samples]
    colour, alpha = samples[..., :3], samples[..., 3] if samples.shape[2] == 4 else None
    if alpha is not None and alpha.min() < alpha.max():
        opaque = alpha > alpha.max() / 2
        inside = colour[opaque]
        uniform = len(inside) and np.ptp(inside.reshape(-1, 3), axis=0).max() == 0
        if uniform or len(np.unique(inside[:, 0])) > _MOST_LABELS:  # the alpha is the mask, maybe of a film cut out
            return _grey(np.where(opaque, 255, 0))
        colour = np.where(opaque[..., None], colour, 0)
    unlike = np.ptp(colour, axis=2).max()
    if unlike == 0 or (colour.max() > 64 and unlike <= _GREYISH):
        return _grey(colour[..., 1])
    if colour.dtype.kind == "f":
        colour = np.round(colour * 255)
    packed = (colour[..., 0].astype(np.int64) << 32) | (colour[..., 1].astype(np.int64) << 16) | colour[..., 2]
    found, index = np.unique(packed, return_inverse=True)
    rgb = np.stack([found >> 32, (found >> 16) & 65535, found & 65535], axis=1)
    names = ["#" + "".join(f"{value:02x}" for value in colour) for colour in rgb[: _MOST_LABELS + 1]]
    if len(found) > _MOST_LABELS:  # soft edges or JPEG: brightness decides, unless there are a few clear colours
        if rgb.max() < 256 and (clear := _snapped_colours(rgb, index.reshape(colour.shape[:2]))) is not None:
            return clear
        return _grey(rgb[index.reshape(colour.shape[:2])].max(axis=2))
    return _sorted(index.reshape(colour.shape[:2]), names, rgb @ np.array([0.299, 0.587, 0.114]), colours=True)


def _sorted(index: np.ndarray, names: Sequence[str], levels: np.ndarray, *, colours: bool) -> Values:
    order = np.argsort(levels, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return Values(rank[index], tuple(names[number] for number in order), np.asarray(levels, float)[order], colours)


def lung_of(values: Values, path: str | Path, labels: Sequence[str | int] | None = None) -> np.ndarray:
    """What of a mask's picture is lung, (H, W) uint8, 0 or 1.

    Raises:
        RadiographError: it has grey levels as a film has, labels of which it isn't clear which are the lungs, or none
            of `labels`.
    """
    count = len(values.levels)
    if labels:
        return _named(values, path, labels)
    if count == 1:
        return np.full(values.index.shape, int(values.levels[0] > 0), np.uint8)
    background = _background(values)
    if count == 2:
        return (values.index != background).astype(np.uint8)
    if not values.colours:
        low, high = values.levels[0], values.levels[-1]
        far = np.minimum(values.levels - low, high - values.levels)
        bright = values.levels[values.index] > (low + high) / 2
        if high - low > 64 and far.max() <= _SNAP * (high - low) and side_by_side(bright) and not _thin(bright):
            return bright.astype(np.uint8)  # black and white that lossy WebP moved a little
        middle = (values.index > 0) & (values.index < count - 1)
        if _thin(middle):  # soft edges between two values
            return (values.levels[values.index] > values.levels[[0, -1]].mean()).astype(np.uint8)
    if count > _FEW_LABELS and not values.colours and (clear := _snapped(values)) is not None:
        return lung_of(clear, path, labels)
    if count > _MOST_LABELS:
        low, high = values.levels[0], values.levels[-1]
        share = (values.levels[values.index] - low) / (high - low)
        between = (share > 0.2) & (share < 0.8)
        if between.mean() > 0.05 and not _thin(between):
            raise RadiographError(
                path,
                f"this is no mask: it holds {count} grey levels, as a film does. Give a picture with 0 outside the "
                "lungs and 255 inside",
                "mask",
            )
        return (share > 0.5).astype(np.uint8)
    return _obvious(values, path, background)


def _snapped(values: Values) -> Values | None:
    """A label map that was saved as JPEG, with the few levels that it was drawn in; None where it is none."""
    shares = np.bincount(values.index.ravel(), minlength=len(values.levels)) / values.index.size
    reach = _SNAP * float(values.levels[-1] - values.levels[0])
    near = np.abs(values.levels[:, None] - values.levels[None]) <= reach
    sums = near @ shares
    peaks: list[int] = []
    for place in np.argsort(-shares, kind="stable"):
        if sums[place] >= _LEAST_LABEL and all(abs(values.levels[place] - values.levels[p]) > 2 * reach for p in peaks):
            peaks.append(int(place))
    if not 2 < len(peaks) <= _FEW_LABELS or shares[near[peaks].any(axis=0)].sum() < _MEANT:
        return None
    levels = np.sort(values.levels[peaks])
    nearest = np.abs(values.levels[:, None] - levels[None]).argmin(axis=1).astype(np.int32)
    index = cv2.medianBlur(nearest[values.index].astype(np.uint8), 5).astype(
        np.int32
    )  # edges pass through other labels
    if any(_thin(index == number) for number in range(len(levels))):  # soft edges, then
        return None
    return Values(index.astype(np.int32), tuple(f"{level:g}" for level in levels), levels)


def _snapped_colours(rgb: np.ndarray, index: np.ndarray) -> Values | None:
    """A map of colours (N, 3) that was saved as JPEG, with the few that it was drawn in; None where it is none."""
    coarse = rgb // 16
    boxes = np.zeros((16, 16, 16))
    np.add.at(boxes, tuple(coarse.T), np.bincount(index.ravel(), minlength=len(rgb)) / index.size)
    wide = np.pad(boxes, 1)
    near = np.sum([wide[x : x + 16, y : y + 16, z : z + 16] for x, y, z in product(range(3), repeat=3)], axis=0)
    peaks: list[np.ndarray] = []
    for place in np.argwhere(near >= _LEAST_LABEL)[np.argsort(-near[near >= _LEAST_LABEL], kind="stable")]:
        if all(np.abs(place - peak).max() > 3 for peak in peaks):
            peaks.append(place)
    if not 2 < len(peaks) <= _FEW_LABELS or sum(near[tuple(peak)] for peak in peaks) < _MEANT:
        return None
    nearest = np.abs(coarse[:, None] - np.array(peaks)[None]).sum(axis=2).argmin(axis=1)
    places = cv2.medianBlur(nearest[index].astype(np.uint8), 5).astype(np.int32)
    if any(_thin(places == number) for number in range(len(peaks))):
        return None
    levels = np.array(peaks) * 16 @ np.array([0.299, 0.587, 0.114])
    names = ["#" + "".join(f"{16 * value:02x}" for value in peak) for peak in peaks]
    return _sorted(places, names, levels, colours=True)


def _named(values: Values, path: str | Path, labels: Sequence[str | int]) -> np.ndarray:
    wanted = {str(label).strip().lower() for label in labels}
    numbers = [number for number, name in enumerate(values.names) if name in wanted]
    if not numbers:
        raise RadiographError(
            path,
            f"the mask holds none of the labels {', '.join(sorted(wanted))}. It holds {_listed(values.names)}: name "
            "those of the lungs with --mask-labels",
            "mask_labels",
        )
    return np.isin(values.index, numbers).astype(np.uint8)


def _background(values: Values) -> int:
    """The number of the value that is outside: black where there is any, of colours the commonest on the border."""
    if not values.colours or values.levels[0] == 0:
        return 0
    edge = np.concatenate([values.index[0], values.index[-1], values.index[:, 0], values.index[:, -1]])
    return int(np.bincount(edge).argmax())


def _thin(area: np.ndarray) -> bool:
    """Whether an area (H, W) bool is nothing but lines, as soft edges are."""
    inner = cv2.erode(area.astype(np.uint8), np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return not inner.any()


def _obvious(values: Values, path: str | Path, background: int) -> np.ndarray:
    """The lungs of a label map: two labels side by side, or one label whose two parts are. Says which it took.

    Raises:
        RadiographError: no label, or more than one choice, looks like the two lungs.
    """
    numbers = [number for number in range(len(values.names)) if number != background and (values.index == number).any()]
    areas = {number: values.index == number for number in numbers}
    names = [values.names[number] for number in numbers]
    numbers = [number for number in numbers if not _thin(areas[number])] or numbers  # VOC draws outlines in label 255
    found: list[tuple[int, ...]] = [(number,) for number in numbers if _two_lungs(*_parts(areas[number]))]
    if not found:
        pairs = [(a, b) for at, a in enumerate(numbers) for b in numbers[at + 1 :]]
        found = _tallest([pair for pair in pairs if _two_lungs(areas[pair[0]], areas[pair[1]])], areas)
    if len(found) != 1:
        raise RadiographError(
            path,
            f"the mask holds the labels {_listed(names)}, and which of them are the lungs isn't clear. Name them, such "
            f"as --mask-labels {','.join(names[:2])}",
            "mask_labels",
        )
    taken = [values.names[number] for number in found[0]]
    others = [name for name in names if name not in taken]
    text = f"masks hold the labels {_listed(names)}: {' and '.join(taken)} read as the lungs" + (
        f", {_listed(others)} left out" if others else ""
    )
    if text not in _advised:
        _advised.add(text)
        log.warning("%s (such as %s). Others: --mask-labels", text, Path(path).name)
    return np.isin(values.index, found[0]).astype(np.uint8)


def _tallest(pairs: list[tuple[int, int]], areas: dict[int, np.ndarray]) -> list[tuple[int, ...]]:
    """The pair whose lower part is clearly higher than that of any other pair: a lung and the heart make one too."""

    def height(pair: tuple[int, int]) -> int:
        return min(int(np.ptp(np.flatnonzero(areas[number].any(axis=1)))) for number in pair)

    ranked = sorted(pairs, key=height, reverse=True)
    clear = len(ranked) < 2 or height(ranked[0]) > 1.1 * height(ranked[1])
    return list(ranked[:1] if clear else ranked)


def _parts(area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two largest connected parts of an area, empty where it has fewer."""
    count, index, stats, _ = cv2.connectedComponentsWithStats(area.astype(np.uint8))
    order = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable") if count > 1 else np.array([], int)
    return tuple(index == order[at] if at < len(order) else np.zeros_like(area, bool) for at in (0, 1))  # type: ignore[return-value]


def _two_lungs(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two areas (H, W) bool lie as two lungs do: side by side, both tall, neither much the smaller."""
    sizes = sorted((int(first.sum()), int(second.sum())))
    if sizes[0] < _SHARE * sizes[1] or not sizes[0]:
        return False
    spans = []
    for area in (first, second):
        rows, columns = np.flatnonzero(area.any(axis=1)), np.nonzero(area)[1]
        if rows[-1] - rows[0] + 1 < _TALL * area.shape[0]:
            return False
        spans.append((rows[0], rows[-1], *np.quantile(columns, (0.1, 0.5, 0.9))))
    left, right = sorted(spans, key=lambda span: span[3])
    shared = min(left[1], right[1]) - max(left[0], right[0])
    lower = min(left[1] - left[0], right[1] - right[0])
    return bool(left[4] <= right[2] + 0.02 * first.shape[1] and shared > 0.5 * lower)


def side_by_side(mask: np.ndarray) -> bool:
    """Whether the two largest parts of a mask (H, W) lie as two lungs do."""
    return _two_lungs(*_parts(mask.astype(bool)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def fault_of(mask: np.ndarray) -> str:
    """What is wrong with a lung mask (H, W) 0 or 1, as a mask to learn from; "" where nothing is."""
    share = float(mask.mean())
    if share == 0:
        return "the mask is empty"
    if share == 1:
        return "the mask is full: every pixel counts as lung"
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    if edge.mean() > 0.6 and share > 0.4:
        return "the mask looks inverted: the lungs are 0 and what is outside them isn't. Turn it round"
    columns = np.flatnonzero(mask.any(axis=0))
    middle = mask.shape[1] / 2
    right_half = float(mask[:, int(middle) :].sum() / mask.sum())
    if not 0.02 < right_half < 0.98 and columns[-1] - columns[0] < 0.6 * mask.shape[1]:
        return "the mask holds one lung only. Join it with the other's (columns mask_left and mask_right)"
    return ""


def forget_advice() -> None:
    """Let the messages on labels be given again: once per command is enough."""
    _advised.clear()
