"""Synthetic chest films with true masks, labels and boxes, for samples and tests.

They are drawings: tissue thicknesses added up and turned into grey levels. They have the layout of a frontal chest
film, so that the chain can be tried and tested end to end without a patient's image; they are no evidence of accuracy,
and no network was trained on them. Lengths are shares of the film's side; x right, y down; the patient's right lung is
on the left of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from cxr_pipeline.data.files import write_bytes, write_csv
from cxr_pipeline.data.geometry import Box, bounding_box

LABELS = ("NORM", "TB", "NTB")


@dataclass
class SyntheticFilm:
    """A drawn film.

    Attributes:
        pixels: (H, W) float32 in [0, 1], bright = dense.
        mask: (H, W) uint8, 1 inside the lungs (heart and mediastinum outside, as public lung masks have it).
        label: "NORM", "TB" or "NTB".
        boxes: around each opacity, native pixels.
        seed: makes the same film again.
    """

    pixels: np.ndarray
    mask: np.ndarray
    label: str
    seed: int
    boxes: list[Box] = field(default_factory=list)


# Outline of the right lung and of the left one, clockwise from the apex: (x, y) in shares of the film.
_RIGHT = [(0.355, 0.125), (0.405, 0.17), (0.425, 0.27), (0.43, 0.40), (0.425, 0.52), (0.41, 0.64), (0.405, 0.735),
          (0.33, 0.705), (0.25, 0.715), (0.185, 0.76), (0.135, 0.83), (0.125, 0.72), (0.13, 0.58), (0.15, 0.44),
          (0.19, 0.31), (0.25, 0.20), (0.305, 0.14)]  # fmt: skip
_LEFT = [(0.645, 0.125), (0.695, 0.14), (0.75, 0.20), (0.81, 0.31), (0.85, 0.44), (0.87, 0.58), (0.875, 0.72),
         (0.868, 0.85), (0.815, 0.785), (0.75, 0.755), (0.70, 0.765), (0.685, 0.70), (0.655, 0.60),
         (0.605, 0.51),
         (0.582, 0.43), (0.585, 0.33), (0.578, 0.25), (0.60, 0.17)]  # fmt: skip


def make_film(seed: int, *, label: str = "NORM", size: tuple[int, int] = (512, 512)) -> SyntheticFilm:
    """Draw one film.

    Args:
        seed: all that is random comes from it.
        label: "NORM"; "TB" (upper-zone infiltrate, cavity, or miliary dots); "NTB" (lower-zone cloud, effusion).
        size: (height, width) in pixels, at least 64 a side.

    Raises:
        ValueError: an unknown label, or a film too small.
    """
    if label not in LABELS:
        raise ValueError(f"label must be one of {', '.join(LABELS)}. Received: {label!r}")
    if min(size) < 64:
        raise ValueError(f"a film needs at least 64 pixels a side. Received: {size}")
    draw = np.random.default_rng((seed, LABELS.index(label)))
    body = _Body(draw, size)
    depth = body.soft_tissue()
    lungs = body.lungs
    inside = cv2.GaussianBlur(lungs, (0, 0), 0.004 * body.side)
    # Air instead of tissue: what is left of the depth is chest wall, front and back.
    wall = 0.30 + 0.06 * draw.random()
    depth = depth * (1 - inside) + depth * wall * inside
    depth += 0.55 * body.heart() * (1 - 0.75 * inside) + 0.10 * body.hila() * inside
    depth += 0.10 * body.vessels() * inside + body.bones()
    clouds, boxes = body.disease(label)
    depth += clouds
    depth *= body.outline
    film = 1 - np.exp(-(1.5 + 0.4 * draw.random()) * depth)
    film = _expose(film.astype(np.float32), body, draw)
    return SyntheticFilm(film, (lungs > 0.5).astype(np.uint8), label, seed, boxes)


class _Body:
    """The parts of one patient, each a (H, W) float32 map of tissue, about 1 where it is thickest."""

    def __init__(self, draw: np.random.Generator, size: tuple[int, int]) -> None:
        self.draw, (self.height, self.width) = draw, size
        self.side = min(size)
        # One frame for all parts: the patient's build and where they stand.
        self.scale = draw.uniform(0.90, 1.02) * np.array([draw.uniform(0.95, 1.04), draw.uniform(0.92, 1.04)])
        self.shift = np.array([draw.uniform(-0.015, 0.015), draw.uniform(-0.01, 0.04)])
        self.turn = np.deg2rad(draw.uniform(-2.5, 2.5))
        yy, xx = np.mgrid[: self.height, : self.width].astype(np.float32)
        at = np.stack([(xx + 0.5) / self.width, (yy + 0.5) / self.height], axis=-1) - 0.5 - self.shift
        c, s = np.cos(self.turn), np.sin(self.turn)
        at = at @ np.array([[c, -s], [s, c]], np.float32) / self.scale + 0.5
        self.x, self.y = at[..., 0].astype(np.float32), at[..., 1].astype(np.float32)
        self.lungs = np.maximum(self._closed(self._jitter(_RIGHT)), self._closed(self._jitter(_LEFT)))
        self.outline = self._outline()

    def _points(self, points: np.ndarray) -> np.ndarray:
        """Body coordinates to pixels."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        at = (np.asarray(points) - 0.5) * self.scale @ np.array([[c, s], [-s, c]]) + 0.5 + self.shift
        return at * (self.width, self.height)

    def _jitter(self, points: list[tuple[float, float]]) -> np.ndarray:
        return np.array(points) + self.draw.normal(0, 0.004, (len(points), 2))

    def _closed(self, points: np.ndarray) -> np.ndarray:
        """A filled, smooth outline (Catmull-Rom through the points)."""
        t = np.linspace(0, 1, 12, endpoint=False)[:, None]
        around = [np.roll(points, k, axis=0) for k in (1, 0, -1, -2)]
        curve = np.concatenate(
            [
                0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
                for a, b, c, d in zip(*around, strict=True)
            ]
        )
        canvas = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(canvas, [np.round(self._points(curve) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        return canvas.astype(np.float32) / 255

    def _line(self, canvas: np.ndarray, points: np.ndarray, width: float) -> None:
        thick = max(1, round(width * self.side))
        cv2.polylines(canvas, [np.round(self._points(points) * 16).astype(np.int32)], False, 1.0, thick, cv2.LINE_AA, 4)

    def _blur(self, canvas: np.ndarray, reach: float) -> np.ndarray:
        return cv2.GaussianBlur(canvas, (0, 0), max(0.5, reach * self.side))

    def _blob(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        return np.exp(-0.5 * (((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2))

    def _outline(self) -> np.ndarray:
        """1 where there is patient: trunk, shoulders, neck."""
        half = np.interp(
            self.y,
            [-0.2, 0.0, 0.05, 0.10, 0.16, 0.26, 0.5, 0.8, 1.2],
            [0.11, 0.13, 0.17, 0.30, 0.44, 0.47, 0.455, 0.45, 0.46],
        )
        return 1 / (1 + np.exp(np.clip((np.abs(self.x - 0.5) - half) / 0.008, -30, 30))).astype(np.float32)

    def soft_tissue(self) -> np.ndarray:
        """Chest wall, mediastinum, spine, and the abdomen below the diaphragm."""
        across = np.clip((self.x - 0.5) / 0.50, -1, 1)
        trunk = 0.78 * np.sqrt(np.clip(1 - across**2, 0, 1)) ** 0.6 + 0.12
        abdomen = 0.42 / (1 + np.exp(np.clip(-(self.y - 0.75) / 0.03, -30, 30)))
        middle = 0.34 * np.exp(-0.5 * ((self.x - 0.5) / 0.055) ** 4) * (0.75 + 0.25 * self.y)
        trachea = -0.16 * np.exp(-0.5 * ((self.x - 0.495) / 0.016) ** 4) / (1 + np.exp((self.y - 0.30) / 0.02))
        discs = 0.035 * np.sin(2 * np.pi * self.y / 0.062) * np.exp(-0.5 * ((self.x - 0.5) / 0.035) ** 4)
        bubble = -0.18 * self._blob(0.72, 0.84, 0.045, 0.022) * self.draw.uniform(0.3, 1)
        breasts = self.draw.choice([0, 0.05]) * sum(self._blob(x, 0.62, 0.10, 0.09) for x in (0.25, 0.76))
        uneven = cv2.resize(
            self.draw.normal(0, 0.02, (9, 9)).astype(np.float32),
            (self.width, self.height),
            interpolation=cv2.INTER_CUBIC,
        )
        return (trunk + abdomen + middle + trachea + discs + bubble + breasts + uneven).astype(np.float32)

    def heart(self) -> np.ndarray:
        """The cardiac shadow, mostly left of the midline (right in the picture)."""
        big = self.draw.uniform(0.95, 1.05)
        u, v = (self.x - 0.555) / (0.125 * big), (self.y - 0.645) / (0.145 * big)
        u, v = u + 0.35 * v * 0.5, v - 0.25 * u * 0.5
        aorta = 0.6 * self._blob(0.575, 0.30, 0.028, 0.04)
        return (1 / (1 + np.exp(np.clip((np.sqrt(u**2 + v**2) - 1) / 0.05, -30, 30))) + aorta).astype(np.float32)

    def hila(self) -> np.ndarray:
        return (self._blob(0.405, 0.45, 0.03, 0.06) + self._blob(0.605, 0.43, 0.03, 0.055)).astype(np.float32)

    def vessels(self) -> np.ndarray:
        """Branching lines from the hila, thinner and fainter outwards."""
        canvas = np.zeros((self.height, self.width), np.float32)

        def grow(at: np.ndarray, angle: float, width: float, length: float, strength: float) -> None:
            if width < 0.0012 or length < 0.012:
                return
            end = at + length * np.array([np.cos(angle), np.sin(angle)])
            branch = np.zeros_like(canvas)
            self._line(branch, np.stack([at, end]), width)
            np.maximum(canvas, strength * branch, out=canvas)
            for side in (-1, 1):
                grow(
                    end,
                    angle + side * self.draw.uniform(0.2, 0.55),
                    width * 0.72,
                    length * self.draw.uniform(0.7, 0.88),
                    strength * 0.88,
                )

        for x, towards in ((0.41, np.pi), (0.60, 0.0)):
            for angle in np.linspace(-1.15, 1.15, 5):
                side = angle if towards == 0 else -angle
                grow(
                    np.array([x, 0.44]),
                    towards + side + self.draw.normal(0, 0.15),
                    0.008,
                    self.draw.uniform(0.07, 0.09),
                    1.0,
                )
        return self._blur(canvas, 0.002)

    def bones(self) -> np.ndarray:
        """Ribs behind and in front, clavicles, the hint of scapulae."""
        back, front, rest = (np.zeros((self.height, self.width), np.float32) for _ in range(3))
        t = np.linspace(0, 1, 24)
        for side in (-1, 1):
            for number in range(10):
                top = 0.105 + 0.066 * number + self.draw.normal(0, 0.002)
                reach = np.interp(number, [0, 2, 5, 9], [0.20, 0.30, 0.375, 0.39])
                y = (
                    top
                    - 0.035 * np.sin(np.pi * np.minimum(t * 1.6, 1))
                    + (0.02 + 0.115 * t**1.7) * (0.6 + 0.06 * number)
                )
                self._line(
                    back, np.stack([0.5 + side * (0.045 + (reach - 0.045) * np.sin(np.pi / 2 * t)), y], 1), 0.020
                )
                if 1 <= number < 7:
                    y = top + 0.21 - 0.10 * t + 0.02 * np.sin(np.pi * t)
                    self._line(front, np.stack([0.5 + side * (0.11 + (reach - 0.11) * t), y[::1]], 1), 0.024)
            lift = self.draw.normal(0, 0.006)
            x, y = (
                0.5 + side * (0.035 + 0.33 * t),
                0.185 + lift - 0.075 * np.sin(np.pi / 2 * t) + 0.02 * np.sin(2 * np.pi * t),
            )
            self._line(rest, np.stack([x, y], 1), 0.026)
            self._line(rest, np.array([[0.5 + side * 0.36, 0.14], [0.5 + side * 0.385, 0.36]]), 0.012)

        def hollow(bone: np.ndarray, reach: float) -> np.ndarray:
            """A rib's edges are denser than its middle."""
            core = cv2.erode(bone, np.ones((3, 3), np.uint8), iterations=max(1, round(reach * self.side)))
            return self._blur(bone, 0.0025) - 0.35 * self._blur(core, 0.002)

        return (0.16 * hollow(back, 0.005) + 0.05 * self._blur(front, 0.004) + 0.15 * hollow(rest, 0.006)).astype(
            np.float32
        )

    def disease(self, label: str) -> tuple[np.ndarray, list[Box]]:
        """Opacities of a label, (H, W) float32, and their boxes."""
        total = np.zeros((self.height, self.width), np.float32)
        boxes: list[Box] = []
        if label == "NORM":
            return total, boxes
        texture = cv2.resize(
            self.draw.random((40, 40)).astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_CUBIC
        )
        kinds = (
            {"infiltrate": 0.45, "cavity": 0.4, "miliary": 0.15}
            if label == "TB"
            else {"consolidation": 0.6, "effusion": 0.4}
        )
        kind = self.draw.choice(list(kinds), p=list(kinds.values()))
        side = self.draw.choice([-1, 1])
        if kind == "miliary":
            cloud = np.zeros_like(total)
            for x, y in self.draw.uniform(0.1, 0.9, (900, 2)):
                cv2.circle(
                    cloud,
                    tuple(int(v) for v in self._points(np.array([x, y]))),
                    max(1, round(0.004 * self.side)),
                    1.0,
                    -1,
                )
            total = 0.16 * self._blur(cloud, 0.002) * self.lungs
            boxes = [box for box in (bounding_box(self._half(s)) for s in (-1, 1)) if box]
        elif kind == "effusion":
            level = 0.62 + 0.06 * self.draw.random()
            x = 0.5 + side * 0.27
            cloud = (
                1 / (1 + np.exp(-(self.y - level + 0.12 * np.abs(self.x - 0.5) - 0.03) / 0.012)) * self._half(int(side))
            )
            total = 0.55 * cloud.astype(np.float32)
            boxes = [box] if (box := bounding_box(cloud > 0.3)) else []
        else:
            y = self.draw.uniform(0.24, 0.36) if label == "TB" else self.draw.uniform(0.58, 0.68)
            x = 0.5 + side * (self.draw.uniform(0.20, 0.24) if label == "TB" else self.draw.uniform(0.22, 0.28))
            rx, ry = self.draw.uniform(0.045, 0.075), self.draw.uniform(0.045, 0.08)
            cloud = self._blob(x, y, rx, ry) * (0.6 + 0.7 * texture)
            if kind == "cavity":
                ring = np.sqrt(((self.x - x) / 0.045) ** 2 + ((self.y - y) / 0.04) ** 2)
                cloud = 0.7 * cloud * np.clip(ring, 0.15, 1) + 0.8 * np.exp(-0.5 * ((ring - 1) / 0.16) ** 2)
            cloud = cloud * cv2.GaussianBlur(self.lungs, (0, 0), 0.006 * self.side)
            total = 0.48 * cloud.astype(np.float32)
            boxes = [box] if (box := bounding_box(cloud > 0.3)) else []
        return total, boxes

    def _half(self, side: int) -> np.ndarray:
        return self.lungs * ((self.x - 0.5) * side > 0)


def _expose(film: np.ndarray, body: _Body, draw: np.random.Generator) -> np.ndarray:
    """Scatter, grain, the detector's curve, and sometimes a side marker."""
    film = 0.92 * film + 0.08 * cv2.GaussianBlur(film, (0, 0), 0.03 * body.side)
    grain = draw.normal(0, 1, film.shape).astype(np.float32)
    film = cv2.GaussianBlur(film, (0, 0), max(0.4, 0.0012 * body.side)) + draw.uniform(0.004, 0.010) * cv2.GaussianBlur(
        grain, (0, 0), 0.7
    )
    low, high = np.percentile(film, [0.5, 99.7])
    film = np.clip((film - low) / (high - low), 0, 1) ** draw.uniform(0.8, 1.25)
    film = draw.uniform(0.0, 0.04) + draw.uniform(0.88, 0.98) * film
    if draw.random() < 0.6:
        at = (round(0.90 * body.width), round(0.10 * body.height))
        letter = np.zeros(film.shape, np.uint8)
        cv2.putText(
            letter, "L", at, cv2.FONT_HERSHEY_SIMPLEX, body.side / 400, 247, max(1, body.side // 200), cv2.LINE_AA
        )
        film = np.maximum(film, letter / np.float32(255))
    return np.clip(film, 0, 1).astype(np.float32)


def write_samples(folder: Path, n: int = 6, *, seed: int = 0, size: tuple[int, int] = (512, 512)) -> Path:
    """Write `n` films with masks, `manifest.csv` and `boxes.csv` into `folder`; returns the manifest's path.

    Labels take turns; of every six films of a label, four are in `train`, one in `val` and one in `test`.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    rows, boxes = [], []
    for number in range(n):
        film = make_film(seed + number, label=LABELS[number % 3], size=size)
        name = f"synthetic_{number + 1:03d}_{film.label}.png"
        _write_png(folder / "images" / name, np.round(film.pixels * 255).astype(np.uint8))
        _write_png(folder / "masks" / name, film.mask * 255)
        split = ("train", "val", "test", "train", "train", "train")[number // 3 % 6]
        rows.append(
            (f"images/{name}", f"masks/{name}", film.label, f"synthetic-{number + 1:03d}", "synthetic", split, "")
        )
        boxes += [(f"images/{name}", film.label, *(round(v, 1) for v in box)) for box in film.boxes]
    for name, header, lines in (
        ("manifest.csv", ("image", "mask", "label", "patient", "source", "split", "findings"), rows),
        ("boxes.csv", ("image", "finding", "x", "y", "w", "h"), boxes),
    ):
        write_csv(folder / name, header, (dict(zip(header, line, strict=True)) for line in lines))
    return folder / "manifest.csv"


def _write_png(path: Path, image: np.ndarray) -> None:
    write_bytes(path, cv2.imencode(".png", image)[1].tobytes())
