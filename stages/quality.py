"""Quality: which films cannot be judged, why, and what to do about it.

The yardstick is the films of the training. Film and lung mask, cut to the box around the lungs and shrunk to 32 px, are
compared with theirs by principal components, as faces once were (Turk and Pentland 1991): what is no upright frontal
chest X-ray lies off the subspace that these span. No picture of anything else takes part in the fit, so that what
nobody thought of is refused too. A film found unlike is turned and inverted, to see whether that mends it; its code
says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np

from cxr_pipeline.data.content import MANY_LEVELS
from cxr_pipeline.data.geometry import Frame, bounding_box
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.models.store import QUALITY_FILE, WeightsError

SIDE = 32  # of the lung box as it is compared, in pixels
MIN_SIDE = 96  # pixels; what the weights of a segmentation decide comes first
_MARGIN = 0.15  # added to the lung box, so that diaphragm, apices and chest wall are seen
_BLACK, _WHITE = 2.5 / 255, 252.5 / 255  # a grey level beyond is clipped
_MOST_CLIPPED = 0.2  # share of the lungs that raises a warning. Films of the training: 2 of 1,000 over 0.034
_LOST = 0.5  # share of the lungs past which hardly anything is left to judge
# Area of the smaller lung by that of the larger, under which a lung that touches the film's edge is mostly off it.
# Films with TB cropped close to the lungs have 0.6 to 1 there; halves of films 0 to 0.3.
_BOTH_LUNGS = 0.35
# Share of the lung box's width along which lung touches that edge of a film cut through both lungs; of 17,582 films of
# hospitals, trimmed ones have up to 0.59 and 0.41.
_THROUGH = {"top": 0.65, "bottom": 0.5}
_SHAPES = (0.58, 1.4)  # height by width of the lung box of whole films, 998 of 1,000; a film cut through is beyond
# Grey levels under which lungs are no more than an outline. Films of the training: 2 of 1,000 under 50 in the lungs; of
# 9,440 films of seven sources, none under 97 in all of it.
_LEVELS = MANY_LEVELS
_MIRRORED = -3.0  # log odds. Test films of adults below it: 2 of 792, one a dextrocardia; mirrored ones: 221 of 238
_CLEARLY = 1.5  # unlikeness past which bad exposure explains nothing: badly exposed films 0.7 to 1.4, photos 1.3 to 9

# What each code means; the sentence in results.csv adds what was measured and what is allowed.
CODES = {
    "no_lungs": "too little lung was found",
    "no_chest": "no frontal chest X-ray: a photo, a CT, another part of the body",
    "lateral": "a chest seen from the side",
    "turned": "a chest film turned by 90, 180 or 270 degrees",
    "inverted": "a chest film with black and white exchanged",
    "cut_off": "the lungs reach beyond the film: a warning while both are mostly on it, a refusal where one is not",
    "exposure": "the lungs are clipped to black or white, or hold hardly any grey levels: a warning up to half of them",
    "too_small": "too few pixels",
    "child": "a child, by the age or the birth date in the DICOM header",
    "several_films": "several films on one picture",
    "colour_map": "colours that are no part of a film: a heat map over it or in place of it",
    "mirrored": "left and right exchanged: a warning, never a refusal",
}
EDGES = ("left", "right", "top", "bottom")
FITTED = ("films", "mean", "axes", "spread", "scale", "limit", "edges", "mirror")  # arrays of the file
COMPARED = ("film", "film off", "mask", "mask off", "texture", "doubt")  # the last two by `measure`


class View(NamedTuple):
    """A film as the segmentation saw it, on its square grid (s, s).

    `raw` holds float32 grey levels before they were stretched, `grey` after, `lungs` the lung probability, `mask` uint8
    0/1; `shown` are the rows and columns of the grid that the film covers.
    """

    raw: np.ndarray
    grey: np.ndarray
    lungs: np.ndarray
    mask: np.ndarray
    shown: tuple[slice, slice]


# Grids and what of each the film covers, to their views.
Look = Callable[[list[np.ndarray], list[tuple[slice, slice]]], list[View]]


class Finding(NamedTuple):
    """What keeps a film from being judged: a code of `CODES`, and a sentence."""

    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


def shown(frame: Frame) -> tuple[slice, slice]:
    """The rows and columns of a letterboxed grid that the film covers."""
    per_row, per_column = frame.grid[0] / frame.box.h, frame.grid[1] / frame.box.w
    top, left = max(0, round(-frame.box.y * per_row)), max(0, round(-frame.box.x * per_column))
    rows, columns = max(2, round(frame.native[0] * per_row)), max(2, round(frame.native[1] * per_column))
    return slice(top, top + rows), slice(left, left + columns)


def aligned(view: View) -> np.ndarray | None:
    """Film and mask in the lung box grown by 15 %, (2, 32, 32) float32; None where there is no lung.

    The film is brought to mean 0 and about unit variance, so that exposure does not count.
    """
    box = bounding_box(view.mask)
    if box is None:
        return None
    frame = Frame.crop(view.mask.shape, box.grown(_MARGIN), SIDE)
    grey = frame.to_grid(view.grey)
    grey = (grey - grey.mean()) / (grey.std() + np.float32(0.05))
    return np.stack([grey, frame.to_grid(view.mask.astype(np.float32))])


def measure(view: View) -> dict[str, float]:
    """What is measured on a film without comparing it with others; finite whatever the film.

    Returns:
        `lungs`, share of the film that is lung; `second`, area of the second component by that of the first; `shape`,
        height of the lung box by its width; `doubt`, 1 less the mean lung probability in the mask; `texture`, contrast
        of details under 3 px by that of the film; `left`, `right`, `top`, `bottom`, share of the lung box's side along
        which lung touches that edge of the film; `black` and `white`, share of the lungs that is clipped; `range`, from
        the 1st to the 99th percentile of the lungs' grey levels, as a share of all.
    """
    mask, film, raw = view.mask[view.shown], view.grey[view.shown], view.raw[view.shown]
    area = max(1, int(np.count_nonzero(mask)))
    box = bounding_box(mask)
    width, height = (box.w, box.h) if box is not None else (1.0, 1.0)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    sizes = np.sort(stats[1:, cv2.CC_STAT_AREA])[::-1]
    detail = film - cv2.GaussianBlur(film, (5, 5), 1.5)
    inside = mask > 0
    lungs = raw[inside]
    low, high = np.percentile(lungs, [1, 99]) if lungs.size else (0.0, 0.0)
    return {
        "lungs": float(inside.mean()),
        "second": float(sizes[1] / sizes[0]) if len(sizes) > 1 else 0.0,
        "shape": float(height / width),
        "doubt": float(1 - view.lungs[view.shown][inside].sum() / area),
        "texture": float(detail.std() / (film.std() + 1e-3)),
        "left": float(mask[:, :2].any(axis=1).sum() / height),
        "right": float(mask[:, -2:].any(axis=1).sum() / height),
        "top": float(mask[:2].any(axis=0).sum() / width),
        "bottom": float(mask[-2:].any(axis=0).sum() / width),
        "black": float(np.count_nonzero(lungs < _BLACK) / area),
        "white": float(np.count_nonzero(lungs > _WHITE) / area),
        "range": float(high - low),
    }


def distances(pairs: np.ndarray, fitted: dict[str, np.ndarray]) -> np.ndarray:
    """How far films and masks (N, 2, 32, 32) lie from those of the training, (N, 4) float64.

    For each of the two: the root mean square of the standardized components, and that of what they do not explain.
    """
    columns = []
    for part in (0, 1):
        x = pairs[:, part].reshape(len(pairs), -1).astype(float) - fitted["mean"][part]
        inside = x @ fitted["axes"][part].astype(float).T
        rest = np.maximum((x**2).sum(axis=1) - (inside**2).sum(axis=1), 0) / x.shape[1]
        columns += [np.sqrt(((inside / fitted["spread"][part]) ** 2).mean(axis=1)), np.sqrt(rest)]
    return np.stack(columns, axis=1)


def unlikeness(compared: np.ndarray, fitted: dict[str, np.ndarray]) -> np.ndarray:
    """One figure (N,) of the six in `COMPARED` (N, 6): over 1, a film is unlike those of the training.

    The root mean square of the six, each divided by the training films' 99th percentile.
    """
    return np.sqrt(((compared / fitted["scale"]) ** 2).mean(axis=1)) / float(fitted["limit"])


@dataclass
class Quality:
    """The check that was fitted on the films of a training; `fitted` are the arrays of `stages.quality_fit.fit`."""

    fitted: dict[str, np.ndarray]

    @classmethod
    def load(cls, bundle: Path) -> Quality | None:
        """What the bundle of a segmentation holds; None where nothing was fitted.

        Raises:
            models.store.WeightsError: the file is damaged.
        """
        path = bundle / QUALITY_FILE
        if not path.is_file():
            return None
        try:
            with np.load(path) as arrays:
                return cls({name: arrays[name] for name in FITTED})
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise WeightsError(f"{path} cannot be read ({error}). Train the stage again") from error

    def unlike(self, view: View, measured: dict[str, float]) -> float:
        """How unlike the training films a film is; over 1 it cannot be judged. Infinite without lungs."""
        pair = aligned(view)
        if pair is None:
            return float("inf")
        four = distances(pair[None], self.fitted)
        six = np.concatenate([four, [[measured["texture"], measured["doubt"]]]], axis=1)
        return float(unlikeness(six, self.fitted)[0])

    def findings(self, film: Radiograph, view: View, look: Look) -> tuple[list[Finding], list[Finding]]:
        """What keeps a film from being judged, the weightiest first; and what a reader should know besides.

        Args:
            film: as read.
            view: as the segmentation saw it.
            look: segments further grids, for turned and inverted copies of the film; called only for one that is unlike
                those of the training.
        """
        measured = measure(view)
        unlike = self.unlike(view, measured)
        exposed = _few_levels(film) or _exposure(measured, film.bits)
        if unlike > 1:
            explained = exposed if unlike <= _CLEARLY else None
            return [explained or self._unlike(view, measured, unlike, look)], []
        reasons: list[Finding] = []
        hints = self._mirrored(view)
        if exposed is not None:
            (hints if _still_shows(measured, film) else reasons).append(exposed)
        touching = self._cut_off(measured)
        if touching is not None:
            # A refusal must not follow the disease: films with TB are often cropped close to the lungs, and of 583 of
            # them 7 % were refused for it, of 715 normal ones 0.1 %.
            (hints if _mostly_shown(measured) else reasons).append(touching)
        return reasons, hints

    def _cut_off(self, measured: dict[str, float]) -> Finding | None:
        shares = np.array([measured[edge] for edge in EDGES])
        worst = int(np.argmax(shares / self.fitted["edges"]))
        if shares[worst] <= self.fitted["edges"][worst]:
            return None
        return Finding(
            "cut_off",
            f"lung touches the {EDGES[worst]} edge of the film along {100 * shares[worst]:.0f} % of the lung box's "
            f"side, at most {100 * self.fitted['edges'][worst]:.0f} % is usual. A film with both "
            "lungs whole shows more",
        )

    def _unlike(self, view: View, measured: dict[str, float], unlike: float, look: Look) -> Finding:
        """The code of a film unlike those of the training, by what would mend it, and else by its lungs."""
        basis = f"({unlike:.2f} times what is allowed)" if np.isfinite(unlike) else "(no lungs were found)"
        inverted = np.zeros_like(view.raw)
        inverted[view.shown] = 1 - view.raw[view.shown]
        copies = [inverted, *(np.ascontiguousarray(np.rot90(view.raw, k)) for k in (1, 2, 3))]
        places = [view.shown, view.shown[::-1], view.shown, view.shown[::-1]]  # the film is centred on its grid
        scores = [self.unlike(other, measure(other)) for other in look(copies, places)]
        best = int(np.argmin(scores))
        if scores[best] <= 1:
            better = f"{scores[best]:.2f} of what is allowed"
            if best == 0:
                return Finding(
                    "inverted",
                    f"the film is unlike a chest X-ray {basis}, and like one with black and white exchanged ({better})"
                    ". Invert it",
                )
            turn = ("90 degrees anticlockwise", "180 degrees", "90 degrees clockwise")[best - 1]
            return Finding(
                "turned",
                f"the film is unlike an upright chest X-ray {basis}, and like one turned by {turn} ({better}"
                f"). Turn it by {turn}",
            )
        film_like = measured["texture"] < 0.15 and measured["doubt"] < 0.2 and measured["lungs"] > 0.1
        touching = self._cut_off(measured)
        if film_like and touching is not None:
            return touching
        if film_like and measured["second"] < 0.3 and measured["shape"] > 1.1:
            if measured["doubt"] < 0.055:
                return Finding(
                    "cut_off",
                    f"a single lung was found, in a film unlike a chest X-ray {basis}. "
                    "Give a film that shows both lungs whole",
                )
            return Finding(
                "lateral",
                f"a single lung field was found, {measured['shape']:.1f} times as high as wide, in a film "
                f"unlike a frontal chest X-ray {basis}. Give the frontal film",
            )
        return Finding(
            "no_chest",
            f"film and lungs are unlike those of {int(self.fitted['films'])} chest X-rays {basis}. "
            "Give an upright frontal chest X-ray",
        )

    def _mirrored(self, view: View) -> list[Finding]:
        pair = aligned(view)
        if pair is None:
            return []
        odds = float((pair - pair[..., ::-1]).ravel() @ self.fitted["mirror"].astype(float))
        if odds >= _MIRRORED:
            return []
        return [
            Finding(
                "mirrored",
                f"heart and lungs look as if left and right were exchanged (log odds {odds:.1f}, under {_MIRRORED:g} "
                "is said). Compare with the side marker: a mirrored film gets its sides wrong",
            )
        ]


def by_header(film: Radiograph, min_side: int, min_age: float | None) -> list[Finding]:
    """What speaks against a film before its pixels are looked at.

    Args:
        min_side: pixels that the shorter side needs.
        min_age: years under which a patient counts as a child; None judges children too. WHO recommends computer-aided
            reading for TB from 15 years on (2021). An age of 000Y says nothing: some archives write it where they took
            the age out, and newborns come in days, weeks or months.
    """
    found = []
    height, width = film.size
    if min(height, width) < min_side:
        found.append(
            Finding(
                "too_small", f"the film is {width}x{height} pixels, and {min_side} a side are needed. Export it larger"
            )
        )
    found += [Finding(code, reason) for code, reason in film.meta.get("against", ())]  # see data.content
    # DICOM's View Position (0018,5101): LL and RL are laterals (PS3.3 C.8.7.1.1). The reader looks at other tags too.
    view = str(film.meta.get("view", "")).upper()
    lateral = film.meta.get("lateral") or (f"its view position is {view}" if view in ("LL", "RL") else "")
    if lateral:
        found.append(Finding("lateral", f"{lateral}. Give the frontal film, PA or AP"))
    age = film.meta.get("age_years")
    if min_age is not None and age and age < min_age:
        found.append(
            Finding(
                "child",
                f"the patient is {age:.2g} years old by the DICOM header, and the weights are for adults: at least "
                f"{min_age:g} years are needed. Use weights trained on children, with segment.min_age set to null",
            )
        )
    return found


def _few_levels(film: Radiograph) -> Finding | None:
    """What speaks against a film of 1 to 3 bits. On the network's grid, grey levels in between would hide it."""
    levels = film.grey_levels
    if levels >= _LEVELS:
        return None
    return Finding(
        "exposure",
        f"the film holds {levels} grey levels, at least {_LEVELS} are needed. Export it as grey with 8 bits or more",
    )


