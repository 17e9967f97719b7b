"""Augmentation fit for chest films, with albumentations: what other hospitals' films vary in, varied on purpose.

No horizontal flip by default: the heart has a side, and a mirrored film is a finding (situs inversus) or an error.
All pipelines take uint8 images and are seeded, so that an epoch can be repeated exactly.
"""

from __future__ import annotations

import os
from typing import Any

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A


class Opacities(A.ImageOnlyTransform):
    """Soft bright clouds, as consolidation or effusion make them: lungs stay lungs where they are white."""

    def __init__(
        self, count: tuple[int, int] = (1, 4), strength: tuple[float, float] = (0.2, 0.6), p: float = 0.5
    ) -> None:
        super().__init__(p=p)
        self.count = count
        self.strength = strength

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw a cloud map (H, W) float32 in [0, 1] for this film."""
        height, width = params["shape"][:2]
        yy, xx = np.mgrid[:height, :width].astype(np.float32)
        keep = np.ones((height, width), np.float32)
        for _ in range(self.py_random.randint(*self.count)):
            cy, cx = self.py_random.uniform(0.15, 0.85) * height, self.py_random.uniform(0.1, 0.9) * width
            ry, rx = (self.py_random.uniform(0.04, 0.22) * side for side in (height, width))
            angle = self.py_random.uniform(0, np.pi)
            u = (xx - cx) * np.cos(angle) + (yy - cy) * np.sin(angle)
            v = -(xx - cx) * np.sin(angle) + (yy - cy) * np.cos(angle)
            cloud = np.exp(-0.5 * ((u / rx) ** 2 + (v / ry) ** 2))
            keep *= 1.0 - self.py_random.uniform(*self.strength) * cloud
        return {"cloud": 1.0 - keep}

    def apply(self, img: np.ndarray, cloud: np.ndarray, **params: Any) -> np.ndarray:
        """Move grey levels towards white where the cloud is."""
        cloud = cloud if img.ndim == 2 else cloud[..., None]
        return (img + (225.0 - np.minimum(img, 225.0)) * cloud).astype(np.uint8)


class LungOpacities(A.ImageOnlyTransform):
    """A lung made white in whole or in part, as effusion, collapse or dense consolidation do; its mask stays.

    Without such films a network learns that lung is what is dark, and leaves a white lung out. Drawn at random: one
    whole lung, one lung from its base up to a level (an effusion), or haze in the lower parts of both lungs.

    Args:
        p: probability of any.
    """

    def __init__(self, p: float = 0.35) -> None:
        super().__init__(p=p)

    @property
    def targets_as_params(self) -> list[str]:
        """The lung mask, (H, W) uint8, odd inside."""
        return ["mask"]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw how white each pixel becomes: `cloud` (H, W) float32 in [0, 1], and the grey level it goes to."""
        mask = (data["mask"] & 1).astype(np.uint8)  # the lungs, of `models.training.losses.lungs_and_heart` too
        height, width = mask.shape
        count, labels, stats, centres = cv2.connectedComponentsWithStats(mask)
        lungs = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] > 0.01 * height * width]
        cloud = np.zeros((height, width), np.float32)
        if not lungs:
            return {"cloud": cloud, "level": 1.0}
        kind = self.py_random.choice(["whole", "effusion", "effusion", "haze", "haze"])
        chosen = lungs if kind == "haze" else [self.py_random.choice(lungs)]
        for lung in chosen:
            top, tall = stats[lung, cv2.CC_STAT_TOP], stats[lung, cv2.CC_STAT_HEIGHT]
            strength = self.py_random.uniform(0.3, 0.85) if kind == "haze" else self.py_random.uniform(0.75, 1.0)
            share = 1.2 if kind == "whole" else self.py_random.uniform(0.2, 0.8)  # of the lung's height, from its base
            level = top + tall * (1 - share)
            slope = self.py_random.uniform(-0.35, 0.35)
            rows, columns = np.mgrid[:height, :width].astype(np.float32)
            edge = self.py_random.uniform(0.02, 0.12) * tall + 1
            filled = np.clip((rows - level - slope * (columns - centres[lung][0])) / edge, 0, 1)
            cloud = np.maximum(cloud, (labels == lung) * filled * np.float32(strength))
        # grown and soft, so that the lung's own outline is gone too
        reach = max(1, round(0.02 * height))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        cloud = cv2.GaussianBlur(cv2.dilate(cloud, kernel), (0, 0), reach)
        spots = np.random.default_rng(self.py_random.getrandbits(32)).normal(0, 1, (8, 8)).astype(np.float32)
        cloud = cloud * (1 + 0.1 * cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC))
        return {"cloud": np.clip(cloud, 0, 1), "level": self.py_random.uniform(0.75, 0.97)}

    def apply(self, img: np.ndarray, cloud: np.ndarray, level: float, **params: Any) -> np.ndarray:
        """Move grey levels of a film (H, W) uint8 towards a bright one of its own where the cloud is."""
        bright = np.float32(np.quantile(img[::4, ::4], level))
        return np.clip(img + (bright - img) * cloud, 0, 255).astype(np.uint8)


