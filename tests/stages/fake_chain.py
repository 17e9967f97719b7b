"""A chain without networks: two ellipses for lungs, and maps with hot spots where a test plants them."""

from __future__ import annotations

import numpy as np

from cxr_pipeline.data.geometry import Box, Frame, bounding_box
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.stages.base import Record, Stage
from cxr_pipeline.stages.localize import Localize

CLASSES = ["TB", "NTB", "NORM"]
DECISIONS = {
    "classes": CLASSES,
    "positive": "TB",
    "normal": "NORM",
    "threshold": 0.5,
    "min_area": 0.0,
    "max_regions": 5,
}
# centres of the lungs and half axes, as shares of the film's width and height; the patient's right lung first
LUNGS = {"right": (0.3, 0.5), "left": (0.7, 0.5)}
HALF = (0.14, 0.35)


def localize(**decisions):
    return Localize({"decisions": DECISIONS | decisions})


def lung_mask(size, sides=("right", "left")):
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    mask = np.zeros(size, np.uint8)
    for side in sides:
        cx, cy = LUNGS[side]
        mask |= (((x / width - cx) / HALF[0]) ** 2 + ((y / height - cy) / HALF[1]) ** 2 <= 1).astype(np.uint8)
    return mask


class FakeSegment(Stage):
    """Two ellipses on every film, whatever it shows."""

    name, fingerprint = "segment", "fake-segment"

    def __init__(self, refuse=()):
        self.refuse = refuse

    @classmethod
    def load(cls, bundle, *, runtime="onnx", threads=None):
        return cls()

    @classmethod
    def train(cls, data, config, out, chain=()):
        return out

    def evaluate(self, data, out, chain=()):
        return {}

    def run(self, records):
        for record in records:
            if record.radiograph.id in self.refuse:
                record.refuse("no_lungs")
            if record.ok:
                record.mask = lung_mask(record.radiograph.size)
                height, width = record.radiograph.size
                record.lung_box = bounding_box(record.mask).grown(0.05).rounded().intersect(Box(0, 0, width, height))
        return list(records)


class FakeClassify(FakeSegment):
    """By plan, {id: (label, {class: [(x, y, spread, height), ...]})} of Gaussians, relative to the film."""

    name, fingerprint = "classify", "fake-classify"

    def __init__(self, plan, grid=224, cells=56, probability=0.8):
        self.plan, self.grid, self.cells, self.probability = plan, grid, cells, probability
        self.calls = 0

    def run(self, records):
        for record in records:
            if not record.ok:
                continue
            self.calls += 1
            label, spots = self.plan[record.radiograph.id]
            height, width = record.radiograph.size
            record.frame = Frame.crop(record.radiograph.size, record.lung_box, self.grid)
            record.label = label
            rest = (1 - self.probability) / (len(CLASSES) - 1)
            record.probabilities = {c: self.probability if c == label else rest for c in CLASSES}
            record.maps = np.zeros((self.cells, self.cells, len(CLASSES)), np.float32)
            y, x = (np.mgrid[: self.cells, : self.cells].astype(np.float32) + 0.5) / self.cells
            x = (x * record.frame.box.w + record.frame.box.x) / width
            y = (y * record.frame.box.h + record.frame.box.y) / height
            for name, planted in spots.items():
                for px, py, spread, peak in planted:
                    bump = peak * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * spread**2))
                    record.maps[..., CLASSES.index(name)] += bump.astype(np.float32)
        return list(records)


def film(size=(300, 280), name="film"):
    return Record(Radiograph(np.full(size, 0.5, np.float32), name, name + ".png", size, None, "png", 8, {}))


def chained(spots, label="TB", size=(300, 280), name="film", **options):
    """A record that the fake chain has seen."""
    plan = {name: (label, spots if isinstance(spots, dict) else {"TB": spots})}
    return FakeClassify(plan, **options).run(FakeSegment().run([film(size, name)]))[0]


def contains(box, x, y):
    return box.x <= x <= box.x + box.w and box.y <= y <= box.y + box.h
