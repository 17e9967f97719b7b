"""Classify: what the lungs look like. A network sees the lung crop; its answer is calibrated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from data.geometry import Box, Frame
from models.weights import LICENCE, fingerprint, open_network, read_card, write_card
from stages.base import Record, Stage
from stages.classify_calibration import mix_offsets, one_class, several_labels, weight_offsets
from stages.classify_targets import UNKNOWN, balance_weights, label_weights, one_hot, source_priors, zones_with_lesions
from stages.classify_targets import several_labels as targets_of
from stages.films import sources_of, stream
from stages.quality import MIN_SIDE, by_header
from stages.uncertain import uncertain

if TYPE_CHECKING:
    from configs.schema import Config
    from data.manifest import Manifest
    from models.weights import Network

log = logging.getLogger("cxr.classify")

MACHINE = ("cache", "distribute", "precision")  # settings of how a training runs, not of what it learns
_VERSION = 2  # of the preprocessing: cached crops of another version are not used
_DARKEST, _BRIGHTEST = 0.12, 0.88  # where the lungs' 1st and 99th percentile come to lie; calcified spots keep headroom


def lung_crop(record: Record, size: int) -> tuple[np.ndarray, np.ndarray, Frame]:
    """The lung box of a film on the network's grid, first half of the stage's one preprocessing.

    Grey levels are stretched by the lungs' own percentiles, so that neither exposure nor what lies outside the
    lungs (borders, plates, the abdomen) sets the contrast. The box is stretched to a square, so that the film's aspect
    ratio, which betrays its hospital, is gone.

    Without segmentation (a record without mask) it is the whole film, and all of it counts as lung.

    Returns:
        The crop (size, size) uint8, the lungs (size, size) uint8 0/1, and the frame that leads back to native pixels.
    """
    height, width = record.radiograph.size
    frame = Frame.crop((height, width), record.lung_box or Box(0, 0, width, height), size)
    crop = frame.to_grid(record.radiograph.pixels)
    if record.mask is None:
        lungs = np.ones(crop.shape, np.uint8)
    else:
        lungs = (frame.to_grid(record.mask * np.uint8(255)) >= 128).astype(np.uint8)
    inside = crop[lungs > 0]
    low, high = np.percentile(inside, [1, 99]) if inside.size else (0.0, 1.0)
    scaled = _DARKEST + (_BRIGHTEST - _DARKEST) * (crop - low) / max(high - low, 1e-3)
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8), lungs, frame


def encoder_input(crop: np.ndarray, lungs: np.ndarray, how: str, pool: str = "all") -> np.ndarray:
    """The network's input of a crop and its lungs, second half of the preprocessing (after augmentation in training).

    Args:
        crop: (H, W) uint8. lungs: (H, W) uint8, 0 or 1.
        how: "none" and "crop" the crop as it is; "masked" all but the lungs faded to black; "channel" the lungs as a
            second channel.
        pool: "lungs" and "zones" add the lungs as the second channel too, for the network to average its features over.

    Returns:
        (H, W, 1 or 2) float32 in [0, 1].
    """
    grey = crop.astype(np.float32) / 255.0
    if how == "masked":
        grey = grey * soft_lungs(lungs)
    if how == "channel" or pool != "all":
        return np.stack([grey, lungs.astype(np.float32)], axis=-1)
    return grey[..., None]


def soft_lungs(lungs: np.ndarray) -> np.ndarray:
    """The lungs grown by 4 % of the crop with a soft edge, (H, W) float32 in [0, 1].

    Grown, because pleura, hilar nodes and the lung behind a wrongly placed outline are where disease shows too; soft,
    because a hard edge is the strongest thing in the picture.
    """
    reach = max(1, round(0.04 * lungs.shape[0]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.GaussianBlur(cv2.dilate(lungs, kernel).astype(np.float32), (0, 0), reach / 2)


class Classify(Stage):
    """The classification stage, loaded from its bundle."""

    name: ClassVar[str] = "classify"

    def __init__(self, network: Network, card: dict[str, Any], fingerprint: str = "") -> None:
        self.network, self.card, self.fingerprint = network, card, fingerprint
        self.refuse = True  # without segmentation: False judges films too that their header speaks against
        decisions = card["decisions"]
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
        # Added to the logits divided by the temperature; a site brings its own, see pipeline.calibration.
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
        elif against:
            record.extra["warnings"] = [*record.extra.get("warnings", ()), *map(str, against)]

    def _judge(self, record: Record, logits: np.ndarray) -> None:
        """Calibrated probabilities, score and label from a film's logits (classes,).

        The label is the positive class where its probability reaches the operating threshold (set for a sensitivity,
        not for accuracy: a missed TB costs more than a second look), else the likeliest of the others. Where a film may
        have several labels, it is all that reach their thresholds, joined by a pipe sign.
        """
        from models.metrics import softmax

        record.extra["logits"] = logits
        scaled = logits / self.temperature + self.offsets
        values = 1 / (1 + np.exp(-scaled.astype(float))) if self.multi_label else softmax(scaled[None])[0]
        record.probabilities = {name: float(value) for name, value in zip(self.classes, values, strict=True)}
        if self.positive is not None:
            record.tb_score = 100.0 * record.probabilities[self.positive]
            record.extra["positive"] = self.positive
        if self.multi_label:
            there = [name for name in self.classes if record.probabilities[name] >= self.thresholds[name]]
            record.label = "|".join(there)
            return
        positive = record.probabilities[self.positive]
        if doubt := uncertain(positive, self.threshold, self.threshold_ci95):
            record.extra["warnings"] = [*record.extra.get("warnings", ()), *doubt]
        others = [name for name in self.classes if name != self.positive]
        record.label = (
            self.positive if positive >= self.threshold else max(others, key=record.probabilities.__getitem__)
        )

    @classmethod
    def require(cls, data: Manifest, config: Config) -> None:
        """Films in train and in val: with the positive class and without, or of which any label is known."""
        _require_films(_parts(data, config), data, config)

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Train on the lung crops of `train`, watching the loss on `val`; calibrate on `val`."""
        from data.augment import classify_augmentation
        from data.batches import Batches
        from data.progress import progress_bar
        from models.backend import keras, replicas
        from models.classifiers import build_classifier, free_encoder, with_prior
        from models.export import save_bundle
        from models.fit import PHASE_SETTINGS, Phase, TrainingError, average_with_start, fit, set_batchnorm_momentum
        from models.gradcam import has_linear_head
        from models.losses import KnownLabelsAccuracy, classification_loss
        from models.plots import label_counts
        from models.probe import Lesions, solve_head
        from models.training_log import summary, training_bar

        k = keras()
        settings = config.classify
        cls.require(data, config)
        parts = _parts(data, config)
        folder = Path(config.cache or out / "cache")
        crops = {split: _crops(part, config, chain, folder) for split, part in parts.items()}
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

    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """Discrimination, calibration and the confusion matrix, pooled and by source; plots into `out`."""
        from stages.classify_figures import SHOWN, figures, worst_first
        from stages.label_figures import figures_of_labels

        data = usable_films(data.relabelled(self.class_of), self.classes, self.multi_label)
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
                told = targets_of([row], self.classes)[0]
                entry |= {
                    f"true_{name}": int(value) for name, value in zip(self.classes, told, strict=True) if value >= 0
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


def usable_films(data: Manifest, classes: Sequence[str], multi_label: bool, uncertain: str = "ignore") -> Manifest:
    """The films that have one of the classes as label, or, where they may have several, of which any is known.

    `uncertain`: what uncertain labels count as in training; in figures they are unknown.
    """
    if not multi_label:
        return data.select(labels=classes)
    known = (targets_of(data.table.to_dict("records"), classes, uncertain) >= 0).any(axis=1)
    return replace(data, table=data.table[known].reset_index(drop=True))


def _parts(data: Manifest, config: Config) -> dict[str, Manifest]:
    """The films to train on, and to watch and calibrate on."""
    settings = config.classify
    chosen = data.select(source=sources_of(data, settings.fit))
    usable = usable_films(chosen, config.classes, config.multi_label, settings.uncertain)
    return {split: usable.select(split=split) for split in ("train", "val")}


def _require_films(parts: dict[str, Manifest], data: Manifest, config: Config) -> None:
    """Refuse a training that cannot end well before it begins; warn of classes that it cannot learn.

    Raises:
        TrainingError: train or val is empty, or has no film of the positive class, or none without it.
    """
    from models.fit import TrainingError

    settings = config.classify.fit
    there = sorted(set(data.table["source"]))
    if settings.sources is not None:
        absent = [name for name in settings.sources if name not in there]
        chosen = f" of the sources {', '.join(settings.sources)} (classify.fit.sources)"
        advice = ". To train on all sources: --set classify.fit.sources=null"
        if absent and len(absent) < len(settings.sources):
            log.warning("classify.fit.sources names %s, of which there is no film", ", ".join(absent))
    else:
        chosen = f" (left out: {', '.join(settings.leave_out)})" if settings.leave_out else ""
        advice = ""
    what = "of which any class is known" if config.multi_label else "with a class as its label"
    for split, part in parts.items():
        if not len(part):
            column = "findings" if config.multi_label else "label"
            labels = sorted({name for cell in data.table[column] for name in cell.split("|")} - {""})
            raise TrainingError(
                f"no film of split {split!r}{chosen} {what}. Classes: {', '.join(config.classes)}; "
                f"{column} there: {_few(labels)}; sources there: {_few(there)}{advice}"
            )
        if config.multi_label:
            continue
        positive = int((part.table["label"] == config.positive).sum())
        if positive in (0, len(part)):
            raise TrainingError(
                f"{positive} of {len(part)} films of split {split!r}{chosen} have the positive class, "
                f"{config.positive}: films with it and without are needed in train and val{advice}"
            )
        lacking = [name for name in config.classes if not (part.table["label"] == name).any()]
        if lacking:
            log.warning("no film of split %r is %s%s", split, " or ".join(lacking), chosen)


def _few(names: Sequence[str]) -> str:
    return (", ".join(names[:8]) or "none") + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _crops(
    data: Manifest, config: Config, chain: Sequence[Stage], folder: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]], np.ndarray]:
    """Crops and lungs (N, size, size) uint8, one-hot targets (N, classes) float32, the films' rows, and their zones.

    The zones are (N, 6) float32: 1 where a film of the positive class has a lesion, 0 where not, NaN where unknown.
    """
    from data.cache import kept_arrays

    size = config.classify.size
    table = data.table.to_dict("records")

    def boxes_of(row: dict[str, Any]) -> list[Box]:
        return [box for _, box in data.boxes_of(row["image"])] if row["label"] == config.positive else []

    def rows() -> Any:
        for number, (row, record) in enumerate(stream(data, chain, description="lung crops")):
            if record.ok:
                crop, lungs, frame = lung_crop(record, size)
                yield number, {"crop": crop, "lungs": lungs, "zones": zones_with_lesions(lungs, boxes_of(row), frame)}

    films = [(row["image"], [tuple(box) for box in boxes_of(row)]) for row in table]
    key = ["classify", _VERSION, size, [s.fingerprint for s in chain], films, str(data.root)]
    shapes = {"crop": (size, size), "lungs": (size, size), "zones": (6,)}
    arrays, numbers = kept_arrays(folder, key, len(data), shapes, rows)
    kept = [table[number] for number in numbers]
    if config.multi_label:
        targets = targets_of(kept, config.classes, config.classify.uncertain)
    else:
        targets = one_hot(kept, config.classes)
    zones = np.where(arrays["zones"] == UNKNOWN, np.nan, arrays["zones"]).astype(np.float32)
    return arrays["crop"], arrays["lungs"], targets, kept, zones
