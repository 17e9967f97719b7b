"""How much burnt-in text `pipeline deidentify` finds, and on how many films it finds text that is none.

    python benchmarks/burntin.py FOLDER [--films N]

FOLDER holds films, in folders below too. Each is searched as it is: films with a hit are listed, to be looked at. Then
a name, with a date in half of them, is drawn near a corner of each, at three sizes of the film, in letters of 1.6 to
4.5 % of its height, with a plate or without one, and searched again. Takes the fonts of matplotlib.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cxr_pipeline.dicom.burntin import find_text

FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf")
NAMES = ("MUELLER, ANNA", "Smith John", "NGUYEN VAN A", "Okafor C.", "P-00731", "GARCIA LOPEZ", "12.03.1961")
STYLES = ("black on a white plate", "white on a black plate", "white, no plate", "grey, no plate")
SIZES = (448, 1000, 1800)  # long side of the film


def drawn(film: np.ndarray, style: str, chance: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """A film (H, W) uint8 with a name on it, and where that is, (H, W) bool."""
    height, width = film.shape
    size = max(9, int(chance.uniform(0.016, 0.045) * height))
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / chance.choice(FONTS)), size)
    lines = [chance.choice(NAMES)]
    if chance.random() < 0.5:
        lines.append(f"{chance.randint(1, 28):02d}.{chance.randint(1, 12):02d}.{chance.randint(1920, 2020)}")
    image = Image.fromarray(film)
    pen = ImageDraw.Draw(image)
    w, h = int(max(pen.textlength(line, font=font) for line in lines)), int(1.3 * size * len(lines))
    x = chance.choice([chance.randint(5, width // 6), max(5, width - w - chance.randint(8, width // 8))])
    y = chance.choice([chance.randint(4, height // 12), height - h - chance.randint(8, height // 12)])
    plate, ink = {STYLES[0]: (235, 15), STYLES[1]: (0, 250), STYLES[2]: (None, 255), STYLES[3]: (None, 190)}[style]
    if plate is not None:
        pen.rectangle((x - 6, y - 4, x + w + 6, y + h + 4), fill=plate)
    for number, line in enumerate(lines):
        pen.text((x, y + int(1.25 * size * number)), line, fill=ink, font=font)
    where = np.zeros(film.shape, bool)
    where[max(0, y) : y + h, max(0, x) : x + w] = True
    return np.array(image), where


def covered(film: np.ndarray) -> np.ndarray:
    """What would be blanked, (H, W) bool."""
    out = np.zeros(film.shape, bool)
    for box in find_text(film):
        out[int(box.y) : int(box.y + box.h), int(box.x) : int(box.x + box.w)] = True
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--films", type=int, default=100)
    given = parser.parse_args()
    chance = random.Random(0)
    paths = sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    paths = chance.sample(paths, min(given.films, len(paths)))
    hits, begun = [], time.perf_counter()
    shares: dict[str, list[float]] = defaultdict(list)
    for path in paths:
        film = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if covered(film).any():
            hits.append(path)
    seconds = (time.perf_counter() - begun) / len(paths)
    for number, path in enumerate(paths):
        film = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        scale = chance.choice(SIZES) / max(film.shape)
        style = STYLES[number % len(STYLES)]
        film, where = drawn(cv2.resize(film, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), style, chance)
        shares[style].append(float(covered(film)[where].mean()))
    print(f"{len(paths)} films as they are: text found on {len(hits)}, {seconds:.2f} s a film")
    print("".join(f"  {path}\n" for path in hits), end="")
    for style, found in sorted(shares.items()):
        whole, some = (sum(share >= least for share in found) for least in (0.8, 0.2))
        print(f"{style:24} {len(found)}: at least 80 % covered {whole}, a part {some}")


if __name__ == "__main__":
    main()
