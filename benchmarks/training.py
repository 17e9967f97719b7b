"""Whether reading and augmenting films keeps a network waiting in training: share of the time, and films per second.

    python benchmarks/training.py --data MANIFEST [--stage segment|classify] [--batches 40] [--rounds 3]

In turns: training on batches as they come (cached arrays, augmented in threads), and on one batch given again and
again, which waits for nothing. What the first takes longer is waiting. Preparing alone is measured too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import keras
import numpy as np

from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data.augment import classify_augmentation, segment_augmentation
from cxr_pipeline.data.batches import Batches
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.classifier import build_classifier
from cxr_pipeline.models.training.losses import DiceCrossEntropy
from cxr_pipeline.models.unet import build_unet
from cxr_pipeline.stages.crops import encoder_input
from cxr_pipeline.stages.segment_films import arrays_of, encode


class Again(keras.utils.PyDataset):
    """One batch, `count` times."""

    def __init__(self, batch: tuple, count: int) -> None:
        super().__init__(workers=1)
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple:
        return self.batch


def main() -> None:
    """Measure one stage's training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--stage", choices=["segment", "classify"], default="segment")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config = load_config("tb", ["classify.encoder_weights=null", "segment.encoder_weights=null"])
    films = read_manifest(options.data).select(split="train", has_mask=True)
    if options.stage == "segment":
        size, batch_size, augmentation = config.segment.size, config.segment.fit.batch_size, segment_augmentation
        model = build_unet(size, decoder_filters=config.segment.decoder_filters)
        model.compile("adam", DiceCrossEntropy(), jit_compile=False)
    else:
        size, batch_size, augmentation = config.classify.size, config.classify.fit.batch_size, classify_augmentation
        settings = config.classify
        model = build_classifier("mobilenetv2", size, 1, 3, alpha=settings.alpha, cut=settings.cut, pool=settings.pool)
        model.compile("adam", "categorical_crossentropy", jit_compile=False)
    with tempfile.TemporaryDirectory() as cache:
        images, masks = (np.array(array) for array in arrays_of(films, size, Path(cache)))
    repeats = -(-options.batches * batch_size // len(images))
    images, masks = np.tile(images, (repeats, 1, 1)), np.tile(masks, (repeats, 1, 1))
    images, masks = images[: options.batches * batch_size], masks[: options.batches * batch_size]
    targets, encode = None, encode
    if options.stage == "classify":
        targets = np.eye(3, dtype=np.float32)[np.arange(len(images)) % 3]

        def encode(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
            return encoder_input(image, mask, config.classify.lungs, config.classify.pool)

    batches = Batches(
        images, masks, targets, encode, batch_size=batch_size, augmentation=augmentation, shuffle=True, seed=1
    )
    again = Again(batches[0], len(batches))
    model.fit(again, epochs=1, verbose=0)  # compiles
    seconds: dict[str, list[float]] = {"as they come": [], "network alone": [], "preparing alone": []}
    for _ in range(options.rounds):
        for name, data in (("as they come", batches), ("network alone", again)):
            begun = time.perf_counter()
            model.fit(data, epochs=1, verbose=0, shuffle=False)
            seconds[name].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        for number in range(len(batches)):
            batches[number]
        seconds["preparing alone"].append(time.perf_counter() - begun)
    for name, values in seconds.items():
        pace = len(images) / statistics.median(values)
        print(f"{name:16} {pace:7.1f} films/s ({min(values):.1f} to {max(values):.1f} s)")
    shares = [max(0.0, 1 - b / a) for a, b in zip(seconds["as they come"], seconds["network alone"], strict=True)]
    low, middle, high = (100 * value for value in (min(shares), statistics.median(shares), max(shares)))
    print(f"waiting {middle:.0f} % of the time ({low:.0f} to {high:.0f})")


if __name__ == "__main__":
    main()
