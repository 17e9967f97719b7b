"""Classify: what the lungs look like. A network sees the lung crop; its answer is calibrated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from data.geometry import Box, Frame
from models.weights import LICENCE, fingerprint, open_network, read_card, write_card
from stages.base import Record, Stage
from stages.classify_targets import UNKNOWN, balance_weights, source_priors, zones_with_lesions
from stages.films import sources_of, stream
from stages.uncertain import threshold_interval, uncertain

if TYPE_CHECKING:
    from configs.schema import Config
    from data.manifest import Manifest
    from models.weights import Network

log = logging.getLogger("cxr.classify")

_VERSION = 2  # of the preprocessing: cached crops of another version are not used
_DARKEST, _BRIGHTEST = 0.12, 0.88  # where the lungs' 1st and 99th percentile come to lie; calcified spots keep headroom


def lung_crop(record: Record, size: int) -> tuple[np.ndarray, np.ndarray, Frame]:
    """The lung box of a film on the network's grid, first half of the stage's one preprocessing.

    Grey levels are stretched by the lungs' own percentiles, so that neither exposure nor what lies outside the
    lungs (borders, plates, the abdomen) sets the contrast. The box is stretched to a square, so that the film's aspect
    ratio, which betrays its hospital, is gone.

    Returns:
        The crop (size, size) uint8, the lungs (size, size) uint8 0/1, and the frame that leads back to native pixels.
    """
    frame = Frame.crop(record.radiograph.size, record.lung_box, size)
    crop = frame.to_grid(record.radiograph.pixels)
    lungs = (frame.to_grid(record.mask * np.float32(1)) >= 0.5).astype(np.uint8)
    inside = crop[lungs > 0]
    low, high = np.percentile(inside, [1, 99]) if inside.size else (0.0, 1.0)
    scaled = _DARKEST + (_BRIGHTEST - _DARKEST) * (crop - low) / max(high - low, 1e-3)
    return np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8), lungs, frame


def encoder_input(crop: np.ndarray, lungs: np.ndarray, how: str, pool: str = "all") -> np.ndarray:
    """The network's input of a crop and its lungs, second half of the preprocessing (after augmentation in training).

    Args:
        crop: (H, W) uint8. lungs: (H, W) uint8, 0 or 1.
        how: "crop" the crop as it is; "masked" all but the lungs faded to black; "channel" the lungs as a second
            channel.
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
        decisions = card["decisions"]
        self.classes: list[str] = decisions["classes"]
        self.positive: str = decisions["positive"]
        self.size: int = decisions["size"]
        self.lungs: str = decisions["lungs"]
        self.pool: str = decisions.get("pool", "all")
        self.temperature: float = decisions["temperature"]
        self.threshold: float = decisions["threshold"]
        self.threshold_ci95: list[float] | None = decisions.get("threshold_ci95")
        # Added to the logits divided by the temperature; a site brings its own, see pipeline.calibration.
        self.offsets = np.array([decisions.get("offsets", {}).get(name, 0.0) for name in self.classes])

    @classmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx") -> Classify:
        """The stage as stored in `bundle`."""
        return cls(open_network(bundle, runtime), read_card(bundle), fingerprint(bundle))

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Fill in `probabilities`, `label`, `tb_score`, and the Grad-CAM `maps` with their `frame`."""
        todo = [record for record in records if record.ok]
        if todo:
            crops = [lung_crop(record, self.size) for record in todo]
            batch = np.stack([encoder_input(crop, lungs, self.lungs, self.pool) for crop, lungs, _ in crops])
            answer = self.network(batch)
            for record, (_, _, frame), logits, maps in zip(todo, crops, answer["logits"], answer["maps"], strict=True):
                self._judge(record, logits)
                record.maps, record.frame = maps, frame
        return list(records)

    def _judge(self, record: Record, logits: np.ndarray) -> None:
        """Calibrated probabilities, score and label from a film's logits (classes,).

        The label is the positive class where its probability reaches the operating threshold (set for a sensitivity,
        not for accuracy: a missed TB costs more than a second look), else the likeliest of the others.
        """
        from models.metrics import softmax

        record.extra["logits"] = logits
        values = softmax(logits[None] / self.temperature + self.offsets)[0]
        record.probabilities = {name: float(value) for name, value in zip(self.classes, values, strict=True)}
        positive = record.probabilities[self.positive]
        record.tb_score = 100.0 * positive
        if doubt := uncertain(positive, self.threshold, self.threshold_ci95):
            record.extra["warnings"] = [*record.extra.get("warnings", ()), *doubt]
        others = [name for name in self.classes if name != self.positive]
        record.label = (
            self.positive if positive >= self.threshold else max(others, key=record.probabilities.__getitem__)
        )

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Train on the lung crops of `train`, watching the loss on `val`; calibrate on `val`."""
        from data.augment import classify_augmentation
        from data.batches import Batches
        from data.progress import progress_bar
        from models.backend import keras
        from models.classifiers import build_classifier
        from models.export import save_bundle
        from models.fit import PHASE_SETTINGS, Phase, average_with_start, fit, set_batchnorm_momentum
        from models.probe import Lesions, solve_head
        from models.training_log import summary, training_bar

        k = keras()
        settings = config.classify
        usable = data.select(labels=config.classes, source=sources_of(data, settings.fit))
        parts = {split: usable.select(split=split) for split in ("train", "val")}
        folder = Path(config.cache or out / "cache")
        crops = {split: _crops(part, config, chain, folder) for split, part in parts.items()}
        common = {
            "encode": lambda crop, lungs: encoder_input(crop, lungs, settings.lungs, settings.pool),
            "batch_size": settings.fit.batch_size,
            "seed": config.seed,
        }

        def batches(split: str, **more: Any) -> Batches:
            images, lungs, targets, rows, _ = crops[split]
            weights = balance_weights(rows, settings.balance)
            priors = source_priors(rows, config.classes, weights, settings.source_prior)
            return Batches(images, lungs, targets, **common, weights=weights, beside={"prior": priors}, **more)

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
        )
        pretrained = settings.encoder_weights is not None
        phase = Phase(
            "fine", **settings.fit.model_dump(include=PHASE_SETTINGS), prepare=_free(batchnorm=not pretrained)
        )
        if not pretrained:
            set_batchnorm_momentum(model)

        lesions = None
        zones = crops["train"][4]
        if settings.pool == "zones" and config.normal and settings.lesion_weight and np.isfinite(zones).any():
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
                    on_batch=lambda done, total: update(done, f"{cls.name} head", total),
                )
            return {"loss": loss}

        training = _with_prior(model)
        with training_bar(cls.name, [phase]) as on_batch:
            history = fit(
                training,
                [phase],
                train,
                val,
                out,
                loss=k.losses.CategoricalCrossentropy(label_smoothing=settings.label_smoothing),
                metrics=lambda: [k.metrics.CategoricalAccuracy(name="accuracy")],
                monitor="val_loss",
                mode="min",
                settings=f"{settings.model_dump_json()} {config.classes} {config.seed} {data.split_hash()}",
                start=lambda: solve("before"),
                on_batch=on_batch,
            )
        if settings.resolve_head and settings.fit.epochs:
            solve("after")
        if settings.keep_start:
            average_with_start(training, out, settings.keep_start)
        save_bundle(model, out)
        decisions = {
            "classes": config.classes,
            "positive": config.positive,
            "normal": config.normal,
            **settings.model_dump(include={"size", "lungs", "pool"}),
            "temperature": 1.0,
            "offsets": mix_offsets(config.classes, settings.assumed_mix),
            "threshold": 0.5,
        }
        card = {"stage": cls.name, "decisions": decisions, "licence": LICENCE}
        write_card(out, card)
        decisions |= _calibrate(cls.load(out), *crops["val"][:4], settings.target_sensitivity)
        write_card(out, card | {"training": summary(out, parts, settings.model_dump(mode="json"), history, data)})
        return out

    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """Discrimination, calibration and the confusion matrix, pooled and by source; plots into `out`."""
        from stages.classify_figures import figures

        data = data.select(labels=self.classes)
        rows, tiles = [], []
        for row, record in stream(data, [*chain, self], description="classify"):
            entry = {k: row[k] for k in ("image", "patient", "source", "label")} | {"status": record.status}
            if record.ok:
                entry |= {f"p_{name}": value for name, value in record.probabilities.items()} | {
                    "predicted": record.label
                }
                crop, _, _ = lung_crop(record, 160)
                tiles.append((record.probabilities[row["label"]], crop, _caption(row, record)))
                tiles = sorted(tiles, key=lambda tile: tile[0])[:20]
            rows.append(entry)
        return figures(
            rows, tiles, self.classes, self.positive, self.card["decisions"].get("normal"), self.threshold, out
        )


