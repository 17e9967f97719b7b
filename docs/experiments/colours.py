"""How well heat maps are told from tinted films: the figures of `colour_map` in docs/quality.md.

    python docs/experiments/colours.py --data MANIFEST

Six validation films of each source, altered; no network runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from cxr_pipeline.data.content import findings
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.radiograph import read

EACH = 6
SIDE = 512  # pixels of the long side of the copy that colours are looked at on
MAPS = {"jet": cv2.COLORMAP_JET, "hot": cv2.COLORMAP_HOT, "viridis": cv2.COLORMAP_VIRIDIS}
MAPS["inferno"] = cv2.COLORMAP_INFERNO
ONE_HUE = {"reds": (103, 0, 13), "blues": (8, 48, 107), "greens": (0, 68, 27)}  # the dark end of each


def mapped(heat: np.ndarray, name: str) -> np.ndarray:
    """A heat (h, w) in [0, 1] in the colours of a map, (h, w, 3) RGB."""
    return cv2.applyColorMap((heat * 255).astype(np.uint8), MAPS[name])[..., ::-1].astype(float)


def one_hue(film: np.ndarray, dark: tuple[int, int, int]) -> np.ndarray:
    """From white over the full hue to its dark end, as matplotlib's Reds."""
    end = np.array(dark, float)
    full = end * 255 / end.max()
    level = film[..., None]
    return np.where(level < 0.5, 255 + (full - 255) * 2 * level, full + (end - full) * (2 * level - 1))


def spots(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Two smooth hot spots (h, w) in [0, 1] in the middle of a film."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] / np.array(shape).reshape(2, 1, 1)
    out = np.zeros(shape)
    for _ in range(2):
        y, x = random.uniform(0.3, 0.7, 2)
        out = np.maximum(out, np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 0.12**2)))
    return out


def heat_maps(film: np.ndarray, random: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures that are no film, by what was done."""
    grey, heat = film[..., None] * 255, spots(film.shape, random)
    for name in MAPS:
        yield "in place of the film", mapped(film, name)
        yield "blended over all of it", 0.6 * grey + 0.4 * mapped(heat, name)
        yield "blended faintly, a fifth", 0.8 * grey + 0.2 * mapped(heat, name)
        share = 0.6 * np.where(heat > 0.3, heat, 0)[..., None]
        yield "over its hot spots", (1 - share) * grey + share * mapped(heat, name)
    for dark in ONE_HUE.values():
        yield "of one hue, in place of the film", one_hue(film, dark)


def tinted(film: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Films that are to be judged, by what was done."""
    level, grey = film[..., None], np.repeat(film[..., None], 3, 2) * 255
    yield "sepia", np.dstack([film**0.8, film, film**1.3]) * 255
    yield "blue film base", level * np.array([190, 215, 255])
    yield "bone", cv2.applyColorMap((film * 255).astype(np.uint8), cv2.COLORMAP_BONE)[..., ::-1]
    side = min(film.shape)
    plate, marks = grey.copy(), grey.copy()
    plate[: side // 12, : side // 4] = (200, 40, 30)
    yield "a coloured plate", plate
    cv2.rectangle(marks, (2, 2), (film.shape[1] - 3, film.shape[0] - 3), (20, 160, 40), 3)
    for n in (3, 5):
        end = (film.shape[1] * n // 8, film.shape[0] // 2)
        cv2.arrowedLine(marks, (end[0] - side // 6, end[1] - side // 6), end, (230, 200, 0), 3)
    yield "a frame and arrows", marks
    _, packed = cv2.imencode(
        ".jpg", (level * np.array([255, 215, 190])).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 40]
    )
    yield "blue film base, JPEG of quality 40", cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1]


def count(films: list[np.ndarray], alter: Callable[[np.ndarray], Iterator[tuple[str, np.ndarray]]]) -> dict[str, list]:
    """How many pictures are refused by their colours, and of how many, by what was done."""
    out: dict[str, list] = {}
    for film in films:
        for name, picture in alter(film):
            colour = np.clip(picture, 0, 255).astype(np.uint8)
            refused = any(code == "colour_map" for code, _ in findings(film.astype(np.float32), colour)[0])
            part = out.setdefault(name, [0, 0])
            part[0] += refused
            part[1] += 1
    return out


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="MANIFEST")
    manifest = read_manifest(parser.parse_args().data, check_files=False)
    random = np.random.default_rng(0)
    films, sources = [], set()
    rows = [row for row in manifest.rows() if row["split"] == "val"]
    for source in sorted({row["source"] for row in rows}):
        of_source = [row for row in rows if row["source"] == source]
        for place in random.permutation(len(of_source))[:EACH]:
            pixels = read(manifest.path(of_source[place]["image"])).pixels
            scale = min(1.0, SIDE / max(pixels.shape))
            size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
            films.append(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
            sources.add(source)
    print(f"{len(films)} films of {len(sources)} sources: {', '.join(sorted(sources))}")
    for title, alter in (("heat maps", lambda film: heat_maps(film, random)), ("tints and marks", tinted)):
        counted = count(films, alter)
        print(title, *(sum(part[k] for part in counted.values()) for k in (0, 1)))
        for name, (refused, all_) in counted.items():
            print(f"  {name}: {refused} of {all_} refused")


if __name__ == "__main__":
    main()
