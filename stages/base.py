"""The contract that all three stages keep, and the record that travels through them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.data.radiograph import Radiograph

if TYPE_CHECKING:  # pandas and pydantic are not needed to run a stage
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest

OK, REFUSED, FAILED = "ok", "refused", "failed"


@dataclass(frozen=True)
class Region:
    """A region to look at: `box` in native pixels, `score` 0 to 1, `side` the patient's own.

    `side` is "left" or "right" (the patient's right lung lies on the left of the picture), `zone` is
    "upper", "middle" or "lower" (thirds of that lung's height), `label` the class whose map it is from.
    """

    box: Box
    score: float
    label: str
    side: str
    zone: str


@dataclass
class Record:
    """One film on its way through the chain. Each stage fills in its own part.

    A stage that cannot judge a film sets `status` to "refused" or "failed" and `error` to a sentence;
    later stages pass such a record on untouched.
    """

    radiograph: Radiograph
    status: str = OK
    error: str = ""
    # segment
    mask: np.ndarray | None = None  # (H, W) uint8, 0 or 1, native size
    lung_box: Box | None = None  # around the mask with a margin, native pixels, within the film
    lung_fraction: float | None = None  # share of the film's pixels that are lung
    # classify
    probabilities: dict[str, float] | None = None  # calibrated, one a class, in the order of the classes
    label: str | None = None  # the likeliest class
    screen: str | None = None  # positive, negative or unsure, at the operating threshold: see `stages.decisions`
    tb_score: float | None = None  # 0 to 100, of the positive class; 50 is the operating threshold
    abnormal: float | None = None  # probability that the film is not normal
    maps: np.ndarray | None = None  # (h, w, classes) float32, Grad-CAM of each class's logit, on `frame`
    frame: Frame | None = None
    # localize
    heat: np.ndarray | None = None  # (h, w) float32 [0, 1], the heat map on `frame`
    native_heat: np.ndarray | None = None  # the same at native size, see `heatmap`
    heatmap_label: str | None = None  # the class that it, and the regions, are of
    regions: list[Region] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def heatmap(self) -> np.ndarray | None:
        """The heat map (H, W) float32 [0, 1] at native size: drawn when first asked for, as few need it so large."""
        if self.native_heat is None and self.heat is not None:
            self.native_heat = np.clip(self.frame.to_native(self.heat), 0.0, 1.0)
        return self.native_heat

    @heatmap.setter
    def heatmap(self, value: np.ndarray | None) -> None:
        self.native_heat = value

    @property
    def ok(self) -> bool:
        """Whether later stages have something to judge."""
        return self.status == OK

    def refuse(self, why: str) -> Record:
        """Mark the film as one that the chain cannot judge."""
        self.status, self.error = REFUSED, why
        return self


class Stage(ABC):
    """One step of the chain: trainable, runnable and evaluable on its own.

    A stage is loaded from its bundle (`load`), enriches records (`run`) and is judged against a manifest
    (`evaluate`); `train` makes the bundle. `run` on a batch of n records equals n runs on one.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx", threads: int | None = None) -> Stage:
        """The stage as stored in the folder `bundle`. `runtime`, `threads`: see `models.store.open_network`."""

    @classmethod
    @abstractmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Fit the stage on the manifest's `train` split, watching `val`; returns the bundle's folder.

        `chain` holds the loaded stages that come before this one. An interrupted training goes on from
        its last finished epoch when called again with the same arguments.
        """

    @classmethod
    def require(cls, data: Manifest, config: Config) -> None:
        """Refuse films that the stage cannot be trained on, before any training begins.

        Raises:
            models.training.fit.TrainingError: what is missing, and where.
        """
        del data, config  # a stage without a network does with none

    def films_with_truth(self, data: Manifest) -> Manifest:
        """The films of `data` that the stage can be judged on: those of which is known what it answers."""
        return data

    @abstractmethod
    def run(self, records: Sequence[Record]) -> list[Record]:
        """The same records, in the same order, with this stage's fields filled in."""

    @abstractmethod
    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """Figures on the films of `data` (see `models.figures.metrics.Figure`); plots are written into `out`."""
