"""Classify: what the lungs look like. A network sees the lung crop; its answer is calibrated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cxr_pipeline.models.store import fingerprint, open_network, read_card
from cxr_pipeline.stages.base import Monitor, Record, Stage, Truth
from cxr_pipeline.stages.classify_films import require_films, usable_films
from cxr_pipeline.stages.classify_targets import several_labels as targets_of
from cxr_pipeline.stages.crops import encoder_input, lung_crop
from cxr_pipeline.stages.films import stream
from cxr_pipeline.stages.quality import MIN_SIDE, by_header
from cxr_pipeline.stages.uncertain import uncertain

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest
    from cxr_pipeline.models.store import Network

log = logging.getLogger("cxr.classify")


class Classify(Stage):
    """The classification stage, loaded from its bundle."""

    name: ClassVar[str] = "classify"
    summary: ClassVar[str] = "what the lungs look like: calibrated probabilities of the classes, and a TB score"
    uses: ClassVar[tuple[str, ...]] = ("mask", "lung_box")
    fills: ClassVar[tuple[str, ...]] = ("probabilities", "label", "tb_score", "maps", "frame")
    call_settings: ClassVar[tuple[str, ...]] = ("refuse", "temperature", "offsets", "threshold", "threshold_ci95")
    truth: ClassVar[Truth] = Truth("a class as its label", "column `label` or `findings`")
    headline_figures: ClassVar[tuple[str, ...]] = ("accuracy", "auroc")
    monitor: ClassVar[Monitor | None] = Monitor("val_loss", "min")

    def __init__(self, network: Network, card: Mapping[str, Any], fingerprint: str = "") -> None:
        self.network, self.card, self.fingerprint = network, card, fingerprint
        self.obey(card["decisions"])

    def obey(self, decisions: Mapping[str, Any]) -> None:
        """Take over the card's decisions, with the settings of a call, such as those of a site file."""
        # Without segmentation: False lets films go on that their header speaks against.
        self.refuse: bool = decisions.get("refuse", True)
        self.classes: list[str] = decisions["classes"]
        self.positive: str | None = decisions["positive"]
        self.multi_label: bool = decisions.get("multi_label", False)
        self.class_of: dict[str, list[str]] | None = decisions.get("class_of")
        self.size: int = decisions["size"]
        self.lungs: str = decisions["lungs"]
        self.pool: str = decisions.get("pool", "all")
        self.temperature: float = decisions["temperature"]
        self.threshold: float = decisions["threshold"]
        self.thresholds: dict[str, float] = decisions.get("thresholds", {})  # of several labels a film
        self.threshold_ci95: list[float] | None = decisions.get("threshold_ci95")
        # Added to the logits divided by the temperature; a site brings its own, see train.calibration.
        self.offsets = np.array([decisions.get("offsets", {}).get(name, 0.0) for name in self.classes])

    @classmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx", threads: int | None = None) -> Classify:
        """The stage as stored in `bundle`."""
        return cls(open_network(bundle, runtime, threads), read_card(bundle), fingerprint(bundle))

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Fill in `probabilities`, `label`, `tb_score`, and the Grad-CAM `maps` with their `frame`.

        In a chain without segmentation, which checks films, those are refused whose size or DICOM header speaks against
        them; what their pixels show is not checked.
        """
        for record in records:
            if record.ok and self.lungs == "none":
                self._check(record)
        todo = [record for record in records if record.ok]
        if todo:
            crops = [lung_crop(record, self.size) for record in todo]
            batch = np.stack([encoder_input(crop, lungs, self.lungs, self.pool) for crop, lungs, _ in crops])
            answer = self.network(batch)
            for record, (_, _, frame), logits, maps in zip(todo, crops, answer["logits"], answer["maps"], strict=True):
                self._judge(record, logits)
                record.maps, record.frame = maps, frame
        return list(records)

    def _check(self, record: Record) -> None:
        against = by_header(record.radiograph, MIN_SIDE, None)
        if against and self.refuse:
            record.refuse(str(against[0]))
        else:
            record.warn(*map(str, against))

    def _judge(self, record: Record, logits: np.ndarray) -> None:
        """Calibrated probabilities, score and label from a film's logits (classes,).

        The label is the positive class where its probability reaches the operating threshold (set for a sensitivity,
        not for accuracy: a missed TB costs more than a second look), else the likeliest of the others. Where a film may
        have several labels, it is all that reach their thresholds, joined by a pipe sign.
        """
        from cxr_pipeline.models.figures.metrics import softmax

        record.extra["logits"] = logits
        scaled = logits / self.temperature + self.offsets
        values = 1 / (1 + np.exp(-scaled.astype(float))) if self.multi_label else softmax(scaled[None])[0]
        record.probabilities = {name: float(value) for name, value in zip(self.classes, values, strict=True)}
        if self.positive is not None:
            record.tb_score = 100.0 * record.probabilities[self.positive]
            record.extra["positive"] = self.positive
        if self.multi_label:
            present = [name for name in self.classes if record.probabilities[name] >= self.thresholds[name]]
            record.label = "|".join(present)
            return
        positive = record.probabilities[self.positive]
        record.warn(*uncertain(positive, self.threshold, self.threshold_ci95))
        others = [name for name in self.classes if name != self.positive]
        record.label = (
            self.positive if positive >= self.threshold else max(others, key=record.probabilities.__getitem__)
        )

    @classmethod
    def require(cls, data: Manifest, config: Config) -> None:
        """Films in train and val, with the positive class and without, or of which any label is known; a network."""
        from cxr_pipeline.models.classifier import require_network

        require_films(data, config)
        require_network(config.classify, data.root)

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Train on the lung crops of `train`, watching the loss on `val`; calibrate on `val`."""
        from cxr_pipeline.stages.classify_training import ClassifyTraining

        cls.require(data, config)
        return ClassifyTraining(data, config, out, chain).run()

    def unchecked(self) -> str | None:
        """It looks at size and header alone."""
        return "have no segmentation, which checks them"

    def truth_of(self) -> Truth:
        """One of the classes, by name."""
        return Truth(f"one of the classes {', '.join(self.classes)}", self.truth.where)

    def films_with_truth(self, data: Manifest) -> Manifest:
        """Those with one of the classes, or, where they may have several, of which any is known."""
        return usable_films(data.relabelled(self.class_of), self.classes, self.multi_label)

    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """Discrimination, calibration and the confusion matrix, pooled and by source; plots into `out`."""
        from cxr_pipeline.stages.classify_figures import SHOWN, figures, worst_first
        from cxr_pipeline.stages.label_figures import figures_of_labels

        data = self.films_with_truth(data)
        rows, tiles = [], []
        for row, record in stream(data, [*chain, self], description="classify"):
            entry = {k: row[k] for k in ("image", "patient", "source", "label")} | {"status": record.status}
            if record.ok:
                entry |= {f"p_{name}": value for name, value in record.probabilities.items()} | {
                    "predicted": record.label
                }
                if not self.multi_label:
                    tiles.append((entry, lung_crop(record, 160)[0]))
                    tiles = worst_first(tiles, self.positive, lambda tile: tile[0])[:SHOWN]
            if self.multi_label:
                known = targets_of([row], self.classes)[0]
                entry |= {
                    f"true_{name}": int(value) for name, value in zip(self.classes, known, strict=True) if value >= 0
                }
            rows.append(entry)
        if self.multi_label:
            return figures_of_labels(rows, self.classes, self.thresholds, out)
        return figures(
            rows, tiles, self.classes, self.positive, self.card["decisions"].get("normal"), self.threshold, out
        )
