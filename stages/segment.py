"""Segment: where the lungs are. A UNet on a MobileNetV2 encoder sees the whole film as a small square."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Box, Frame, bounding_box, coarse
from cxr_pipeline.data.radiograph import Radiograph, RadiographError
from cxr_pipeline.models.store import NO_LICENCE, fingerprint, open_network, read_card, write_card
from cxr_pipeline.stages.base import DETAIL, Monitor, Record, Stage, Truth
from cxr_pipeline.stages.films import read_mask, sources_of, stream
from cxr_pipeline.stages.lungs import clean, largest
from cxr_pipeline.stages.quality import MIN_SIDE, Finding, Quality, View, by_header, shown
from cxr_pipeline.stages.segment_films import FOUND, TRUE, arrays_of, encode, stretch, tile_of

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest
    from cxr_pipeline.models.store import Network

log = logging.getLogger("cxr.segment")


def postprocess(probability: np.ndarray, frame: Frame, threshold: float) -> np.ndarray:
    """Lung probability on the network's grid (h, w), as a clean mask (H, W) uint8 0/1 at native size.

    The probability is brought to native size and thresholded there, so outlines are smooth on large films.
    """
    return clean(organ(probability, frame, threshold), reuse=True)


def organ(probability: np.ndarray, frame: Frame, threshold: float) -> np.ndarray:
    """Where a probability on the network's grid (h, w) reaches the threshold on the film, (H, W) uint8 0/1."""
    levels = frame.to_native(levels_of(probability))
    # OpenCV's threshold keeps what is greater, in one pass; here in the place of the levels.
    return cv2.threshold(levels, round(threshold * 255.0) - 1, 1, cv2.THRESH_BINARY, dst=levels)[1]


def levels_of(probability: np.ndarray) -> np.ndarray:
    """Probabilities in [0, 1] as uint8 levels, 0 to 255."""
    return np.round(probability * 255.0).astype(np.uint8)


