"""Trains the small network of the lungs that ships, to answer as a large one does (Hinton et al. 2015, distillation).

    python docs/experiments/distil.py --data MANIFEST --teacher WEIGHTS --out DIR --work FOLDER

Few films have masks of the lungs, and a small network learns less from them than a large one. The large one, the
teacher, can answer on any film: so the small one learns from films of all sources, in views of which some are turned,
cut or inverted, where it is to answer as the teacher does too (Beyer et al. 2022). Where a film has a mask, the mask
counts as much as the teacher. Films are those of `train`, and those that the teacher's own training names.

`--without SOURCE` leaves a source's films and masks out. Give a teacher that never saw them either.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from cxr_pipeline.configs.schema import Config, load_config
from cxr_pipeline.data.augment import opacity_augmentation, segment_augmentation
from cxr_pipeline.data.cache import kept_arrays
from cxr_pipeline.data.filmmasks import film_mask
from cxr_pipeline.data.geometry import Frame
from cxr_pipeline.data.manifest import Manifest, read_manifest
from cxr_pipeline.data.radiograph import RadiographError
from cxr_pipeline.models.export import save_bundle
from cxr_pipeline.models.store import LICENCE, bundle_of, find, read_card, write_card
from cxr_pipeline.models.training.fit import Objective, Phase, Training, set_batchnorm_momentum
from cxr_pipeline.models.training.log import summary, training_bar
from cxr_pipeline.models.training.losses import DiceScore, segmentation_loss
from cxr_pipeline.models.unet import unet_of
from cxr_pipeline.stages.films import read_mask, stream
from cxr_pipeline.stages.quality_fit import fit_bundle
from cxr_pipeline.stages.segment import Segment
from cxr_pipeline.stages.segment_films import preprocess
from cxr_pipeline.train.evaluation import evaluate_stage, summary_of

log = logging.getLogger("cxr.experiments")

VIEWS = (3, 8)  # of a film without a mask, and of one with; its first is the film as it is
AT_MOST = {"covidradiography": 1500, "kermany": 300}  # films of the two largest sources
VAL_AT_MOST = 80
BATCH = 16
UNKNOWN = 2  # of a mask that nobody drew
# How often a view is turned by a quarter or more, inverted, mirrored.
TURNED, INVERTED, MIRRORED = 0.06, 0.04, 0.05


def films_of(data: Manifest, split: str, without: str | None) -> Manifest:
    """Films of a split, the largest sources cut down; for `train`, also those of `external` that have a mask."""
    table = data.table[data.table["source"] != without]
    chosen = [table[(table["split"] == "external") & (table["mask"] != "")]] if split == "train" else []
    for source, films in table[table["split"] == split].groupby("source"):
        limit = VAL_AT_MOST if split == "val" else AT_MOST.get(str(source), len(films))
        drawn = films["image"].map(lambda image: hashlib.sha256(image.encode()).hexdigest()).sort_values()
        chosen.append(films.loc[drawn.index[:limit]])
    return replace(data, table=pd.concat(chosen).sort_values("image", ignore_index=True))


def truth_on(frame: Frame, data: Manifest, row: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Masks of lungs and heart on the network's grid, (s, s, 2) uint8: 0, 1, or UNKNOWN where nobody drew them."""
    truth = np.full((*frame.grid, 2), UNKNOWN, np.uint8)
    try:
        if row["mask"]:
            truth[..., 0] = frame.to_grid(film_mask(data, row, size), nearest=True)
        if row.get("heart_mask"):
            truth[..., 1] = frame.to_grid(read_mask(data.path(row["heart_mask"]), size), nearest=True)
    except RadiographError as error:
        log.warning("%s: the teacher answers alone: %s", row["image"], error)
    return truth


