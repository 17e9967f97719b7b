"""The overlay that a person looks at: the film with lung outline, translucent heat and boxes, over a strip of words.

The strip says the answer and the score against its threshold, what the colours mean, which file it is of, and what made
it when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.data.geometry import bounding_box, resize
from cxr_pipeline.data.names import printable
from cxr_pipeline.results import lettering
from cxr_pipeline.results.heat import heat_at
from cxr_pipeline.stages.base import Record, Region
from cxr_pipeline.stages.scores import AT_THRESHOLD, shown
from cxr_pipeline.texts import ENGLISH, Texts

LONGEST, SHORTEST = 1024, 512  # the overlay's long side, in pixels: larger films shrink, smaller ones grow
NOTICE = "research use only"

_LUNGS, _BOX = (200, 180, 60), (0, 220, 255)  # BGR; the report's style sheet has them too
_TEXT, _QUIET = (235, 235, 235), (175, 175, 175)
HEAT = 0.5  # opacity of the strongest heat on a certain finding
FAINT = 0.15  # heat below this share of the maximum is not drawn: it would tint the whole film
_GROUND = 24  # grey of the strip
_MARGIN = 6  # pixels between words and borders


@dataclass(frozen=True)
class Made:
    """What made an overlay, for its strip: the film's file name, the day, weights and version, as far as known."""

    file: str = ""
    date: str = ""
    weights: str = ""
    version: str = ""
    language: str = "en"

    @classmethod
    def of(cls, file: str, about: Mapping[str, Any], version: str) -> Made:
        """From what run.json says of a run. `file` may be a path."""
        name = printable(file.replace("\\", "/").rsplit("/", 1)[-1])
        weights = str(about.get("weights", "")).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
        return cls(name, str(about.get("date", "")), weights, version, str(about.get("language", "en")))

    @property
    def say(self) -> Texts:
        """The texts of the strip: English where no font has the letters of the language."""
        said = Texts(self.language)
        letters = "".join(said(text) for text in (NOTICE, "screen {screen}", "strong"))
        return said if lettering.readable(letters) else ENGLISH

    def forms(self, say: Texts) -> list[str]:
        """What the strip says of it, the longest form first."""
        weights = f"{say('weights')} {self.weights}" if self.weights else ""
        by = f"cxr-pipeline {self.version}" if self.version else ""
        parts = [self.file, self.date, weights, by]
        ways = (parts, [self.file, self.date, self.weights, self.version], [self.file, self.date], [self.file])
        return [" · ".join(filter(None, way)) for way in ways]


@dataclass(frozen=True)
class Caption:
    """The words of a strip: ways to say the result, the longest first; what made it; the class of the heat, if any."""

    results: Sequence[str]
    made: Made = Made()
    heat: str | None = None


def overlay(record: Record, made: Made | None = None) -> np.ndarray:
    """The overlay of a film that has at least a mask or an answer.

    The film keeps its aspect ratio and starts at the overlay's top-left corner; a strip with the result and the notice
    lies below it. Grey levels are stretched from the 0.5th to the 99.5th percentile, for looking only. A heat map's
    maximum is 1 however weak the evidence, so its opacity also follows the probability that it speaks for.

    Args:
        made: for the strip; by default nothing is said of it, and in English.

    Returns:
        (h, w, 3) uint8 in OpenCV's BGR order, long side 512 to 1024.
    """
    made = made or Made()
    say = made.say
    height, width = record.film.size
    h, w, strip = layout(height, width)
    canvas = cv2.cvtColor(resize(record.film.shown, h, w), cv2.COLOR_GRAY2BGR)
    heat = heat_at(record, h, w)
    if heat is not None:
        _draw_heat(canvas, heat, _certainty(record))
    if record.mask is not None:
        # Of a mask that shrinks single pixels do: its outline is smooth, and to look at all of them takes ten times as
        # long. One that grows is 0 and 1: means, rounded.
        lungs = resize(record.mask, h, w, nearest=h < height) > 0
        outlines, _ = cv2.findContours(lungs.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, _LUNGS, max(1, round(max(h, w) / 700)), cv2.LINE_AA)
    _draw_sides(canvas, say)
    for number, region in enumerate(record.regions or [], 1):
        _draw_region(canvas, region, number, w / width, h / height, say)
    caption = Caption(sentences(record, say), made, heat_class(record) if heat is not None else None)
    return np.vstack([canvas, strip_of(caption, w, strip)])


