"""Records as the fake chain leaves them, and what puts them into a results folder."""

from __future__ import annotations

import numpy as np

from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.results.folder import Identity
from cxr_pipeline.stages.base import Record
from tests.pipeline.fake_chain import CLASSES, FakeClassify, FakeLocalize, FakeSegment, film

FINGERPRINTS = {"segment": "s1", "classify": "c1", "localize": "l1"}


def identity(last_stage="localize", **changes):
    names = list(FINGERPRINTS)[: list(FINGERPRINTS).index(last_stage) + 1]
    stages = {name: changes.pop(name, FINGERPRINTS[name]) for name in names}
    fields = {"version": "1", "runtime": "onnx", "classes": tuple(CLASSES) if len(names) > 1 else (), "about": {}}
    return Identity(stages=stages, **(fields | changes))


def record(name="a", *, last_stage="localize", seed=0, lungs=0.35, size=(72, 96)):
    pixels = film(seed, size=size, lungs=lungs).astype(np.float32) / 255
    out = [Record(Radiograph(pixels, name, f"in/{name}.png", pixels.shape))]
    for stage in (FakeSegment(), FakeClassify(), FakeLocalize()):
        out = stage.run(out)
        if stage.name == last_stage:
            return out[0]


def save(folder, one, key=None, sha256="abc", **more):
    name = one.radiograph.id
    return folder.save(key or name, f"in/{name}.png", sha256, one, **more)


def finish(folder, keys):
    return folder.finish(keys, {"read": 1.0}, "then", "now")
