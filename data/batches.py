"""Batches for training, as a `keras.utils.PyDataset`: repeatable from any epoch on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

if TYPE_CHECKING:
    import albumentations as A

# What a stage makes of one film: (image uint8 (H, W), mask uint8 (H, W) 0/1) -> input float32 (H, W, C).
Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Batches(keras.utils.PyDataset):
    """Films in batches, shuffled and augmented by (seed, epoch, batch) alone.

    An epoch's batches do not depend on what ran before it, nor on the number of workers, so a training that was
    killed sees the same films in the same order and with the same augmentation when it goes on.

    Args:
        images: (N, H, W) uint8; may be a memory map.
        masks: (N, H, W) uint8, 0 or 1.
        targets: (N, K) float32, or None to learn the mask itself.
        encode: makes the network's input of one augmented film.
        augmentation: builds an albumentations pipeline from a seed; None leaves films as they are.
        weights: (N,) float32 weight of each film in the loss, or None.
        beside: further inputs of the network by name, (N, ...) float32 each; the film itself is then named "crop".
        shuffle: shuffle each epoch and drop the last, smaller batch.
        replicas: devices that share each batch evenly: it has a multiple of that many films, and the last one is filled
            up with its own again.
    """

    def __init__(
        self,
        images: np.ndarray,
        masks: np.ndarray,
        targets: np.ndarray | None,
        encode: Encode,
        *,
        batch_size: int,
        augmentation: Callable[[int], A.Compose] | None = None,
        weights: np.ndarray | None = None,
        beside: dict[str, np.ndarray] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        workers: int = 2,
        replicas: int = 1,
    ) -> None:
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=8)
        if len(images) == 0:
            raise ValueError("batches need at least one film. Received: 0; check the manifest's split and sources")
        self.images, self.masks, self.targets, self.weights = images, masks, targets, weights
        self.encode, self.augmentation, self.beside = encode, augmentation, beside
        size = min(batch_size, len(images))
        self.batch_size = max(replicas, size - size % replicas)
        self.shuffle, self.seed, self.replicas = shuffle, seed, replicas
        self.epoch = 0  # set by the training when it goes on; counted up by Keras through on_epoch_end

    def __len__(self) -> int:
        count = len(self.images)
        return max(1, count // self.batch_size) if self.shuffle else -(-count // self.batch_size)

    def on_epoch_end(self) -> None:
        """Called by Keras after each epoch."""
        self.epoch += 1

    def chosen(self, batch: int) -> np.ndarray:
        """Numbers of the films in a batch of this epoch, (n,) int."""
        order = np.arange(len(self.images))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        films = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        return np.resize(films, -(-len(films) // self.replicas) * self.replicas)

    def __getitem__(self, batch: int) -> tuple[Any, ...]:
        """(inputs, targets) or (inputs, targets, weights) of one batch, float32."""
        chosen = self.chosen(batch)
        pipeline = None
        if self.augmentation is not None:
            draw = np.random.default_rng((self.seed, self.epoch, batch))
            pipeline = self.augmentation(int(draw.integers(2**31)))
        inputs, masks = [], []
        for index in chosen:
            image, mask = np.asarray(self.images[index]), np.asarray(self.masks[index])
            if pipeline is not None:
                changed = pipeline(image=image, mask=mask)
                image, mask = changed["image"], changed["mask"]
            inputs.append(self.encode(image, mask))
            masks.append(mask)
        x: Any = np.stack(inputs)
        if self.beside is not None:
            x = {"crop": x} | {name: values[chosen] for name, values in self.beside.items()}
        y = np.stack(masks).astype(np.float32)[..., None] if self.targets is None else self.targets[chosen]
        return (x, y) if self.weights is None else (x, y, self.weights[chosen])