class Segment(Stage):
    """The segmentation stage, loaded from its bundle."""

    name: ClassVar[str] = "segment"
    summary: ClassVar[str] = "where the lungs are, and whether the film can be judged"
    shared: ClassVar[bool] = True
    fills: ClassVar[tuple[str, ...]] = ("mask", "lung_box", "lung_fraction", "heart_mask")
    run_settings: ClassVar[tuple[str, ...]] = ("threshold", "margin", "min_fraction", "min_side", "min_age")
    call_settings: ClassVar[tuple[str, ...]] = ("refuse",)
    truth: ClassVar[Truth] = Truth("a lung mask", "column `mask`")
    headline_figures: ClassVar[tuple[str, ...]] = ("dice", "iou", "hd95_px")
    worst: ClassVar[tuple[str, str] | None] = ("dice", "Dice")
    monitor: ClassVar[Monitor] = Monitor("val_dice", "max")

    def __init__(
        self, network: Network, card: Mapping[str, Any], fingerprint: str = "", quality: Quality | None = None
    ) -> None:
        self.network, self.card, self.fingerprint, self.quality = network, card, fingerprint, quality
        self.obey(card["decisions"])

    def obey(self, decisions: Mapping[str, Any]) -> None:
        """Take over the card's decisions, with the settings of a call."""
        # False: films that cannot be judged go on, with what speaks against them as warnings.
        self.refuse: bool = decisions.get("refuse", True)
        self.size: int = decisions["size"]
        self.threshold: float = decisions["threshold"]
        self.margin: float = decisions["margin"]
        self.min_fraction: float = decisions["min_fraction"]
        self.min_side: int = decisions.get("min_side", MIN_SIDE)
        self.min_age: float | None = decisions.get("min_age", 15)
        self.heart: bool = decisions.get("heart", False)

    @classmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx", threads: int | None = None) -> Segment:
        """The stage as stored in `bundle`."""
        network = open_network(bundle, runtime, threads)
        return cls(network, read_card(bundle), fingerprint(bundle), Quality.load(bundle))

    @property
    def detail(self) -> int | None:
        """Four times what the network sees."""
        return max(DETAIL, 4 * self.size)

    @property
    def grids(self) -> tuple[int, ...]:
        """What the network sees: the lung box hangs on it to the pixel, and scores on the lung box."""
        return (self.size,)

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Fill in `mask`, `lung_box` and `lung_fraction`; refuse films that cannot be judged (see `stages.quality`)."""
        todo = [record for record in records if record.ok]
        views, hearts = self._answered([record.film for record in todo])
        for record, view, heart in zip(todo, views, hearts, strict=True):
            frame = Frame.letterbox(record.film.size, self.size, record.film.aspect)
            self._fill(record, postprocess(view.lungs, frame, self.threshold))
            if coarse(record.film.size, record.film.aspect, self.size):
                self._fill_square(record, view.lungs)
            if heart is not None:
                record.heart_mask = largest(organ(heart, frame, self.threshold), reuse=True)
            reasons = by_header(record.film, self.min_side, self.min_age)
            hints: list[Finding] = []
            if self.quality is not None:
                found, hints = self.quality.findings(record.film, view, self._seen)
                reasons += found
            self._conclude(record, [*reasons, *self._too_little_lung(record)], hints)
        return list(records)

    @property
    def restorable(self) -> bool:
        """A results folder holds the lungs alone: where the heart is looked for too, both are found again."""
        return not self.heart

    def views(self, films: Sequence[Radiograph]) -> list[View]:
        """Films as the network sees them, with what it answers."""
        return self._answered(films)[0]

    def _answered(self, films: Sequence[Radiograph]) -> tuple[list[View], list[np.ndarray | None]]:
        """The views of films, and the heart's probability (s, s) on the same grid; None where it is not looked for."""
        frames = [Frame.letterbox(film.size, self.size, film.aspect) for film in films]
        raws = [film.on(frame) for film, frame in zip(films, frames, strict=True)]
        return self._looked(raws, [shown(frame) for frame in frames])

    def _seen(self, raws: Sequence[np.ndarray], places: Sequence[tuple[slice, slice]]) -> list[View]:
        """The views of grids (s, s), each with the rows and columns of it that the film covers."""
        return self._looked(raws, places)[0]

    def _looked(
        self, raws: Sequence[np.ndarray], places: Sequence[tuple[slice, slice]]
    ) -> tuple[list[View], list[np.ndarray | None]]:
        if not raws:
            return [], []
        greys = [stretch(raw) for raw in raws]
        answers = self.network(np.stack(greys)[..., None])["lungs"]
        views = []
        for raw, grey, lungs, place in zip(raws, greys, answers[..., 0], places, strict=True):
            mask = np.zeros(lungs.shape, np.uint8)
            mask[place] = clean(lungs >= self.threshold)[place]
            views.append(View(raw, grey, lungs, mask, place))
        return views, list(answers[..., 1]) if self.heart else [None] * len(views)

    def restore(self, record: Record, mask: np.ndarray) -> Record:
        """Take over a mask (H, W) 0/1 of a film that nothing spoke against: all that this stage fills in follows."""
        self._fill(record, mask)
        self._conclude(record, self._too_little_lung(record), [])
        return record

    def _fill(self, record: Record, mask: np.ndarray) -> None:
        record.mask = mask.astype(np.uint8, copy=False)
        record.lung_fraction = cv2.countNonZero(record.mask) / record.mask.size
        box = bounding_box(record.mask)
        height, width = record.mask.shape
        if box is not None:
            record.lung_box = box.grown(self.margin).rounded().intersect(Box(0, 0, width, height))

    def _fill_square(self, record: Record, lungs: np.ndarray) -> None:
        """Lungs and box of a film with few, oblong pixels, as exact as on a film with square ones."""
        (height, width), aspect = record.film.size, record.film.aspect
        square = (round(height * aspect), width) if aspect > 1 else (height, round(width / aspect))
        mask = postprocess(lungs, Frame.letterbox(square, self.size), self.threshold)
        box = bounding_box(mask)
        if box is not None:
            box = box.grown(self.margin).rounded().intersect(Box(0, 0, square[1], square[0]))
            record.lung_box = box.scaled(height / square[0], width / square[1])
            record.square_mask = mask

    def _too_little_lung(self, record: Record) -> list[Finding]:
        fraction = record.lung_fraction or 0.0
        if fraction >= self.min_fraction and record.lung_box is not None:
            return []
        return [
            Finding(
                "no_lungs",
                f"lungs cover {100 * fraction:.1f} % of the film, at least "
                f"{100 * self.min_fraction:.0f} % are needed. Is it an upright frontal chest X-ray?",
            )
        ]

    def _conclude(self, record: Record, reasons: Sequence[Finding], hints: Sequence[Finding]) -> None:
        """Refuse a film that something speaks against; or go on with warnings, if there is lung to go on with."""
        if reasons and (self.refuse or record.lung_box is None):
            record.refuse(str(reasons[0]))
        else:
            record.warn(*map(str, (*reasons, *hints)))

    @classmethod
    def belongs(cls, decisions: Mapping[str, Mapping[str, Any]]) -> bool:
        """Unless the classifier sees whole films."""
        return decisions.get("classify", {}).get("lungs") != "none"

    def unchecked(self) -> str | None:
        """It can tell a chest film where the training had enough films for `stages.quality` to be fitted."""
        if self.quality is None:
            return "were trained on fewer films with lung masks than a check can be fitted on"
        return None

    @classmethod
    def _parts(cls, data: Manifest, config: Config) -> dict[str, Manifest]:
        """The films with masks to train on, and to watch."""
        settings = config.segment
        masked = data.select(has_mask=True, source=sources_of(data, settings.fit))
        return {"train": masked.select(split=settings.fit.splits), "val": masked.select(split="val")}

    @classmethod
    def require(cls, data: Manifest, config: Config) -> None:
        """Films with lung masks in train and val, and with hearts where these are learned; weights for the encoder."""
        from cxr_pipeline.models.training.fit import TrainingError
        from cxr_pipeline.models.unet import require_encoder

        for split, part in cls._parts(data, config).items():
            if not len(part):
                raise TrainingError(
                    f"no film of split {split!r} and the sources trained on has a lung mask. Name masks in the column "
                    "`mask` of the manifest, or take a segmentation that is trained already: --set segment.weights=tb"
                )
            if config.segment.heart and not ("heart_mask" in part.table and (part.table["heart_mask"] != "").any()):
                raise TrainingError(
                    f"segment.heart is true, but no film of split {split!r} and the sources trained on has a mask of "
                    "the heart. Name them in the column `heart_mask` of the manifest, or set segment.heart to false"
                )
        settings = config.segment
        require_encoder(settings.encoder, settings.alpha, settings.encoder_weights, data.root)

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Train on the films of `segment.fit.splits` that have masks, watching Dice on those of `val`."""
        from cxr_pipeline.data.augment import segment_augmentation
        from cxr_pipeline.data.batches import Batches
        from cxr_pipeline.models.backend import keras, replicas
        from cxr_pipeline.models.export import save_bundle
        from cxr_pipeline.models.training.fit import PHASE_SETTINGS, Objective, Phase, Training, set_batchnorm_momentum
        from cxr_pipeline.models.training.log import summary, training_bar
        from cxr_pipeline.models.training.losses import DiceScore, LungsAndHeart, OrganDice, segmentation_loss
        from cxr_pipeline.models.unet import unet_of
        from cxr_pipeline.stages.quality_fit import fit_bundle

        cls.require(data, config)
        settings = config.segment
        parts = cls._parts(data, config)
        arrays = {
            split: arrays_of(part, settings.size, Path(config.cache or out / "cache"), heart=settings.heart)
            for split, part in parts.items()
        }
        keras().utils.set_random_seed(config.seed)
        model = unet_of(settings, data.root)
        set_batchnorm_momentum(model)
        batches = partial(
            Batches,
            targets=None,
            encode=encode,
            batch_size=settings.fit.batch_size,
            seed=config.seed,
            replicas=replicas(),
        )
        train = batches(
            *arrays["train"],
            augmentation=segment_augmentation if settings.fit.augment else None,
            shuffle=True,
        )
        val = batches(*arrays["val"])
        if settings.heart:
            loss = LungsAndHeart(settings.loss, settings.heart_weight)
            metrics = lambda: [OrganDice(0, name="dice"), OrganDice(1, name="heart_dice")]  # noqa: E731
        else:
            loss, metrics = segmentation_loss(settings.loss), lambda: [DiceScore()]
        phase = Phase("fit", **settings.fit.model_dump(include=PHASE_SETTINGS))
        with training_bar(cls.name, [phase]) as on_batch:
            history = Training(
                model,
                Objective(loss, metrics, *cls.monitor),
                train,
                val,
                out,
                phases=[phase],
                settings=f"{settings.model_dump_json()} {config.seed} {data.content_hash(labels=False)}",
                on_batch=on_batch,
            ).run()
        content = save_bundle(model, out)
        decisions = settings.model_dump(include={"size", "threshold", "margin", "min_fraction", "min_side", "min_age"})
        if settings.heart:
            decisions["heart"] = True
        card = {"stage": cls.name, "decisions": decisions, "licence": NO_LICENCE, "content": content}
        write_card(out, card | {"training": summary(out, parts, settings.model_dump(mode="json"), history, data)})
        fit_bundle(out, cls.load(out), data.select(split="train"))
        return out

    def films_with_truth(self, data: Manifest) -> Manifest:
        """Those with a lung mask."""
        return data.select(has_mask=True)

    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """Dice, IoU and HD95 of the lungs at native size, on the films of `data` that have masks.

        `heart_dice` is on those of them that have a mask of the heart, too, where the stage finds it.
        """
        from cxr_pipeline.data.filmmasks import film_mask
        from cxr_pipeline.models.figures.metrics import bootstrap_mean, dice, hd95, iou
        from cxr_pipeline.models.figures.plots import contact_sheet

        rows, tiles = [], []
        for row, record in stream(self.films_with_truth(data), [self], description="segment"):
            size = record.size
            if record.radiograph is None:
                continue
            try:
                truth = film_mask(data, row, size)
                has_heart = self.heart and row.get("heart_mask")
                heart = read_mask(data.path(row["heart_mask"]), size) if has_heart else None
            except RadiographError as error:
                log.warning("%s", error)
                continue
            if record.mask is None:
                record.mask = np.zeros(size, np.uint8)  # refused or failed: no lung found
            scores = {
                "dice": dice(truth, record.mask),
                "iou": iou(truth, record.mask),
                "hd95_px": min(hd95(truth, record.mask), float(np.hypot(*size))),  # nothing found: the film's diagonal
            }
            if heart is not None:
                found = record.heart_mask if record.heart_mask is not None else np.zeros(size, np.uint8)
                scores["heart_dice"] = dice(heart, found)
            rows.append({**{k: row[k] for k in ("image", "patient", "source")}, "status": record.status, **scores})
            tiles.append(
                (scores["dice"], tile_of(record, truth), f"{row['image'].split('/')[-1]} {scores['dice']:.3f}")
            )
            tiles = sorted(tiles, key=lambda tile: tile[0])[:20]
        if tiles:
            legend = [("true outline", TRUE), ("outline found", FOUND), ("number: Dice", None)]
            contact_sheet([t[1] for t in tiles], [t[2] for t in tiles], out / "worst.png", legend=legend)

        def mean(name: str) -> Any:
            known = [row for row in rows if name in row]
            return bootstrap_mean(np.array([row[name] for row in known]), np.array([row["patient"] for row in known]))

        names = ("dice", "iou", "hd95_px", *(["heart_dice"] if any("heart_dice" in row for row in rows) else []))
        return {**{name: mean(name) for name in names}, "films": rows}