class Marks(A.ImageOnlyTransform):
    """Burnt-in plates, letters and redaction boxes near the edges, and black borders, as films carry them."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__(p=p)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw rectangles (x, y, w, h, grey) and letters (text, x, y, scale, grey)."""
        height, width = params["shape"][:2]
        plates, letters = [], []
        for _ in range(self.py_random.randint(0, 2)):
            w, h = self.py_random.uniform(0.05, 0.3) * width, self.py_random.uniform(0.02, 0.12) * height
            x, y = self.py_random.uniform(0, 1) * (width - w), self.py_random.uniform(0, 1) * (height - h)
            if self.py_random.random() < 0.8:  # plates lie at the top or bottom edge
                y = self.py_random.choice([self.py_random.uniform(0, 0.06) * height, height - h])
            plates.append((int(x), int(y), int(w), int(h), self.py_random.choice([0, 255, 255])))
        for _ in range(self.py_random.randint(0, 2)):
            letters.append(
                (
                    self.py_random.choice(["L", "R", "AP", "PA", "PORTABLE", "D", "E", "12:40"]),
                    int(self.py_random.uniform(0, 0.9) * width),
                    int(self.py_random.uniform(0.05, 0.95) * height),
                    self.py_random.uniform(0.4, 1.0) * height / 256,
                    self.py_random.randint(180, 255),
                )
            )
        border = [int(max(0.0, self.py_random.gauss(-0.02, 0.05)) * height) for _ in range(4)]
        return {"plates": plates, "letters": letters, "border": border}

    def apply(self, img: np.ndarray, plates: list, letters: list, border: list, **params: Any) -> np.ndarray:
        """Draw them on a copy."""
        img = np.ascontiguousarray(img).copy()
        for x, y, w, h, grey in plates:
            cv2.rectangle(img, (x, y), (x + w, y + h), grey, -1)
        for text, x, y, scale, grey in letters:
            cv2.putText(img, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, grey, 1, cv2.LINE_AA)
        top, bottom, left, right = border
        height, width = img.shape[:2]
        img[:top] = 0
        img[height - bottom :] = 0
        img[:, :left] = 0
        img[:, width - right :] = 0
        return img


def _exposure(strength: float) -> list[A.BasicTransform]:
    """Exposure, contrast curve, resolution and compression: what scanners and archives change."""
    low, high = int(100 - 50 * strength), int(100 + 110 * strength)
    return [
        A.OneOf(
            [
                A.RandomGamma(gamma_limit=(low, high), p=1.0),
                A.RandomBrightnessContrast(brightness_limit=0.35 * strength, contrast_limit=0.4 * strength, p=1.0),
                A.RandomToneCurve(scale=0.25 * strength, p=1.0),
                A.CLAHE(clip_limit=(1.0, 4.0), p=1.0),
            ],
            p=0.85,
        ),
        A.RandomGamma(gamma_limit=(int(100 - 30 * strength), int(100 + 40 * strength)), p=0.4),
        A.OneOf(
            [
                A.Downscale(scale_range=(0.3, 0.8), p=1.0),
                A.GaussianBlur(blur_limit=(3, 5), p=1.0),
                A.Sharpen(alpha=(0.1, 0.4), p=1.0),
                A.ImageCompression(quality_range=(35, 90), p=1.0),
                A.GaussNoise(std_range=(0.01, 0.05), p=1.0),
            ],
            p=0.5,
        ),
    ]


def segment_augmentation(seed: int, *, opacities: bool = True) -> A.Compose:
    """For (image uint8 (H, W), mask uint8 (H, W)): framing, exposure, resolution, marks, opacities where asked."""
    return A.Compose(
        [
            A.Affine(
                scale={"x": (0.8, 1.3), "y": (0.8, 1.3)},
                translate_percent=(-0.1, 0.1),
                rotate=(-12, 12),
                shear=(-5, 5),
                p=0.9,
            ),
            A.GridDistortion(num_steps=4, distort_limit=0.15, p=0.2),
            *(_opacities() if opacities else ()),
            *_exposure(1.0),
            Marks(p=0.35),
        ],
        seed=seed,
    )


def opacity_augmentation(seed: int) -> A.Compose:
    """For (image uint8 (H, W), mask uint8 (H, W)): lungs made white in part, and nothing else."""
    return A.Compose(_opacities(), seed=seed)


def _opacities() -> list[A.BasicTransform]:
    return [LungOpacities(p=0.35), Opacities(p=0.35)]


def classify_augmentation(seed: int) -> A.Compose:
    """For (image uint8 (H, W), mask uint8 (H, W)) lung crops: gentler geometry, the same exposure."""
    return A.Compose(
        [
            A.Affine(
                scale={"x": (0.88, 1.15), "y": (0.88, 1.15)},
                translate_percent=(-0.06, 0.06),
                rotate=(-10, 10),
                shear=(-4, 4),
                p=0.9,
            ),
            *_exposure(0.8),
            Marks(p=0.15),
        ],
        seed=seed,
    )
