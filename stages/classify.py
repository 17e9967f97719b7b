"""Classify: what the lungs look like. A network sees the lung crop; its answer is calibrated."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cxr_pipeline.models.store import LICENCE, fingerprint, open_network, read_card, write_card
from cxr_pipeline.stages.base import Monitor, Record, Stage, Truth
from cxr_pipeline.stages.classify_calibration import mix_offsets, one_class, several_labels, weight_offsets
from cxr_pipeline.stages.classify_films import crops_of, parts_of, require_films, usable_films, warn_of_gaps
from cxr_pipeline.stages.classify_targets import balance_weights, label_weights, source_priors
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

MACHINE = ("cache", "distribute", "precision")  # settings of how a training runs, not of what it learns


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
        """Films in train and in val: with the positive class and without, or of which any label is known."""
        require_films(data, config)

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Train on the lung crops of `train`, watching the loss on `val`; calibrate on `val`."""
        from cxr_pipeline.data.augment import classify_augmentation
        from cxr_pipeline.data.batches import Batches
        from cxr_pipeline.data.progress import progress_bar
        from cxr_pipeline.models.backbones.classifiers import build_classifier, free_encoder, with_prior
        from cxr_pipeline.models.backend import keras, replicas
        from cxr_pipeline.models.export import save_bundle
        from cxr_pipeline.models.figures.plots import label_counts
        from cxr_pipeline.models.gradcam import has_linear_head
        from cxr_pipeline.models.training.fit import (
            PHASE_SETTINGS,
            Phase,
            TrainingError,
            average_with_start,
            fit,
            set_batchnorm_momentum,
        )
        from cxr_pipeline.models.training.log import summary, training_bar
        from cxr_pipeline.models.training.losses import KnownLabelsAccuracy, classification_loss
        from cxr_pipeline.models.training.probe import Lesions, solve_head

        k = keras()
        settings = config.classify
        cls.require(data, config)
        parts = parts_of(data, config)
        warn_of_gaps(parts, config)
        folder = Path(config.cache or out / "cache")
        crops = {split: crops_of(part, config, chain, folder) for split, part in parts.items()}
        common = {
            "encode": lambda crop, lungs: encoder_input(crop, lungs, settings.lungs, settings.pool),
            "batch_size": settings.fit.batch_size,
            "seed": config.seed,
            "replicas": replicas(),
        }

        def batches(split: str, **more: Any) -> Batches:
            images, lungs, targets, rows, _ = crops[split]
            if config.multi_label:
                weights, priors = None, np.zeros_like(targets)
            else:
                weights = balance_weights(rows, settings.balance)
                priors = source_priors(rows, config.classes, weights, settings.source_prior)
            return Batches(images, lungs, targets, **common, weights=weights, beside={"prior": priors}, **more)

        told = not config.multi_label and settings.source_prior > 0 and len(set(parts["train"].table["source"])) > 1
        # The source's share of the classes is given for free, to val's films too: on films of sources with one class
        # each, that alone answers everything.
        accuracy = "accuracy_given_source" if told else "accuracy"
        augmentation = classify_augmentation if settings.fit.augment else None
        train, val = batches("train", augmentation=augmentation, shuffle=True), batches("val")
        k.utils.set_random_seed(config.seed)
        model = build_classifier(
            settings.network,
            settings.size,
            2 if settings.lungs == "channel" else 1,
            len(config.classes),
            alpha=settings.alpha,
            cut=settings.cut,
            dropout=settings.dropout,
            head_l2=settings.head_l2,
            pool=settings.pool,
            encoder_weights=settings.encoder_weights,
            nearby=data.root,
            multi_label=config.multi_label,
        )
        several = None
        if config.multi_label:
            targets = crops["train"][2]
            several = label_weights(targets) if settings.label_weights else np.ones((targets.shape[1], 2), np.float32)
            label_counts(targets, several, config.classes, out / "labels.png")
        linear = has_linear_head(model)  # then the last layer is solved, and training starts from there
        if not (linear or settings.fit.epochs):
            raise TrainingError(
                f"classify.fit.epochs is 0, but {settings.network} has a deep head, which is trained and not solved. "
                "Give it epochs"
            )
        pretrained = settings.encoder_weights is not None and any(layer.name == "encoder" for layer in model.layers)
        phase = Phase(
            "fine", **settings.fit.model_dump(include=PHASE_SETTINGS), prepare=free_encoder(batchnorm=not pretrained)
        )
        if not pretrained:
            set_batchnorm_momentum(model)

        lesions = None
        zones = crops["train"][4]
        if (
            settings.pool == "zones"
            and config.normal
            and config.positive
            and settings.lesion_weight
            and np.isfinite(zones).any()
        ):
            positive, normal = (config.classes.index(name) for name in (config.positive, config.normal))
            lesions = Lesions(zones, positive, normal, settings.lesion_weight)

        def solve(when: str) -> dict[str, float]:
            with progress_bar(f"{cls.name} head", None) as update:
                loss = solve_head(
                    model,
                    train,
                    out / "checkpoint" / when,
                    passes=settings.head_passes,
                    l2=settings.head_l2,
                    label_smoothing=settings.label_smoothing,
                    lesions=lesions,
                    several=several,
                    on_batch=lambda done, total: update(done, f"{cls.name} head", total),
                )
            return {"loss": loss}

        training = with_prior(model, config.multi_label)
        weights = None if several is None else several.tolist()
        loss = classification_loss(settings.loss, config.multi_label, settings.label_smoothing, weights)
        with training_bar(cls.name, [phase]) as on_batch:
            history = fit(
                training,
                [phase],
                train,
                val,
                out,
                loss=loss,
                metrics=lambda: [
                    KnownLabelsAccuracy() if several is not None else k.metrics.CategoricalAccuracy(accuracy)
                ],
                monitor="val_loss",
                mode="min",
                settings=" ".join(
                    [
                        config.model_dump_json(exclude={"name", "segment", "localize", *MACHINE}),
                        data.content_hash(labels=True),
                        *(stage.fingerprint for stage in chain),
                    ]
                ),
                start=(lambda: solve("before")) if linear and settings.head_passes else None,
                on_batch=on_batch,
            )
        if linear and settings.resolve_head and settings.fit.epochs:
            solve("after")
        if linear and settings.keep_start:
            average_with_start(training, out, settings.keep_start)
        save_bundle(model, out)
        decisions = {
            "classes": config.classes,
            "positive": config.positive,
            "normal": config.normal,
            **({"class_of": config.class_of} if config.class_of else {}),
            **settings.model_dump(include={"size", "lungs", "pool"}),
            "temperature": 1.0,
            "offsets": mix_offsets(config.classes, settings.assumed_mix),
            "threshold": 0.5,
        }
        if several is not None:
            thresholds = dict.fromkeys(config.classes, 0.5)
            more = {"multi_label": True, "offsets": weight_offsets(config.classes, several), "thresholds": thresholds}
            decisions |= more
        card = {"stage": cls.name, "decisions": decisions, "licence": LICENCE}
        write_card(out, card)
        learned = (crops["train"][2] == 1).any(axis=0) & (crops["train"][2] == 0).any(axis=0)
        decisions |= cls.load(out)._calibrated(*crops["val"][:4], settings.target_sensitivity, learned)
        write_card(out, card | {"training": summary(out, parts, settings.model_dump(mode="json"), history, data)})
        return out

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

    def _calibrated(
        self,
        crops: np.ndarray,
        lungs: np.ndarray,
        targets: np.ndarray,
        rows: Sequence[dict[str, Any]],
        target_sensitivity: float,
        learned: np.ndarray,
    ) -> dict[str, Any]:
        """The decisions that the val films' logits make; see `stages.classify_calibration`."""
        pairs = list(zip(crops, lungs, strict=True))
        logits = np.concatenate(
            [
                self.network(np.stack([encoder_input(c, m, self.lungs, self.pool) for c, m in pairs[i : i + 32]]))[
                    "logits"
                ]
                for i in range(0, len(pairs), 32)
            ]
        )
        if self.multi_label:
            return several_labels(logits, targets, self.offsets, self.classes, learned)
        positive = self.classes.index(self.positive)
        patients = [row["patient"] for row in rows]
        return one_class(logits, targets.argmax(axis=1), self.offsets, positive, target_sensitivity, patients)