def _caption(row: dict[str, Any], record: Record) -> str:
    return f"{row['label']}, p {record.probabilities[row['label']]:.2f}: {Path(row['image']).stem}"


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
    targets = np.zeros((len(kept), len(config.classes)), np.float32)
    for line, row in enumerate(kept):
        targets[line, config.classes.index(row["label"])] = 1.0
    zones = np.where(arrays["zones"] == UNKNOWN, np.nan, arrays["zones"]).astype(np.float32)
    return arrays["crop"], arrays["lungs"], targets, kept, zones


def mix_offsets(classes: Sequence[str], mix: dict[str, float] | None) -> dict[str, float]:
    """What to add to each class's logit so that probabilities hold for a mix of classes in place of an even one."""
    shares = np.array([mix[name] if mix else 1.0 for name in classes], float)
    return {
        name: round(float(v), 4) for name, v in zip(classes, np.log(shares / shares.sum() * len(shares)), strict=True)
    }


def _with_prior(model: Any) -> Any:
    """The model as it is trained: a second input, added to the logits. Layers and weights are the same ones."""
    from models.backend import keras
    from models.gradcam import LOGITS

    k = keras()
    logits = model.get_layer(LOGITS).output
    prior = k.Input(logits.shape[1:], name="prior")
    answer = k.layers.Softmax(name="with_prior")(k.layers.Add()([logits, prior]))
    return k.Model({"crop": model.input, "prior": prior}, answer, name="training")