def layout(height: int, width: int) -> tuple[int, int, int]:
    """Height and width that a film of (height, width) has in its overlay, and the height of the strip below it."""
    strip = 2 * max(18, round(0.026 * min(LONGEST, max(SHORTEST, height, width))))
    scale = min(max(1.0, SHORTEST / max(height, width)), LONGEST / width, (LONGEST - strip) / height)
    return max(1, round(height * scale)), max(1, round(width * scale)), strip


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
    box = bounding_box(heat > FAINT)  # elsewhere nothing is drawn
    if box is None:
        return
    part = slice(int(box.y), int(box.y + box.h)), slice(int(box.x), int(box.x + box.w))
    heat = heat[part]
    colours = cv2.applyColorMap(cv2.convertScaleAbs(heat, alpha=255), cv2.COLORMAP_TURBO)
    opacity = (HEAT * certainty * np.clip((heat - FAINT) / (1 - FAINT), 0, 1)).astype(np.float32)
    canvas[part] = cv2.blendLinear(canvas[part], colours, 1 - opacity, opacity)


def heat_class(record: Record) -> str:
    """The class that a film's heat map is of; empty where no stage says it."""
    return record.heatmap_label or (record.regions[0].label if record.regions else "")


def _draw_sides(canvas: np.ndarray, say: Texts) -> None:
    """The patient's sides in the upper corners, as a chest film is hung: the right one on the left of the picture."""
    h, w = canvas.shape[:2]
    size = max(14, round(max(h, w) / 34))
    for text, side in ((say("R (right side)"), 0), (say("L (left side)"), 1)):
        letter = text.split(" ")[0]
        x = w - _MARGIN - lettering.width(letter, size) if side else _MARGIN
        _outlined(canvas, letter, x, _MARGIN + size, size, _LUNGS)


def _outlined(canvas: np.ndarray, text: str, x: int, y: int, size: int, colour: tuple[int, int, int]) -> None:
    for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        lettering.write(canvas, text, x + dx, y + dy, size, (0, 0, 0))
    lettering.write(canvas, text, x, y, size, colour)


def _draw_region(
    canvas: np.ndarray, region: Region, number: int, across: float, down: float, say: Texts = ENGLISH
) -> None:
    h, w = canvas.shape[:2]
    line = max(1, round(max(h, w) / 500))
    x0, y0 = round(region.box.x * across), round(region.box.y * down)
    x1, y1 = round((region.box.x + region.box.w) * across) - 1, round((region.box.y + region.box.h) * down) - 1
    cv2.rectangle(canvas, (x0, y0), (max(x0, x1), max(y0, y1)), _BOX, line)
    text = f"{number}: {region.label} {say(region.side)} {say(region.zone)} {region.score:.2f}"
    size, pad = max(12, round(max(h, w) / 66)), 4
    tw, th = lettering.width(text, size), round(1.05 * size)
    x = min(max(x0, 0), max(0, w - tw - 2 * pad))
    y = y0 - line if y0 - line >= th + 2 * pad else min(h, y1 + th + 2 * pad + line)  # above, else below
    cv2.rectangle(canvas, (x, y - th - 2 * pad), (x + tw + 2 * pad, y), (0, 0, 0), cv2.FILLED)
    lettering.write(canvas, text, x + pad, y - pad - round(0.2 * size), size, _BOX)


def strip_of(caption: Caption, width: int, height: int) -> np.ndarray:
    """The strip (height, width, 3) below a film; in a narrow one the result gives way to the notice, the scale goes.

    Above: result, notice. Below: what made it, and the scale of the heat's colours.
    """
    strip = np.full((height, width, 3), _GROUND, np.uint8)
    say, row = caption.made.say, height // 2
    size = round(0.62 * row)
    notice = say(NOTICE)
    own = size
    while own > 7 and lettering.width(notice, own) > width - 2 * _MARGIN:
        own -= 1
    taken = lettering.width(notice, own)
    y = round(0.5 * row + 0.36 * size)
    lettering.write(strip, notice, max(_MARGIN, width - taken - _MARGIN), y, own, _TEXT)
    _fitting(strip, caption.results, _MARGIN, y, size, width - taken - 4 * _MARGIN)
    small = max(9, round(0.85 * size))
    y += row
    room = width - lettering.width(caption.made.file, small) - 4 * _MARGIN  # the file's name comes first
    used = _scale(strip, caption.heat, y, small, say, room) if caption.heat is not None else 0
    _fitting(strip, caption.made.forms(say), _MARGIN, y, small, width - used - 4 * _MARGIN, _QUIET)
    return strip


