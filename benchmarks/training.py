"""Whether reading and augmenting films keeps a network waiting in training, and how PyTorch's training compares.

    python benchmarks/training.py --data MANIFEST [--stage segment|classify] [--torch PYTHON] [--batches 40]

In turns: training on batches as they come (cached arrays, augmented in threads), and on one batch given again and
again, which waits for nothing. What the first takes longer is waiting. Preparing alone is measured too. With --torch, a
Python that has torch trains a network of the same shape on the same films in the same turns, see training_torch.py.

Networks are those of the preset tb, from random weights, all of them trained with Adam; films are augmented, though the
preset does not augment those of the classifier. The classifier gets whole films in place of lung crops.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import keras
import numpy as np

from cxr_pipeline.configs.schema import Config, load_config
from cxr_pipeline.data.augment import classify_augmentation, segment_augmentation
from cxr_pipeline.data.batches import Batches
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.classifier import build_classifier, network_settings
from cxr_pipeline.models.training.losses import segmentation_loss
from cxr_pipeline.models.unet import unet_of
from cxr_pipeline.stages.crops import encoder_input
from cxr_pipeline.stages.segment_films import arrays_of, encode

Seconds = tuple[float, float]  # that passed, and of processor time


class Again(keras.utils.PyDataset):
    """One batch, `count` times."""

    def __init__(self, batch: tuple, count: int) -> None:
        super().__init__(workers=1)
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple:
        return self.batch


class Torch:
    """The peer, which waits for its turns in a process of its own."""

    def __init__(self, python: str, films: Path, stage: str, batch_size: int, threads: int) -> None:
        script = Path(__file__).parent / "training_torch.py"
        command = [python, str(script), str(films), stage, str(batch_size), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.weights = int(self._line()[0])

    def _line(self) -> list[str]:
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if not words:
            raise SystemExit("the training in PyTorch ended early; what it said stands above")
        return words

    def train(self) -> Seconds:
        """One pass over the films."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        passed, used = map(float, self._line())
        return passed, used

    def close(self) -> None:
        """No further turn."""
        self.process.communicate()


def timed(work: Callable[[], object]) -> Seconds:
    """How long it took."""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


def network_of(config: Config, stage: str) -> keras.Model:
    """The network of a stage as the config says, compiled."""
    if stage == "segment":
        model = unet_of(config.segment)
        model.compile("adam", segmentation_loss(config.segment.loss), jit_compile=False)
        return model
    settings, classes = config.classify, len(config.classes)
    model = build_classifier(
        settings.network, settings.size, 1, classes, pool=settings.pool, **network_settings(settings)
    )
    model.compile("adam", "categorical_crossentropy", jit_compile=False)
    return model


def batches_of(config: Config, stage: str, manifest: str, count: int, kept: Path) -> Batches:
    """`count` batches of films of train, whose arrays and targets are kept as an .npz file too."""
    settings = config.segment if stage == "segment" else config.classify
    wanted = count * settings.fit.batch_size
    films = read_manifest(manifest).select(split="train", has_mask=True)
    films = replace(films, table=films.table.head(wanted))
    images, masks = (np.array(array) for array in arrays_of(films, settings.size, kept.parent))
    images, masks = (np.resize(array, (wanted, *array.shape[1:])) for array in (images, masks))
    targets = np.eye(3, dtype=np.float32)[np.arange(wanted) % 3]
    np.savez(kept, images=images, masks=masks, targets=targets)
    classify = partial(encoder_input, mode=config.classify.lungs, pool=config.classify.pool)
    return Batches(
        images,
        masks,
        None if stage == "segment" else targets,
        encode if stage == "segment" else classify,
        batch_size=settings.fit.batch_size,
        augmentation=segment_augmentation if stage == "segment" else classify_augmentation,
        shuffle=True,
        seed=1,
    )


def show(seconds: dict[str, list[Seconds]], films: int) -> None:
    """Print films per second, how long the network waited, and how many times our seconds PyTorch took."""
    for name, values in seconds.items():
        passed, used = zip(*values, strict=True)
        print(
            f"{name:16} {films / statistics.median(passed):7.1f} films/s ({min(passed):.1f} to {max(passed):.1f} s), "
            f"{1000 * statistics.median(used) / films:6.1f} ms of processor time a film"
        )
    ours = seconds["as they come"]
    shares = [max(0.0, 1 - b[0] / a[0]) for a, b in zip(ours, seconds["network alone"], strict=True)]
    low, middle, high = (100 * value for value in (min(shares), statistics.median(shares), max(shares)))
    print(f"waiting {middle:.0f} % of the time ({low:.0f} to {high:.0f})")
    for kind, name in enumerate(("seconds", "processor seconds")):
        ratios = [torch[kind] / own[kind] for torch, own in zip(seconds.get("PyTorch", ()), ours, strict=False)]
        if ratios:
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds"
            print(f"PyTorch takes {statistics.median(ratios):.2f} times our {name} ({spread})")


def main() -> None:
    """Measure one stage's training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--stage", choices=["segment", "classify"], default="segment")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has torch; without it that peer is left out")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the networks; default: all cores")
    options = parser.parse_args()
    config = load_config("tb", ["classify.encoder_weights=null", "segment.encoder_weights=null"])
    keras.config.disable_interactive_logging()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "films.npz"
        batches = batches_of(config, options.stage, options.data, options.batches, kept)
        peer = options.torch and Torch(options.torch, kept, options.stage, batches.batch_size, options.threads)
        model = network_of(config, options.stage)
        weights = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        print(f"weights that are trained: {weights}" + (f", of PyTorch {peer.weights}" if peer else ""), flush=True)
        model.fit(Again(batches[0], 2), epochs=1, verbose=0)  # compiles
        turns: dict[str, Callable[[], Seconds]] = {
            "as they come": lambda: timed(lambda: model.fit(batches, epochs=1, verbose=0, shuffle=False)),
            **({"PyTorch": peer.train} if peer else {}),
            "network alone": lambda: timed(lambda: model.fit(again, epochs=1, verbose=0, shuffle=False)),
            "preparing alone": lambda: timed(lambda: [batches[number] for number in range(len(batches))]),
        }
        again = Again(batches[0], len(batches))
        seconds: dict[str, list[Seconds]] = {name: [] for name in turns}
        for _ in range(options.rounds):
            for name, turn in turns.items():
                seconds[name].append(turn())
        if peer:
            peer.close()
    show(seconds, len(batches) * batches.batch_size)


if __name__ == "__main__":
    main()
