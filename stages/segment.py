"""Segment: where the lungs are. A UNet on a MobileNetV2 encoder sees the whole film as a small square."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import cv2
import numpy as np

from cxr_pipeline.data.geometry import Box, Frame, bounding_box
from cxr_pipeline.data.radiograph import Radiograph, RadiographError
from cxr_pipeline.models.store import LICENCE, fingerprint, open_network, read_card, write_card
from cxr_pipeline.stages.base import Record, Stage
from cxr_pipeline.stages.films import sources_of, stream
from cxr_pipeline.stages.quality import MIN_SIDE, Finding, Quality, View, by_header, shown

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest
    from cxr_pipeline.models.store import Network

log = logging.getLogger("cxr.segment")

_TRUE, _FOUND = (80, 220, 80), (60, 60, 255)  # BGR, of the outlines in worst.png
_SMALLEST_SHARE = 0.05  # a second component smaller than this share of the first is no lung


def preprocess(pixels: np.ndarray, size: int, aspect: float = 1.0) -> tuple[np.ndarray, Frame]:
    """What the network sees of a film, in training, running and evaluation alike.

    The film is letterboxed (its aspect ratio kept) and its grey levels stretched from the 1st to the 99th percentile of
    what is not black border, because exposure differs between hospitals far more than anatomy does.

    Args:
        pixels: (H, W) float32 in [0, 1].
        size: side of the network's square.
        aspect: height of a pixel divided by its width.

    Returns:
        (size, size) float32 in [0, 1], and the frame that leads back to native pixels.
    """
    frame = Frame.letterbox(pixels.shape, size, aspect)
    return stretch(frame.to_grid(pixels)), frame


def stretch(grid: np.ndarray) -> np.ndarray:
    """Grey levels (h, w) from the 1st to the 99th percentile of what is not black border; float32 in [0, 1]."""
    film = grid[grid > 0.02]
    if film.size == 0:
        return grid
    low, high = np.percentile(film, [1, 99])
    return np.clip((grid - low) / max(high - low, 1e-3), 0.0, 1.0).astype(np.float32)


def clean(mask: np.ndarray) -> np.ndarray:
    """The two largest components of a mask (H, W), their holes filled; uint8, 0 or 1.

    A second component under 5 % of the first is dropped too.
    """
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outlines = sorted(outlines, key=cv2.contourArea, reverse=True)[:2]
    if len(outlines) == 2 and cv2.contourArea(outlines[1]) < _SMALLEST_SHARE * cv2.contourArea(outlines[0]):
        outlines = outlines[:1]
    out = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(out, outlines, -1, 1, cv2.FILLED)
    return out


def postprocess(probability: np.ndarray, frame: Frame, threshold: float) -> np.ndarray:
    """Lung probability on the network's grid (h, w), as a clean mask (H, W) uint8 0/1 at native size.

    The probability is brought to native size and thresholded there, so outlines are smooth on large films.
    """
    levels = np.round(probability * 255.0).astype(np.uint8)
    return clean(frame.to_native(levels) >= round(threshold * 255.0))


class Segment(Stage):
    """The segmentation stage, loaded from its bundle."""

    name: ClassVar[str] = "segment"

    def __init__(
        self, network: Network, card: dict[str, Any], fingerprint: str = "", quality: Quality | None = None
    ) -> None:
        self.network, self.card, self.fingerprint, self.quality = network, card, fingerprint, quality
        self.refuse = True  # False: films that cannot be judged go on, with what speaks against them as warnings
        decisions = card["decisions"]
        self.size: int = decisions["size"]
        self.threshold: float = decisions["threshold"]
        self.margin: float = decisions["margin"]
        self.min_fraction: float = decisions["min_fraction"]
        self.min_side: int = decisions.get("min_side", MIN_SIDE)
        self.min_age: float | None = decisions.get("min_age", 15)

    @classmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx", threads: int | None = None) -> Segment:
        """The stage as stored in `bundle`."""
        network = open_network(bundle, runtime, threads)
        return cls(network, read_card(bundle), fingerprint(bundle), Quality.load(bundle))

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Fill in `mask`, `lung_box` and `lung_fraction`; refuse films that cannot be judged (see `stages.quality`)."""
        todo = [record for record in records if record.ok]
        for record, view in zip(todo, self.views([record.radiograph for record in todo]), strict=True):
            frame = Frame.letterbox(record.radiograph.size, self.size, record.radiograph.aspect)
            self._fill(record, postprocess(view.lungs, frame, self.threshold))
            against, besides = by_header(record.radiograph, self.min_side, self.min_age), []
            if self.quality is not None:
                found, besides = self.quality.findings(record.radiograph, view, self._seen)
                against += found
            self._conclude(record, [*against, *self._too_little_lung(record)], besides)
        return list(records)

    def views(self, films: Sequence[Radiograph]) -> list[View]:
        """Films as the network sees them, with what it answers."""
        frames = [Frame.letterbox(film.size, self.size, film.aspect) for film in films]
        raws = [frame.to_grid(film.pixels) for film, frame in zip(films, frames, strict=True)]
        return self._seen(raws, [shown(frame) for frame in frames])

    def _seen(self, raws: Sequence[np.ndarray], places: Sequence[tuple[slice, slice]]) -> list[View]:
        """The views of grids (s, s), each with the rows and columns of it that the film covers."""
        if not raws:
            return []
        greys = [stretch(raw) for raw in raws]
        answers = self.network(np.stack(greys)[..., None])["lungs"][..., 0]
        views = []
        for raw, grey, lungs, place in zip(raws, greys, answers, places, strict=True):
            mask = np.zeros(lungs.shape, np.uint8)
            mask[place] = clean(lungs >= self.threshold)[place]
            views.append(View(raw, grey, lungs, mask, place))
        return views

    def restore(self, record: Record, mask: np.ndarray) -> Record:
        """Take over a mask (H, W) 0/1 of a film that nothing spoke against: all that this stage fills in follows."""
        self._fill(record, mask)
        self._conclude(record, self._too_little_lung(record), [])
        return record

    def _fill(self, record: Record, mask: np.ndarray) -> None:
        record.mask = mask.astype(np.uint8)
        record.lung_fraction = float(record.mask.mean())
        box = bounding_box(record.mask)
        height, width = record.mask.shape
        if box is not None:
            record.lung_box = box.grown(self.margin).rounded().intersect(Box(0, 0, width, height))

    def _too_little_lung(self, record: Record) -> list[Finding]:
        if record.lung_fraction >= self.min_fraction and record.lung_box is not None:
            return []
        return [
            Finding(
                "no_lungs",
                f"lungs cover {100 * record.lung_fraction:.1f} % of the film, at least "
                f"{100 * self.min_fraction:.0f} % are needed. Is it an upright frontal chest X-ray?",
            )
        ]

    def _conclude(self, record: Record, against: Sequence[Finding], besides: Sequence[Finding]) -> None:
        """Refuse a film that something speaks against; or go on with warnings, if there is lung to go on with."""
        if against and (self.refuse or record.lung_box is None):
            record.refuse(str(against[0]))
        elif against or besides:
            record.extra["warnings"] = [*record.extra.get("warnings", ()), *map(str, (*against, *besides))]

    @classmethod
    def _parts(cls, data: Manifest, config: Config) -> dict[str, Manifest]:
        """The films with masks to train on, and to watch."""
        settings = config.segment
        masked = data.select(has_mask=True, source=sources_of(data, settings.fit))
        return {"train": masked.select(split=settings.fit.splits), "val": masked.select(split="val")}

    @classmethod
    def require(cls, data: Manifest, config: Config) -> None:
        """Films with lung masks in train and in val, and weights that the encoder can start from."""
        from cxr_pipeline.models.training.fit import TrainingError
        from cxr_pipeline.models.unet import require_encoder

        require_encoder(config.segment.encoder, config.segment.encoder_weights, data.root)

        for split, part in cls._parts(data, config).items():
            if not len(part):
                raise TrainingError(
                    f"no film of split {split!r} and the sources trained on has a lung mask. Name masks in the column "
                    "`mask` of the manifest, or take a segmentation that is trained already: --set segment.weights=tb"
                )

    @classmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Train on the films of `segment.fit.splits` that have masks, watching Dice on those of `val`."""
        from cxr_pipeline.data.augment import segment_augmentation
        from cxr_pipeline.data.batches import Batches
        from cxr_pipeline.models.backend import keras, replicas
        from cxr_pipeline.models.export import save_bundle
        from cxr_pipeline.models.training.fit import PHASE_SETTINGS, Objective, Phase, Training, set_batchnorm_momentum
        from cxr_pipeline.models.training.log import summary, training_bar
        from cxr_pipeline.models.training.losses import DiceScore, segmentation_loss
        from cxr_pipeline.models.unet import build_unet
        from cxr_pipeline.stages.quality_fit import fit_bundle

        cls.require(data, config)
        settings = config.segment
        parts = cls._parts(data, config)
        arrays = {
            split: _arrays(part, settings.size, Path(config.cache or out / "cache")) for split, part in parts.items()
        }
        keras().utils.set_random_seed(config.seed)
        model = build_unet(
            settings.size,
            encoder=settings.encoder,
            encoder_weights=settings.encoder_weights,
            decoder_filters=settings.decoder_filters,
            nearby=data.root,
        )
        set_batchnorm_momentum(model)
        common = {
            **{"encode": _encode, "batch_size": settings.fit.batch_size, "seed": config.seed},
            "replicas": replicas(),
        }
        train = Batches(
            *arrays["train"],
            None,
            **common,
            augmentation=segment_augmentation if settings.fit.augment else None,
            shuffle=True,
        )
        val = Batches(*arrays["val"], None, **common)
        phase = Phase("fit", **settings.fit.model_dump(include=PHASE_SETTINGS))
        with training_bar(cls.name, [phase]) as on_batch:
            history = Training(
                model,
                Objective(segmentation_loss(settings.loss), lambda: [DiceScore()], "val_dice", "max"),
                train,
                val,
                out,
                phases=[phase],
                settings=f"{settings.model_dump_json()} {config.seed} {data.content_hash(labels=False)}",
                on_batch=on_batch,
            ).run()
        content = save_bundle(model, out)
        decisions = settings.model_dump(include={"size", "threshold", "margin", "min_fraction", "min_side", "min_age"})
        card = {"stage": cls.name, "decisions": decisions, "licence": LICENCE, "content": content}
        write_card(out, card | {"training": summary(out, parts, settings.model_dump(mode="json"), history, data)})
        fit_bundle(out, cls.load(out), data.select(split="train"))
        return out

    def films_with_truth(self, data: Manifest) -> Manifest:
        """Those with a lung mask."""
        return data.select(has_mask=True)

    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """Dice, IoU and HD95 at native size, on the films of `data` that have masks."""
        from cxr_pipeline.data.filmmasks import film_mask
        from cxr_pipeline.models.figures.metrics import bootstrap_mean, dice, hd95, iou
        from cxr_pipeline.models.figures.plots import contact_sheet

        rows, tiles = [], []
        for row, record in stream(self.films_with_truth(data), [self], description="segment"):
            size = record.radiograph.size
            try:
                truth = film_mask(data, row, size)
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
            rows.append({**{k: row[k] for k in ("image", "patient", "source")}, "status": record.status, **scores})
            tiles.append((scores["dice"], _tile(record, truth), f"{row['image'].split('/')[-1]} {scores['dice']:.3f}"))
            tiles = sorted(tiles, key=lambda tile: tile[0])[:20]
        if tiles:
            legend = [("true outline", _TRUE), ("outline found", _FOUND), ("number: Dice", None)]
            contact_sheet([t[1] for t in tiles], [t[2] for t in tiles], out / "worst.png", legend=legend)
        patients = np.array([row["patient"] for row in rows])
        figures = {k: bootstrap_mean(np.array([r[k] for r in rows]), patients) for k in ("dice", "iou", "hd95_px")}
        return {**figures, "films": rows}


def _encode(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) / 255.0)[..., None]


def _arrays(data: Manifest, size: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The preprocessed films and masks of a manifest on the network's grid, two (N, size, size) uint8 arrays."""
    from cxr_pipeline.data.cache import kept_arrays
    from cxr_pipeline.data.filmmasks import film_mask

    def rows() -> Any:
        for number, (row, record) in enumerate(stream(data, description="reading films")):
            if not record.ok:
                continue
            try:
                mask = film_mask(data, row, record.radiograph.size)
            except RadiographError as error:
                log.warning("left out: %s", error)
                continue
            grid, frame = preprocess(record.radiograph.pixels, size, record.radiograph.aspect)
            yield number, {"image": np.round(grid * 255).astype(np.uint8), "mask": frame.to_grid(mask, nearest=True)}

    key = ["segment", 2, size, sorted(data.table["image"]), data.content_hash(labels=False), str(data.root)]
    arrays, _ = kept_arrays(folder, key, len(data), {"image": (size, size), "mask": (size, size)}, rows)
    return arrays["image"], arrays["mask"]


def _tile(record: Record, truth: np.ndarray) -> np.ndarray:
    """The film with the true outline in green and the found one in red, for the contact sheet; (h, w, 3) uint8 BGR."""
    scale = 256 / max(truth.shape)
    size = (max(1, round(truth.shape[1] * scale)), max(1, round(truth.shape[0] * scale)))
    pixels = (
        record.radiograph.pixels if record.radiograph.pixels.shape == truth.shape else np.zeros(truth.shape, np.float32)
    )
    tile = cv2.cvtColor(
        (cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) * 255).astype(np.uint8), cv2.COLOR_GRAY2BGR
    )
    for mask, colour in ((truth, _TRUE), (record.mask, _FOUND)):
        small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        outlines, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outlines, -1, colour, 1)
    return tile
