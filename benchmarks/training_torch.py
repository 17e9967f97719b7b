"""Training in PyTorch, written with care, on the films that benchmarks/training.py hands over; it calls this.

    python benchmarks/training_torch.py FILMS.npz segment|classify BATCH_SIZE THREADS

Networks of the shape of ours, channels last, a fused Adam, two processes that prepare batches, no torch.compile. Each
line on the input trains one pass over the films, and is answered by its seconds and its processor seconds.

Augmentation differs: one affine change and one change of grey levels a film, and blur or noise in half of them. Ours
has more kinds of both and, for segment, draws opacities. Films come through OpenCV in both. The classifier's penalty on
its last layer is left out. Needs torch, torchvision and opencv, and what plain_torch.py needs.
"""

from __future__ import annotations

import resource
import sys
import time

import cv2
import numpy as np
import torch
import torchvision
from plain_torch import SmallLungs
from torch.nn.functional import avg_pool2d, binary_cross_entropy, cross_entropy


class Chest(torch.nn.Module):
    """MobileNetV2 up to stride 16, evidence and context of each place, joined over the lungs; logits."""

    def __init__(self) -> None:
        super().__init__()
        blocks = torchvision.models.mobilenet_v2().features
        self.encoder = torch.nn.Sequential(*blocks[:14], blocks[14].conv[0])  # up to the expansion of block 13
        self.projection, self.places = torch.nn.Conv2d(576, 256, 1), torch.nn.Conv2d(256, 10, 1)
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(5, 3))

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        film, lungs = seen[:, :1], seen[:, 1:]
        features = self.encoder(film.repeat(1, 3, 1, 1) * 2 - 1)
        evidence, context = self.places(torch.relu(self.projection(features))).chunk(2, 1)
        share = avg_pool2d(lungs, 16)
        weight = share / (share.mean((2, 3), keepdim=True) + 1e-3)
        top = evidence.amax((2, 3), keepdim=True)
        joined = torch.log(((evidence - top).exp() * weight).mean((2, 3)) + 1e-6) + top[..., 0, 0]
        return self.head(joined + (context * weight).mean((2, 3)))


class Lungs(SmallLungs):
    """The lungs' network, with the film made three channels in [-1, 1] within it."""

    def forward(self, film: torch.Tensor) -> torch.Tensor:
        return super().forward(film.repeat(1, 3, 1, 1) * 2 - 1)


def dice_cross_entropy(answer: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Soft Dice film by film, and binary cross-entropy."""
    common, total = (answer * mask).sum((1, 2, 3)), (answer + mask).sum((1, 2, 3))
    return (1 - (2 * common + 1) / (total + 1)).mean() + binary_cross_entropy(answer, mask)


class Films(torch.utils.data.Dataset):
    """Films, augmented as they are asked for."""

    def __init__(self, images: np.ndarray, masks: np.ndarray, targets: np.ndarray | None) -> None:
        self.images, self.masks, self.targets = images, masks, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = augmented(self.images[number], self.masks[number])
        film = image.astype(np.float32) / 255
        if self.targets is None:
            return film[None], mask[None].astype(np.float32)
        reach = max(1, round(0.04 * len(mask)))  # all but the lungs is dimmed
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        film *= cv2.GaussianBlur(cv2.dilate(mask, kernel).astype(np.float32), (0, 0), reach / 2)
        return np.stack([film, mask.astype(np.float32)]), self.targets[number]


def augmented(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A film and its mask moved, turned, sheared and scaled; the film's grey levels changed."""
    draw = np.random.default_rng(int(torch.randint(2**31, ())))
    side = len(image)
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), draw.uniform(-12, 12), draw.uniform(0.8, 1.3))
    matrix[:, 2] += draw.uniform(-0.1, 0.1, 2) * side
    matrix[0, 1] += draw.uniform(-0.09, 0.09)
    image = cv2.warpAffine(image, matrix, (side, side))
    mask = cv2.warpAffine(mask, matrix, (side, side), flags=cv2.INTER_NEAREST)
    curve = (np.arange(256) / 255) ** draw.uniform(0.5, 2.1) * draw.uniform(0.7, 1.3) + draw.uniform(-0.2, 0.2)
    image = cv2.LUT(image, np.clip(255 * curve, 0, 255).astype(np.uint8))
    kind = draw.integers(4)
    if kind == 0:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    elif kind == 1:
        image = np.clip(image + draw.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return image, mask


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    kinds = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in kinds)


def main(path: str, stage: str, batch_size: int, threads: int) -> None:
    """Say how many weights are trained, warm up, then train a pass for each line of the input."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    with np.load(path) as stored:
        films = Films(stored["images"], stored["masks"], stored["targets"] if stage == "classify" else None)
    model = (Lungs(outputs=1) if stage == "segment" else Chest()).to(memory_format=torch.channels_last).train()
    loss_of = dice_cross_entropy if stage == "segment" else cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def train(count: int) -> None:
        chosen = torch.utils.data.Subset(films, range(count))
        loader = torch.utils.data.DataLoader(chosen, batch_size, shuffle=True, drop_last=True, num_workers=2)
        for seen, truth in loader:
            optimizer.zero_grad()
            loss = loss_of(model(seen.contiguous(memory_format=torch.channels_last)), truth)
            loss.backward()
            optimizer.step()

    train(2 * batch_size)
    print(sum(weight.numel() for weight in model.parameters()), flush=True)
    for _ in sys.stdin:
        begun, used = time.perf_counter(), processor_seconds()
        train(len(films))
        print(time.perf_counter() - begun, processor_seconds() - used, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