def view_of(image: np.ndarray, truth: np.ndarray, seed: int, cut: float) -> tuple[np.ndarray, np.ndarray]:
    """A view of a film (s, s) uint8 and of its masks (s, s, 2).

    Args:
        cut: how often a part of the film is cut off on one side, and what is left letterboxed, as a film so cut is.
    """
    rng = np.random.default_rng(seed)
    changed = segment_augmentation(seed % 2**31, opacities=False)(image=image, mask=truth)
    image, truth = changed["image"], changed["mask"]
    if rng.random() < cut:
        image, truth = cut_off(image, truth, rng)
    if rng.random() < TURNED:
        quarter = int(rng.integers(1, 4))
        image, truth = np.rot90(image, quarter), np.rot90(truth, quarter)
    if rng.random() < INVERTED:
        image = 255 - image
    if rng.random() < MIRRORED:
        image, truth = image[:, ::-1], truth[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(truth)


def cut_off(image: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A film and its masks without a part at one of four sides, on the square that they had. The bottom goes most."""
    side, lost = image.shape[0], rng.uniform(0.1, 0.5)
    first, last = int(side * lost), int(side * (1 - lost))
    part = (np.s_[:last], np.s_[:last], np.s_[first:], np.s_[:, :last], np.s_[:, first:])[rng.integers(5)]
    frame = Frame.letterbox(image[part].shape, side)
    masks = [frame.to_grid(np.ascontiguousarray(truth[part][..., k]), nearest=True) for k in range(2)]
    unknown = (truth == UNKNOWN).all(axis=(0, 1))
    masks = [np.full_like(mask, UNKNOWN) if missing else mask for mask, missing in zip(masks, unknown, strict=True)]
    return frame.to_grid(np.ascontiguousarray(image[part])), np.stack(masks, axis=-1)


def views(
    data: Manifest, teacher: Segment, work: Path, *, each: tuple[int, int] = VIEWS, cut: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Views (N, s, s) of films and what is to be answered (N, s, s, 2), uint8; 255 is a probability of one.

    Args:
        each: views of a film without a mask, and of one with; the first is the film as it is.
        cut: see `view_of`.
    """
    size = teacher.size
    counts = [each[bool(row["mask"])] for row in data.rows()]
    first = np.cumsum([0, *counts])

    def drawn() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for number, (row, record) in enumerate(stream(data, description="views")):
            if not record.ok:
                continue
            grid, frame = preprocess(record.film.pixels, size, record.film.aspect)
            image = np.round(grid * 255).astype(np.uint8)
            truth = truth_on(frame, data, row, record.size)
            for view in range(counts[number]):
                seed = int(hashlib.sha256(f"{row['image']} {view}".encode()).hexdigest()[:15], 16)
                yield (first[number] + view, *(view_of(image, truth, seed, cut) if view else (image, truth)))

    def rows() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        batch: list[tuple[int, np.ndarray, np.ndarray]] = []
        for one in drawn():
            batch.append(one)
            if len(batch) == BATCH:
                yield from answered(batch, teacher)
                batch = []
        if batch:
            yield from answered(batch, teacher)

    key = ["distil", 2, teacher.fingerprint, sorted(data.table["image"]), data.content_hash(labels=False), each, cut]
    shapes = {"view": (size, size), "answer": (size, size, 2)}
    arrays, _ = kept_arrays(work, key, int(first[-1]), shapes, rows)
    return arrays["view"], arrays["answer"]


def answered(
    batch: list[tuple[int, np.ndarray, np.ndarray]], teacher: Segment
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The views of a batch with the answers; then some of their lungs are made white, and the answers stay."""
    asked = np.stack([image for _, image, _ in batch]).astype(np.float32)[..., None] / 255
    answers = teacher.network(asked)["lungs"]
    for (number, image, truth), answer in zip(batch, answers, strict=True):
        target = np.where(truth == UNKNOWN, answer, (answer + truth) / 2)
        lungs = (target[..., 0] >= 0.5).astype(np.uint8)
        white = opacity_augmentation(int(number))(image=image, mask=lungs)["image"]
        yield number, {"view": white, "answer": np.round(target * 255).astype(np.uint8)}


class Views(keras.utils.PyDataset):
    """Views in batches, shuffled by (seed, epoch); a training that goes on sees them in the same order."""

    def __init__(self, arrays: tuple[np.ndarray, np.ndarray], *, shuffle: bool, seed: int = 0) -> None:
        super().__init__(workers=2, max_queue_size=8)
        self.images, self.answers = arrays
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0

    def __len__(self) -> int:
        return len(self.images) // BATCH if self.shuffle else -(-len(self.images) // BATCH)

    def on_epoch_end(self) -> None:
        """Called by Keras after each epoch."""
        self.epoch += 1

    def __getitem__(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Views (n, s, s, 1) and answers (n, s, s, 2), float32 in [0, 1]."""
        order = np.arange(len(self.images))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        chosen = order[batch * BATCH : (batch + 1) * BATCH]
        images, answers = (np.stack([array[k] for k in chosen]) for array in (self.images, self.answers))
        return images[..., None].astype(np.float32) / 255, answers.astype(np.float32) / 255


@keras.saving.register_keras_serializable(package="cxr_experiments")
class AsTheTeacher(keras.losses.Loss):
    """The segmentation loss on lungs, and half of it on the heart, with probabilities as targets."""

    def __init__(self, heart_weight: float = 0.5, **kwargs: Any) -> None:
        super().__init__(name="as_the_teacher", **kwargs)
        self.heart_weight, self.organ = heart_weight, segmentation_loss("dice_cross_entropy")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One loss a view, shape (N,)."""
        lungs, heart = (self.organ.call(y_true[..., k : k + 1], y_pred[..., k : k + 1]) for k in range(2))
        return lungs + self.heart_weight * heart


class LungDice(DiceScore):
    """Dice of the lungs, against what is to be answered."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch (N, s, s, 2)."""
        super().update_state(y_true[..., :1], y_pred[..., :1], sample_weight)


def distil(
    data: Manifest,
    config: Config,
    teacher: Segment,
    out: Path,
    work: Path,
    without: str | None = None,
    each: tuple[int, int] = VIEWS,
    cut: float = 0.3,
) -> None:
    """Train, from the weights `segment.start` if there are any, and write the stage's bundle into `out`."""
    settings = config.segment
    parts = {split: films_of(data, split, without) for split in ("train", "val")}
    arrays = {
        "train": views(parts["train"], teacher, work, each=each, cut=cut),
        "val": views(parts["val"], teacher, work, each=(1, 1)),
    }
    keras.utils.set_random_seed(config.seed)
    model = unet_of(settings, data.root)  # `segment.heart` is true: the teacher finds it
    set_batchnorm_momentum(model)
    phase = Phase("fit", settings.fit.epochs, settings.fit.learning_rate, weight_decay=1e-4, ema=settings.fit.ema)
    with training_bar("segment", [phase]) as on_batch:
        history = Training(
            model,
            Objective(AsTheTeacher(), lambda: [LungDice()], "val_dice", "max"),
            Views(arrays["train"], shuffle=True, seed=config.seed),
            Views(arrays["val"], shuffle=False),
            out,
            phases=[phase],
            settings=f"{settings.model_dump_json()} {config.seed} {teacher.fingerprint} {without} {each} {cut}",
            on_batch=on_batch,
        ).run()
    content = save_bundle(model, out)
    told = summary(out, parts, settings.model_dump(mode="json"), history, data)
    told["distilled"] = f"from {teacher.card['content']['network'][:12]}: docs/experiments/distil.py"
    write_card(
        out,
        {"stage": "segment", "decisions": teacher.card["decisions"], "licence": LICENCE, "content": content}
        | {"training": told},
    )
    seen = replace(data, table=data.table[data.table["source"] != without])
    fit_bundle(out, Segment.load(out), seen.select(split="train"))
    judge(out, data, without)


def judge(out: Path, data: Manifest, without: str | None) -> None:
    """Put the figures on `test` into the bundle's card, and those on the source that was left out."""
    stage = Segment.load(out)
    parts = {"test": data.select(split="test")}
    if without:
        parts[f"without {without}"] = data.select(source=without)
    figures = {}
    for name, part in parts.items():
        if len(stage.films_with_truth(part)):
            split = "test" if name == "test" else None
            figures[name] = summary_of(evaluate_stage(stage, part, out / "evaluation" / name, split=split))
    write_card(out, read_card(out) | {"figures": figures})


def main() -> None:
    """Train, and say where the weights are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", default="tb", help="weights whose segmentation is to be matched, by name or path")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="views and answers; several trainings may share them")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--views", type=int, nargs=2, default=VIEWS, help="of a film without a mask, and of one with")
    parser.add_argument("--cut", type=float, default=0.3, help="share of the views in which a side is cut off")
    parser.add_argument("--without", metavar="SOURCE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    fit = [f"segment.fit.epochs={given.epochs}", "segment.fit.learning_rate=0.002", "segment.heart=true"]
    fit.append("segment.fit.splits=[train, external]")
    config = load_config("tb", [*fit, f"segment.fit.batch_size={BATCH}", *given.set])
    teacher = Segment.load(bundle_of(find(given.teacher), "segment"))
    distil(
        read_manifest(given.data), config, teacher, given.out, given.work, given.without, tuple(given.views), given.cut
    )
    print(f"trained: {given.out}")


if __name__ == "__main__":
    main()
