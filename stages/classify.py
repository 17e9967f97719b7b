"""Classify: what the lungs look like. A network sees the lung crop; its answer is calibrated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cxr_pipeline.models.store import fingerprint, open_network, read_card
from cxr_pipeline.stages.base import Monitor, Record, Stage, StageError, Truth, needed
from cxr_pipeline.stages.classify_films import parts_of, require_films, require_sources, usable_films, warn_of_gaps
from cxr_pipeline.stages.classify_targets import several_labels as targets_of
from cxr_pipeline.stages.crops import detail_of, encoder_input, lung_crop, rounded
from cxr_pipeline.stages.decisions import Rules, probabilities_of
from cxr_pipeline.stages.films import stream
from cxr_pipeline.stages.quality import MIN_SIDE, by_header
from cxr_pipeline.stages.scores import AT_THRESHOLD, Scale
from cxr_pipeline.stages.sets import Sets
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
    shared: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("mask", "lung_box")
    fills: ClassVar[tuple[str, ...]] = ("probabilities", "label", "screen", "tb_score", "abnormal", "maps", "frame")
    call_settings: ClassVar[tuple[str, ...]] = (
        *("refuse", "cutoff"),
        *("temperature", "offsets", "threshold", "threshold_ci95", "score", "sets"),  # of a site
    )
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
        self.thresholds: dict[str, float] = decisions.get("thresholds", {})  # of several labels per film
        self.threshold_ci95: list[float] | None = decisions.get("threshold_ci95")
        self.normal: str | None = decisions.get("normal")
        self.scale, self.sets = Scale.of(decisions.get("score")), Sets.of(decisions.get("sets"))
        self.cutoff: float = decisions.get("cutoff", AT_THRESHOLD)  # a person's own, of the score
        # Added to the logits divided by the temperature; a site brings its own, see train.calibration.
        self.offsets = np.array([decisions.get("offsets", {}).get(name, 0.0) for name in self.classes])

    def with_settings(self, **settings: Any) -> Stage:
        """See `Stage.with_settings`; `cutoff`, a score, is for stages that give one.

        Raises:
            StageError: the stage has no such setting, or gives no score.
        """
        if settings.get("cutoff") is not None and (self.positive is None or self.multi_label):
            raise StageError("--threshold: these weights give no score. Leave it out")
        return super().with_settings(**settings)

    @classmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx", threads: int | None = None) -> Classify:
        """The stage as stored in `bundle`."""
        return cls(open_network(bundle, runtime, threads), read_card(bundle), fingerprint(bundle))

    @property
    def rules(self) -> Rules:
        """What decides from probabilities on, as the card, a site or a person has it."""
        positive = needed(self.positive, "positive class")
        return Rules(positive, self.threshold, self.normal, self.scale, self.sets, self.cutoff)

    @property
    def detail(self) -> int | None:
        """See `stages.crops.detail_of`."""
        return detail_of(self.size)

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Fill in what is decided, from `probabilities` to `abnormal`, and the Grad-CAM `maps` with their `frame`.

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
        reasons = by_header(record.film, MIN_SIDE, None)
        if reasons and self.refuse:
            record.refuse(str(reasons[0]))
        else:
            record.warn(*map(str, reasons))

    def _judge(self, record: Record, logits: np.ndarray) -> None:
        """Calibrated probabilities from a film's logits (classes,), and what they decide: see `stages.decisions`.

        Where a film may have several labels, its label is all that reach their thresholds, joined by a pipe sign.
        """
        record.extra["logits"] = logits
        values = probabilities_of(logits, self.temperature, self.offsets, several=self.multi_label)
        record.probabilities = {name: float(value) for name, value in zip(self.classes, values, strict=True)}
        if self.positive is not None:
            record.extra["positive"] = self.positive
        if self.multi_label:
            present = [name for name in self.classes if record.probabilities[name] >= self.thresholds[name]]
            record.label = "|".join(present)
            if self.positive is not None:
                record.tb_score = 100.0 * record.probabilities[self.positive]
            return
        answer = self.rules.decide(record.probabilities)
        record.label, record.screen, record.tb_score = answer.label, answer.screen, answer.score
        record.abnormal, record.extra["cutoff"] = answer.abnormal, self.cutoff
        doubts = list(answer.doubts)
        if self.sets is None:  # a card of before
            doubts = uncertain(record.probabilities[self.rules.positive], self.threshold, self.threshold_ci95)
        record.warn(*doubts)

    @classmethod
    def require(cls, data: Manifest, config: Config) -> None:
        """Films in train and val, with the positive class and without, or of which any label is known; a network.

        Classes and sources without films are warned of, before the lungs are trained for hours.
        """
        cls._require(data, config)
        warn_of_gaps(parts_of(data, config), config)

    @staticmethod
    def _require(data: Manifest, config: Config) -> None:
        from cxr_pipeline.models.classifier import require_network

        require_films(data, config)
        require_network(config.classify, data.root)
        require_sources(data, config)

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Train on the lung crops of `train`, watching the loss on `val`; calibrate on `val`."""
        from cxr_pipeline.stages.classify_training import ClassifyTraining

        cls._require(data, config)
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
                probabilities = needed(record.probabilities, "probabilities")
                entry |= {f"p_{name}": value for name, value in probabilities.items()} | {
                    "predicted": record.label,
                    "screen": record.screen or "",
                    **({} if record.tb_score is None else {"score": record.tb_score}),
                }
                if not self.multi_label:
                    tiles.append((entry, rounded(lung_crop(record, 160)[0])))
                    tiles = worst_first(tiles, self.rules.positive, lambda tile: tile[0])[:SHOWN]
            if self.multi_label:
                known = targets_of([row], self.classes)[0]
                entry |= {
                    f"true_{name}": int(value) for name, value in zip(self.classes, known, strict=True) if value >= 0
                }
            rows.append(entry)
        if self.multi_label:
            return figures_of_labels(rows, self.classes, self.thresholds, out)
        return figures(rows, tiles, self.classes, self.rules, out)