def _fitting(
    strip: np.ndarray,
    forms: Sequence[str],
    x: int,
    y: int,
    size: int,
    room: int,
    colour: tuple[int, int, int] = _TEXT,
) -> None:
    """Write the longest of the forms that has room, else the shortest, cut."""
    text = next((form for form in forms if lettering.width(form, size) <= room), forms[-1])
    if lettering.width(text, size) > room:
        while text and lettering.width(text + "..", size) > room:
            text = text[:-1]
        text += ".." if text else ""
    lettering.write(strip, text, x, y, size, colour)


def _scale(strip: np.ndarray, of: str, y: int, size: int, say: Texts, room: int) -> int:
    """Draw the scale of the heat's colours at the right end; returns its width, 0 where there is no room for it."""
    width = strip.shape[1]
    name, low, high = f"{say('heat')} {of}".strip(), say("weak"), say("strong")
    bar, gap = 7 * size, round(0.4 * size)
    taken = sum(lettering.width(text, size) for text in (name, low, high)) + bar + 3 * gap + size
    if taken > room:
        return 0
    x = width - _MARGIN - taken
    lettering.write(strip, name, x, y, size, _QUIET)
    x += lettering.width(name, size) + size
    lettering.write(strip, low, x, y, size, _QUIET)
    x += lettering.width(low, size) + gap
    heat = np.linspace(FAINT, 1, bar, dtype=np.float32)[None].repeat(max(4, round(0.7 * size)), 0)
    colours = cv2.applyColorMap(cv2.convertScaleAbs(heat, alpha=255), cv2.COLORMAP_TURBO)
    top = y - heat.shape[0] + 1
    strip[top : top + heat.shape[0], x : x + bar] = colours
    lettering.write(strip, high, x + bar + gap, y, size, _QUIET)
    return taken


def sentences(record: Record, say: Texts = ENGLISH) -> list[str]:
    """What the caption says, the longest form first."""
    if not record.ok:
        return [f"{say(record.status)}: {say.reason(record.error or '')}"]
    if record.label is None:
        return [say("lungs {share} % of the film", share=f"{100 * (record.lung_fraction or 0):.0f}")]
    if record.tb_score is None:
        return _several(record, say)
    return answers(record.label, record.screen, shown(record.tb_score), record.extra, say)


def answers(label: str, screen: str | None, score: float, extra: Mapping[str, Any], say: Texts = ENGLISH) -> list[str]:
    """What the caption says of a film with one class, the longest form first.

    Args:
        score: as results.csv has it. extra: of the record: `positive`, and `cutoff` where a person set one.
    """
    words = {
        "score": f"{score:.1f}",
        "cutoff": f"{extra.get('cutoff', AT_THRESHOLD):g}",
        "name": extra.get("positive", "TB"),
        "label": label,
    }
    if screen is None:
        long = say("likeliest {label}; {name} score {score} of 100", **words)
        return [long, f"{label}, {words['name']} {score:.1f}", f"{words['name']} {score:.1f}"]
    words["screen"] = say(screen)
    return [
        say("screen {screen}: {name} score {score}, threshold {cutoff}; likeliest {label}", **words),
        say("screen {screen}: {name} {score} (from {cutoff}); {label}", **words),
        f"{words['screen']}: {words['name']} {score:.1f}; {label}",
        f"{words['screen']}, {score:.1f}",
    ]


def _several(record: Record, say: Texts = ENGLISH) -> list[str]:
    """The labels of a film that may have several, the likeliest first: all of them, then "A, B +5", at last "A +6".

    Where the heat map is of another label than the first, that is said too.
    """
    p = {name: round(value, 4) for name, value in (record.probabilities or {}).items()}  # as results.csv has them
    names = sorted(filter(None, (record.label or "").split("|")), key=lambda name: -p[name])
    forms = [", ".join(names) or say("none of the findings")]
    forms += [f"{', '.join(names[:count])} +{len(names) - count}" for count in range(len(names) - 1, 0, -1)]
    heat = record.heatmap_label
    return forms if heat is None or heat in names[:1] else [f"{form}; {say('heat')}: {heat}" for form in forms]
