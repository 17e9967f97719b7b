"""Type on pictures: text set in a font, in place of OpenCV's stroked letters, in which a zero looks like Ø.

The font is DejaVu Sans, which matplotlib brings (Latin, Greek, Cyrillic); without it Pillow's own (Latin). Neither has
Devanagari: the environment variable CXR_FONT names a TrueType file that is asked first. matplotlib is not imported.
"""

from __future__ import annotations

import math
import os
import threading
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageFont

FONT_VARIABLE = "CXR_FONT"
_ABSENT = "\uffff"  # a character that no font has: drawn as the font's sign for that
_own = threading.local()  # a font object is not for several threads at once


def readable(text: str) -> bool:
    """Whether the font has all letters of a text."""
    return all(_has(letter) for letter in set(text) if not letter.isspace())


def width(text: str, size: int) -> int:
    """How wide a text is at `size` pixels, in pixels. What is no character counts as a question mark."""
    text = _sound(text)
    return _set(text, size)[0].shape[1] if text else 0


def write(canvas: np.ndarray, text: str, x: int, y: int, size: int, colour: tuple[int, int, int]) -> None:
    """Write a text onto a picture; what does not fit onto it is cut.

    Args:
        canvas: (h, w, 3) uint8, changed.
        x, y: left end of the text, and its base line, in pixels.
        size: of the font, in pixels. colour: in the canvas's order.
    """
    text = _sound(text)
    if not text:
        return
    letters, rise = _set(text, size)
    top, left = y - rise, x
    h, w = canvas.shape[:2]
    y0, x0, y1, x1 = max(0, top), max(0, left), min(h, top + letters.shape[0]), min(w, left + letters.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    share = letters[y0 - top : y1 - top, x0 - left : x1 - left, None].astype(np.float32) / 255
    part = canvas[y0:y1, x0:x1]
    part[:] = (part * (1 - share) + np.asarray(colour, np.float32) * share + 0.5).astype(np.uint8)


def _sound(text: str) -> str:
    """The text without what no font can draw: halves of characters, as odd file names have them, and line ends."""
    return " ".join(text.encode("utf-8", "replace").decode().splitlines())


@lru_cache(maxsize=512)
def _set(text: str, size: int) -> tuple[np.ndarray, int]:
    """A text as (h, w) uint8, 255 where it is, its first column the origin; and the rows above the base line.

    Not to be changed: it is kept, as a text is measured before it is written, and most of a strip is the same on every
    film. Letter by letter, from a store: ten times as fast as a line by FreeType (0.1 ms for 40 letters, not 1 ms).
    """
    if any("\u0900" <= letter <= "\u0dff" for letter in text):  # scripts of India join their letters
        return _drawn(text, size)[:2]
    parts = [_drawn(letter, size) for letter in text]
    rise = max(part[1] for part in parts)
    fall = max(part[0].shape[0] - part[1] for part in parts)
    ends = np.cumsum([part[2] for part in parts])
    out = np.zeros((max(1, rise + fall), max(1, math.ceil(ends[-1]))), np.uint8)
    for (letters, own_rise, advance), end in zip(parts, ends, strict=True):
        x = round(float(end - advance))
        room = out[rise - own_rise : rise - own_rise + letters.shape[0], x : x + letters.shape[1]]
        np.maximum(room, letters[:, : room.shape[1]], out=room)
    return out, rise


@lru_cache(maxsize=8192)
def _drawn(text: str, size: int) -> tuple[np.ndarray, int, float]:
    """A letter, or a text as a whole: its picture, the rows of it above the base line, and its advance in pixels."""
    font = _font(size)
    mask, (left, top) = font.getmask2(text, mode="L", anchor="ls")
    letters = np.array(mask, np.uint8).reshape(mask.size[::-1])
    shift = max(0, int(left))
    return np.pad(letters, ((0, 0), (shift, 0))), -int(top), float(font.getlength(text))


@lru_cache(maxsize=4096)
def _has(letter: str) -> bool:
    font = _font(20)
    drawn, absent = (font.getmask(one, mode="L") for one in (letter, _ABSENT))
    return drawn.size != absent.size or bytes(drawn) != bytes(absent)


def _font(size: int) -> Any:
    fonts = _own.__dict__.setdefault("fonts", {})
    if size not in fonts:
        fonts[size] = _opened(size)
    return fonts[size]


def _opened(size: int) -> Any:
    for path in _files():
        try:
            return ImageFont.truetype(path, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _files() -> list[str]:
    found = [os.environ[FONT_VARIABLE]] if os.environ.get(FONT_VARIABLE) else []
    spec = find_spec("matplotlib")  # looks for it; does not import it
    if spec is not None and spec.origin is not None:
        found.append(str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    return found
