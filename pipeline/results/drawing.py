"""The overlay that a person looks at: the film with its lung outline, translucent heat and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.data.geometry import resize
from cxr_pipeline.results.heat import heat_at
from cxr_pipeline.stages.base import Record, Region
from cxr_pipeline.stages.decisions import AT_THRESHOLD, shown

LONGEST, SHORTEST = 1024, 512  # the overlay's long side, in pixels: larger films shrink, smaller ones grow
NOTICE = "research use only"

_LUNGS, _BOX, _TEXT = (200, 180, 60), (0, 220, 255), (225, 225, 225)  # BGR; the report's style sheet has them too
HEAT = 0.5  # opacity of the strongest heat on a certain finding
FAINT = 0.15  # heat below this share of the maximum is not drawn: it would tint the whole film
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def overlay(record: Record) -> np.ndarray:
    """The overlay of a film that has at least a mask or an answer.

    The film keeps its aspect ratio and starts at the overlay's top-left corner; a strip with the result and the notice
    lies below it. Grey levels are stretched from the 0.5th to the 99.5th percentile, for looking only. A heat map's
    maximum is 1 however weak the evidence, so its opacity also follows the probability that it speaks for.

    Returns:
        (h, w, 3) uint8 in OpenCV's BGR order, long side 512 to 1024.
    """
    height, width = record.film.size
    h, w, strip = layout(height, width)
    canvas = cv2.cvtColor(stretched(resize(record.film.pixels, h, w)), cv2.COLOR_GRAY2BGR)
    heat = heat_at(record, h, w)
    if heat is not None:
        _draw_heat(canvas, heat, _certainty(record))
    if record.mask is not None:
        lungs = resize(record.mask, h, w) > 0  # 0 and 1: the mean of an area, rounded
        outlines, _ = cv2.findContours(lungs.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, _LUNGS, max(1, round(max(h, w) / 700)), cv2.LINE_AA)
    for region in record.regions or []:
        _draw_region(canvas, region, w / width, h / height)
    return np.vstack([canvas, _caption(record, w, strip)])


def layout(height: int, width: int) -> tuple[int, int, int]:
    """Height and width that a film of (height, width) has in its overlay, and the height of the strip below it."""
    strip = max(18, round(0.03 * min(LONGEST, max(SHORTEST, height, width))))
    scale = min(max(1.0, SHORTEST / max(height, width)), LONGEST / width, (LONGEST - strip) / height)
    return max(1, round(height * scale)), max(1, round(width * scale)), strip


def stretched(film: np.ndarray) -> np.ndarray:
    """A film (H, W) float as uint8, from its 0.5th to its 99.5th percentile: for looking only."""
    step = max(1, round((film.size / 50_000) ** 0.5))  # sorting a part of the pixels tells the same
    low, high = np.percentile(film[::step, ::step], [0.5, 99.5])
    scale = 255 / max(high - low, 1e-3)  # one pass of OpenCV in place of five of numpy: a third of the time
    return cv2.convertScaleAbs(np.clip(film, low, low + 255 / scale), alpha=scale, beta=-low * scale)


def _certainty(record: Record) -> float:
    """The probability of what the heat map shows: of its class, as far as a stage says it, else of the regions' one.

    To four digits, as results.csv has it: the last bits of a network depend on how many films it saw at once and on how
    many cores, and must not move a pixel.
    """
    if record.heatmap_label and record.probabilities:
        return round(record.probabilities[record.heatmap_label], 4)
    if record.regions and record.probabilities:
        return round(record.probabilities[record.regions[0].label], 4)
    return round((record.tb_score or 0.0) / 100.0, 4)


def _draw_heat(canvas: np.ndarray, heat: np.ndarray, certainty: float) -> None:
    colours = cv2.applyColorMap(cv2.convertScaleAbs(heat, alpha=255), cv2.COLORMAP_TURBO)
    opacity = (HEAT * certainty * np.clip((heat - FAINT) / (1 - FAINT), 0, 1)).astype(np.float32)
    canvas[:] = cv2.blendLinear(canvas, colours, 1 - opacity, opacity)


def _draw_region(canvas: np.ndarray, region: Region, across: float, down: float) -> None:
    h, w = canvas.shape[:2]
    line = max(1, round(max(h, w) / 500))
    x0, y0 = round(region.box.x * across), round(region.box.y * down)
    x1, y1 = round((region.box.x + region.box.w) * across) - 1, round((region.box.y + region.box.h) * down) - 1
    cv2.rectangle(canvas, (x0, y0), (max(x0, x1), max(y0, y1)), _BOX, line)
    text = f"{region.label} {region.side} {region.zone} {region.score:.2f}"
    size = max(0.35, max(h, w) / 2000)
    (tw, th), base = cv2.getTextSize(text, _FONT, size, 1)
    pad = 3
    x = min(max(x0, 0), max(0, w - tw - 2 * pad))
    y = y0 - line if y0 - line >= th + base + 2 * pad else min(h, y1 + th + base + 2 * pad + line)  # above, else below
    cv2.rectangle(canvas, (x, y - th - base - 2 * pad), (x + tw + 2 * pad, y), (0, 0, 0), cv2.FILLED)
    cv2.putText(canvas, text, (x + pad, y - base - pad), _FONT, size, _BOX, 1, cv2.LINE_AA)


def _caption(record: Record, width: int, height: int) -> np.ndarray:
    return strip_of(sentences(record), width, height)


def strip_of(results: Sequence[str], width: int, height: int) -> np.ndarray:
    """The strip below the film: result on the left, notice on the right; in a narrow one the result gives way.

    Args:
        results: ways to say it, the longest first.
    """
    strip = np.full((height, width, 3), 24, np.uint8)
    size = 0.024 * height
    notice = _width(NOTICE, size)
    if notice > width:
        size, notice = size * width / notice, width
    y, gap = height - (height - round(22 * size)) // 2, 6
    cv2.putText(strip, NOTICE, (max(0, width - notice - gap), y), _FONT, size, _TEXT, 1, cv2.LINE_AA)
    room = width - notice - 3 * gap
    result = next((text for text in results if _width(text, size) <= room), results[-1])
    if _width(result, size) > room:
        while result and _width(result + "..", size) > room:
            result = result[:-1]
        result += ".." if result else ""
    cv2.putText(strip, result, (gap, y), _FONT, size, _TEXT, 1, cv2.LINE_AA)
    return strip


def _width(text: str, size: float) -> int:
    return cv2.getTextSize(text, _FONT, size, 1)[0][0]


def sentences(record: Record) -> list[str]:
    """What the caption says, the longest form first."""
    if not record.ok:
        return [f"{record.status}: {record.error}"]
    if record.label is None:
        return [f"lungs {100 * (record.lung_fraction or 0):.0f} % of the film"]
    if record.tb_score is None:
        return _several(record)
    return answers(record.label, record.screen, shown(record.tb_score), record.extra)


def answers(label: str, screen: str | None, score: float, extra: dict[str, Any]) -> list[str]:
    """What the caption says of a film with one class, the longest form first.

    Args:
        score: as results.csv has it. extra: of the record: `positive`, and `cutoff` where a person set one.
    """
    cutoff = extra.get("cutoff", AT_THRESHOLD)
    name = extra.get("positive", "TB")
    if screen is None:
        return [f"likeliest {label}; {name} score {score:.1f} of 100", f"{label}, {name} {score:.1f}"]
    return [
        f"screen {screen}: {name} score {score:.1f}, threshold {cutoff:g}; likeliest {label}",
        f"screen {screen}: {name} {score:.1f} (from {cutoff:g}); {label}",
        f"{screen}: {name} {score:.1f}; {label}",
        f"{screen}, {score:.1f}",
    ]


def _several(record: Record) -> list[str]:
    """The labels of a film that may have several, the likeliest first: all of them, then "A, B +5", at last "A +6".

    Where the heat map is of another label than the first, that is said too.
    """
    p = {name: round(value, 4) for name, value in (record.probabilities or {}).items()}  # as results.csv has them
    names = sorted(filter(None, (record.label or "").split("|")), key=lambda name: -p[name])
    forms = [", ".join(names) or "none of the findings"]
    forms += [f"{', '.join(names[:count])} +{len(names) - count}" for count in range(len(names) - 1, 0, -1)]
    heat = record.heatmap_label
    return forms if heat is None or heat in names[:1] else [f"{form}; heat: {heat}" for form in forms]
