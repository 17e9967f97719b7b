"""Whether a picture is one film, in a film's own grey: by its pixels alone, without a network.

A film is grey, or tinted as a whole (sepia, the blue of film base). A heat map has many hues, or colours a part of the
film whatever its brightness. Plates, letters and arrows in colour are small, or lie at the edge.
"""

from __future__ import annotations

import cv2
import numpy as np

from cxr_pipeline.data.seams import seam

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_SIDE = 256  # pixels of the longer side on which colours are looked at
_CHROMA = 24 / 255  # a pixel whose channels differ by more is coloured; JPEG makes up to 12 of grey
_CENTRE = 0.15  # of each side that does not belong to the middle of the picture
_HEAT = 0.04  # share of the middle that is coloured: plates and arrows stay below
_LINE = 0.04  # of the longer side: what is thinner is a frame, an arrow or a letter
_HUES = 8.0  # degrees; a tint spreads less around its hue. Sepia and film base: 0 to 3; heat maps: 9 and more
_TINT = 0.15  # share of the colour that brightness does not explain. Tints: under 0.05; coloured regions: 0.5 and more
# Chroma by brightness, at the level where that is most. A film's dark parts are dark, so that tints stay below: film
# base and bone 0.5, copper 0.9, sepia 1.0. Maps of one hue (Reds, Blues, Greens) run from white to a dark colour: 1.5
# and more.
_STRONG = 1.45
_FAINT, _FAINT_HUES, _FAINT_TINT = 0.6, 30.0, 0.025  # of a faint tint that changes its hue from dark to bright, as bone
_PLATE = 0.001  # share of the picture in colour that a reader is told of
_SAMPLED = 128  # rows and columns of a film, at most, in which its grey levels are counted
MANY_LEVELS = 16  # nobody asks how many more a film has


def findings(pixels: np.ndarray, colour: np.ndarray | None) -> tuple[list[tuple[str, str]], list[str]]:
    """What speaks against judging a picture as a film, as pairs of a code and a sentence; and warnings.

    Args:
        pixels: (H, W) float32 in [0, 1].
        colour: (h, w, 3) uint8 RGB, a copy of at most 512 px; None where the picture is grey.
    """
    reasons = []
    if (where := seam(pixels)) is not None:
        reasons.append(
            (
                "several_films",
                f"a seam ({where}) runs through the middle of the picture, with contents on both sides: it shows two "
                "films. Give each as a file of its own",
            )
        )
    of_colour, remarks = _by_colour(colour) if colour is not None else ([], [])
    return [*reasons, *of_colour], remarks


def levels_in(pixels: np.ndarray) -> int:
    """How many grey levels a sample of a film (H, W) has; of films with `MANY_LEVELS` or more, at least so many."""
    step = -(-max(pixels.shape) // _SAMPLED)
    sample = pixels[::step, ::step]
    some = len(np.unique(sample[::8]))  # enough on nearly all films, and sorting a part takes an eighth
    return some if some >= MANY_LEVELS else len(np.unique(sample))


def _by_colour(colour: np.ndarray) -> tuple[list[tuple[str, str]], list[str]]:
    measured = colours(colour)
    if measured["middle"] < _HEAT:
        if measured["all"] < _PLATE:
            return [], []
        return [], [
            f"colour on {100 * measured['all']:.1f} % of the picture (a plate or marks) was taken as its brightness"
        ]
    if _is_tint(measured):
        return [], ["the film is tinted: its brightness was judged"]
    return [
        (
            "colour_map",
            f"{100 * measured['middle']:.0f} % of the middle of the picture is coloured, as by a heat map over a film "
            "or in place of it. Give the film itself, in grey",
        )
    ], []


def _is_tint(measured: dict[str, float]) -> bool:
    """Whether a film is tinted as a whole: its colours follow brightness, and leave dark parts dark."""
    hues, strength, unexplained = (measured[name] for name in ("hues", "strength", "unexplained"))
    one_hue = hues <= _HUES and strength <= _STRONG and unexplained <= _TINT
    return one_hue or (hues <= _FAINT_HUES and strength <= _FAINT and unexplained <= _FAINT_TINT)


def colours(picture: np.ndarray) -> dict[str, float]:
    """What is measured on the colours of a picture (h, w, 3) uint8 RGB.

    Returns:
        `all` and `middle`, the shares of the picture and of its middle that are coloured, the latter without lines;
        `hues`, the deviation of the hue in degrees, weighted by chroma; `unexplained`, the share of the colours' energy
        that does not follow from brightness; `strength`, chroma by brightness, at the level where that is most.
    """
    scale = min(1.0, _SIDE / max(picture.shape[:2]))
    if scale < 1:
        size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    rgb = picture.astype(np.float64) / 255
    chroma = rgb.max(axis=2) - rgb.min(axis=2)
    coloured = chroma > _CHROMA
    height, width = coloured.shape
    thick = max(3, round(_LINE * max(height, width)))
    regions = cv2.morphologyEx(coloured.astype(np.uint8), cv2.MORPH_OPEN, np.ones((thick, thick), np.uint8))
    dy, dx = round(height * _CENTRE), round(width * _CENTRE)
    middle = regions[dy : height - dy, dx : width - dx]
    smooth = cv2.blur(rgb, (5, 5))  # a scanner's noise is no colour, and a heat map is smooth
    return {
        "all": float(coloured.mean()),
        "middle": float(middle.mean()),
        "hues": _hue_deviation(smooth[coloured]),
        "unexplained": _unexplained(smooth),
        "strength": _strength(smooth),
    }


def _hue_deviation(rgb: np.ndarray) -> float:
    """The circular standard deviation of the hue of pixels (N, 3), weighted by chroma, in degrees."""
    red, green, blue = rgb.T
    across, up = red - (green + blue) / 2, np.sqrt(0.75) * (green - blue)
    length = np.hypot(across, up)
    if length.sum() <= 0:
        return 0.0
    mean = np.hypot(across.sum(), up.sum()) / length.sum()
    return float(np.degrees(np.sqrt(-2 * np.log(np.clip(mean, 1e-9, 1)))))


def _strength(rgb: np.ndarray) -> float:
    """Mean chroma by mean brightness in the step of brightness where that is most; steps that are nearly black, or hold
    under 0.5 % of the picture, don't count."""
    luma, chroma = (rgb @ _LUMA).ravel(), rgb.max(axis=2) - rgb.min(axis=2)
    step = np.minimum((luma * 32).astype(int), 31)
    counts = np.bincount(step, minlength=32)
    usable = (np.arange(32) >= 4) & (counts >= max(1, 0.005 * luma.size))
    if not usable.any():
        return 0.0
    return float((np.bincount(step, chroma.ravel(), 32)[usable] / np.bincount(step, luma, 32)[usable]).max())


def _unexplained(rgb: np.ndarray) -> float:
    """The share of the energy of the two colour differences that varies within steps of equal brightness."""
    luma = rgb @ _LUMA
    differences = np.stack([rgb[..., 0] - luma, rgb[..., 2] - luma], axis=-1).reshape(-1, 2)
    step = np.minimum((luma.ravel() * 32).astype(int), 31)
    counts = np.maximum(np.bincount(step, minlength=32), 1)
    within = 0.0
    for channel in differences.T:
        means = np.bincount(step, channel, 32) / counts
        within += float(((channel - means[step]) ** 2).sum())
    return within / max(float((differences**2).sum()), 1e-12)