def _free(*, batchnorm: bool) -> Callable[[Any], None]:
    """Free the encoder; its BatchNorm moments stay ImageNet's where it came pretrained.

    Moments that follow the training films make the network fit for exactly their mix of hospitals.
    """
    from models.backend import keras

    def prepare(model: Any) -> None:
        encoder = model.get_layer("encoder")
        encoder.trainable = True
        for layer in encoder.layers:
            if isinstance(layer, keras().layers.BatchNormalization):
                layer.trainable = batchnorm

    return prepare


def _calibrate(
    stage: Classify,
    crops: np.ndarray,
    lungs: np.ndarray,
    targets: np.ndarray,
    rows: Sequence[dict[str, Any]],
    target_sensitivity: float,
) -> dict[str, Any]:
    """Temperature, and the operating threshold for the target sensitivity with its 95 % interval, from val films."""
    from models.metrics import fit_temperature, softmax, threshold_for_sensitivity

    logits = np.concatenate(
        [
            stage.network(
                np.stack(
                    [
                        encoder_input(c, m, stage.lungs, stage.pool)
                        for c, m in zip(crops[i : i + 32], lungs[i : i + 32], strict=True)
                    ]
                )
            )["logits"]
            for i in range(0, len(crops), 32)
        ]
    )
    labels = targets.argmax(axis=1)
    temperature = float(fit_temperature(logits, labels))
    positive = stage.classes.index(stage.positive)
    scores = softmax(logits / temperature + stage.offsets)[:, positive]
    threshold = float(threshold_for_sensitivity(labels == positive, scores, target_sensitivity))
    log.info(
        "temperature %.3f, threshold %.3f at sensitivity %.2f on %d val films",
        temperature,
        threshold,
        target_sensitivity,
        len(rows),
    )
    interval = threshold_interval(labels == positive, scores, target_sensitivity, [row["patient"] for row in rows])
    return {"temperature": round(temperature, 4), "threshold": round(threshold, 4), "threshold_ci95": interval}
