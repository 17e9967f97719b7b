"""A chain of the three stages without networks: thresholds in place of them, so that tests are quick and exact.

Run as a script it is a run to kill: ``python -m tests.pipeline.fake_chain INPUT OUT DELAY [JUDGES]``.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Box, Frame, bounding_box
from cxr_pipeline.stages.base import Region, Stage
from cxr_pipeline.stages.localize import Localize
from cxr_pipeline.stages.segment import Segment

CLASSES = ["TB", "NTB", "NORM"]


class Fake(Stage):
    """What the three have in common: a card, a fingerprint, a log of the batches seen, and films that make it raise."""

    defaults: dict = {}  # noqa: RUF012

    def __init__(self, *, raises_on=(), delay=0.0, fingerprint=None, **decisions):
        self.card = {"decisions": {**self.defaults, **decisions}}
        self.fingerprint = fingerprint or f"fake-{self.name}"
        self.raises_on, self.delay, self.batches = raises_on, delay, []
        self.obey(self.card["decisions"])

    def obey(self, decisions):
        for name, value in decisions.items():
            setattr(self, name, value)

    @classmethod
    def load(cls, bundle, *, runtime="onnx", threads=None):
        return cls()

    @classmethod
    def train(cls, data, config, out, chain=()):
        raise NotImplementedError

    def evaluate(self, data, out, chain=()):
        raise NotImplementedError

    def run(self, records):
        ids = [record.radiograph.id for record in records]
        self.batches.append(ids)
        for one in ids:
            if one in self.raises_on:
                raise ZeroDivisionError(f"{self.name} cannot do {one}")
        for record in records:
            time.sleep(self.delay)
            if record.ok:
                self.judge(record)
        return list(records)


class FakeSegment(Fake):
    """Lungs are what is darker than 0.4, without a border."""

    name = "segment"
    run_settings = Segment.run_settings
    call_settings = Segment.call_settings
    refuse = True
    defaults = {"threshold": 0.4, "margin": 0.05, "min_fraction": 0.05}  # noqa: RUF012

    def judge(self, record):
        mask = (record.radiograph.pixels < self.threshold).astype(np.uint8)
        mask[:4] = mask[-4:] = mask[:, :4] = mask[:, -4:] = 0
        self.restore(record, mask)

    def restore(self, record, mask):
        height, width = mask.shape
        record.mask, record.lung_fraction = mask, float(mask.mean())
        box = bounding_box(mask)
        if box is not None:
            record.lung_box = box.grown(self.margin).rounded().intersect(Box(0, 0, width, height))
        if record.lung_fraction < self.min_fraction:
            if self.refuse:
                record.refuse("no_lungs: there are none")
            else:
                record.extra["warnings"] = ["no_lungs: there are hardly any"]
        return record


class FakeClassify(Fake):
    """The brighter the lungs, the more TB."""

    name = "classify"
    defaults = {"classes": CLASSES}  # noqa: RUF012

    def judge(self, record):
        bright = float(record.radiograph.pixels[record.mask > 0].mean()) / 0.4
        record.probabilities = {"TB": bright, "NTB": (1 - bright) * 0.25, "NORM": (1 - bright) * 0.75}
        record.label, record.tb_score = max(record.probabilities, key=record.probabilities.get), 100 * bright
        record.frame = Frame.crop(record.radiograph.size, record.lung_box, 16)
        record.maps = np.stack([record.frame.to_grid(record.radiograph.pixels)] * 3, axis=-1)


class FakeLocalize(Fake):
    """Heat is brightness; the region of a film that is not normal is its lung box."""

    name = "localize"
    run_settings = Localize.run_settings
    defaults = {"threshold": 0.5, "min_area": 0.01, "max_regions": 5}  # noqa: RUF012

    def judge(self, record):
        record.heatmap = record.frame.to_native(np.ascontiguousarray(record.maps[..., 0]))
        record.regions = []
        if record.label != "NORM":
            box = record.lung_box
            record.regions = [Region(box, record.probabilities[record.label], record.label, "right", "upper")]


class FakeFindings(FakeClassify):
    """Several labels a film, on the whole film: the brighter, the more Effusion; in between, nothing."""

    defaults = {  # noqa: RUF012
        "classes": ["Mass", "Effusion", "Pleural_Thickening"],
        "positive": None,
        "multi_label": True,
        "thresholds": {"Mass": 0.2, "Effusion": 0.5, "Pleural_Thickening": 0.4},
    }

    def judge(self, record):
        bright = float(record.radiograph.pixels[20:50, 20:38].mean()) / 0.8
        values = (1.5 * abs(bright - 0.4), bright, 0.5 - 0.5 * bright)
        record.probabilities = dict(zip(self.classes, values, strict=True))
        record.label = "|".join(n for n, p in record.probabilities.items() if p >= self.thresholds[n])
        record.frame = Frame.crop(record.radiograph.size, Box(0, 0, *record.radiograph.size[::-1]), 16)
        record.maps = np.stack([record.frame.to_grid(record.radiograph.pixels)] * 3, axis=-1)


def findings_chain(label=None):
    """A chain without segmentation that finds several labels a film; heat map and regions of `label`, where given."""
    decisions = {"classes": FakeFindings.defaults["classes"], "positive": None, "normal": None, "label": label}
    decisions |= {"threshold": 0.5, "min_area": 0.01, "max_regions": 5}
    return [FakeFindings(), Localize({"decisions": decisions}, f"localize {label}")]


def chain(last_stage=None, **options):
    """The stages up to `last_stage`, by default all three; `options` go to each."""
    last_stage = last_stage or "localize"
    classes = [FakeSegment, FakeClassify, FakeLocalize]
    names = [one.name for one in classes]
    return [one(**options) for one in classes[: names.index(last_stage) + 1]]


def film(seed, size=(72, 96), lungs=0.2):
    """Two dark lungs on grey, (H, W) uint8; `lungs` is their grey level. No two seeds give the same film."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = np.full(size, 0.7, np.float32)
    for x in (0.3, 0.7):
        centre, axes = (round(width * x), height // 2), (width // 8, height // 3)
        cv2.ellipse(image, centre, axes, 0, 0, 360, float(lungs), cv2.FILLED)
    return np.round((image + rng.uniform(0, 0.05, size)) * 255).astype(np.uint8)


def write_film(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", film(seed, **options))[1].tobytes())
    return path


def tree(folder):
    """The bytes of all files of a results folder by name, without the times in run.json, which the report shows too.

    Logits of the journal are kept to three digits: the last ones depend on how many films a network judges at once.
    """
    import json
    import re

    from cxr_pipeline.report.report import TIMES

    out = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "run.json":
                facts = json.loads(data)
                data = {k: v for k, v in facts.items() if k not in ("seconds", "started", "ended")}
                data["tables"] = {k: v for k, v in data.get("tables", {}).items() if k != "journal.jsonl"}
            elif path.name == "journal.jsonl":
                data = [json.loads(line) for line in data.splitlines()]
                for line in data:
                    line["logits"] = [f"{value:.2e}" for value in line.get("logits") or []]
            elif path.name == "report.html":
                data, found = re.subn("(.*)".join(TIMES).encode(), b"", data, flags=re.DOTALL)
                assert found == 1
            out[path.relative_to(folder).as_posix()] = data
    return out


def hears_ctrl_c() -> None:
    """For `preexec_fn`: a process started in the background of a shell ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    from cxr_pipeline.run.inputs import find_inputs
    from cxr_pipeline.run.runner import Runner

    source, target, pause = sys.argv[1:4]
    judges = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    stages = chain(delay=float(pause), raises_on=("poison",))
    Runner(stages, Path(target), batch_size=4, workers=2, judges=judges).run(find_inputs([source]))