def _mostly_shown(measured: dict[str, float]) -> bool:
    """Whether a film on which lung touches an edge still shows most of both lungs."""
    return (
        measured["second"] >= _BOTH_LUNGS
        and _SHAPES[0] <= measured["shape"] <= _SHAPES[1]
        and all(measured[edge] <= limit for edge, limit in _THROUGH.items())
    )


def _still_shows(measured: dict[str, float], film: Radiograph) -> bool:
    """Whether badly exposed lungs can still be judged: at most half is clipped, and they hold enough grey levels."""
    if _few_levels(film) or measured["range"] * (2**film.bits - 1) < _LEVELS:
        return False
    return max(measured["black"], measured["white"]) <= _LOST


def _exposure(measured: dict[str, float], bits: int) -> Finding | None:
    for which, word in (("black", "darker"), ("white", "brighter")):
        if measured[which] > _MOST_CLIPPED:
            return Finding(
                "exposure",
                f"{100 * measured[which]:.0f} % of the lungs are clipped to {which}, at most {100 * _MOST_CLIPPED:.0f} "
                f"% are allowed: the film shows nothing {word} there. Export it with a wider window, or take it again",
            )
    levels = measured["range"] * (2**bits - 1)
    if measured["lungs"] > 0 and levels < _LEVELS:
        return Finding(
            "exposure",
            f"the lungs hold {levels:.0f} grey levels, at least {_LEVELS} are needed. Export it with its full range",
        )
    return None
