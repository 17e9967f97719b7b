"""The same chain in PyTorch, written with care: batches of eight, channels last, no gradients, maps in closed form.

Random weights (speed does not depend on them), the same outputs (mask, overlay, a row per film). Needs torch,
torchvision, segmentation-models-pytorch, opencv and pydicom in the Python that runs it:
python benchmarks/plain_torch.py FOLDER OUT [usual | small]

The lungs are found by a UNet on MobileNetV2 as segmentation-models-pytorch builds it (usual), with the decoder's
channels that ours had; or by one of the shape of ours (small).
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pydicom
import segmentation_models_pytorch as smp
import torch
import torchvision

BATCH, SIZE, SIDE = 8, 256, 288


class Classifier(torch.nn.Module):
    """MobileNetV2 0.35 up to stride 16, features averaged over six zones, one dense layer; logits and maps."""

    def __init__(self) -> None:
        super().__init__()
        blocks = torchvision.models.mobilenet_v2(width_mult=0.35).features
        self.features = torch.nn.Sequential(*blocks[:14], blocks[14].conv[0])  # up to the expansion of block 13
        channels = blocks[14].conv[0][0].out_channels
        self.head = torch.nn.Conv2d(channels * 6, 3, 1)
        rows, columns = torch.arange(18) // 6, torch.arange(18) // 9
        zones = torch.nn.functional.one_hot(rows[:, None] + 3 * columns[None], 6)
        self.register_buffer("zones", zones.permute(2, 0, 1).float()[None])

    def forward(self, film: torch.Tensor, lungs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(film.repeat(1, 3, 1, 1) * 2 - 1)
        share = torch.nn.functional.avg_pool2d(lungs, 16) * self.zones
        weight = share / (share.mean((2, 3), keepdim=True) + 1e-3)
        by_zone = (features[:, :, None] * weight[:, None]).flatten(1, 2)
        logits = self.head(by_zone.mean((2, 3), keepdim=True))[..., 0, 0]
        maps = torch.relu(torch.nn.functional.conv2d(by_zone, self.head.weight))
        return logits, maps


class SmallLungs(torch.nn.Module):
    """MobileNetV2 0.35 and a decoder that sees its narrow maps; the answer is found at half of the grid and doubled."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.encoder = torchvision.models.mobilenet_v2(width_mult=0.35).features[:18]
        steps, before = [], 112
        for skip, after in ((32, 32), (16, 16), (8, 8), (8, 8)):
            steps.append(torch.nn.Sequential(*self._convolved(before + skip, after), *self._convolved(after, after)))
            before = after
        self.steps, self.answer = torch.nn.ModuleList(steps), torch.nn.Conv2d(before, outputs, 3, padding=1)

    @staticmethod
    def _convolved(before: int, after: int) -> tuple[torch.nn.Module, ...]:
        convolution = torch.nn.Conv2d(before, after, 3, padding=1, bias=False)
        return convolution, torch.nn.BatchNorm2d(after), torch.nn.ReLU()

    def forward(self, film: torch.Tensor) -> torch.Tensor:
        seen, double = [], torch.nn.functional.interpolate
        for number, block in enumerate(self.encoder):
            film = block(film)
            if number in (1, 3, 6, 13):
                seen.append(film)
        for step, skip in zip(self.steps, reversed(seen), strict=True):
            film = step(torch.cat([double(film, scale_factor=2), skip], 1))
        return double(torch.sigmoid(self.answer(film)), scale_factor=2, mode="bilinear")


def load(path: Path) -> np.ndarray:
    """(H, W) float32 in [0, 1]."""
    if path.suffix == ".dcm":
        stored = pydicom.dcmread(path).pixel_array.astype(np.float32)
        return stored / max(stored.max(), 1)
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    return image.astype(np.float32) / (65535 if image.dtype == np.uint16 else 255)


def largest_two(mask: np.ndarray) -> np.ndarray:
    """The two largest components of a mask."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return np.isin(labels, 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA])[:2])


@torch.inference_mode()
def main(folder: Path, out: Path, lungs: str = "usual") -> None:
    """Judge every film in a folder."""
    usual = {"encoder_weights": None, "decoder_channels": (32, 16, 8, 8, 8)}
    segment = (SmallLungs() if lungs == "small" else smp.Unet("mobilenet_v2", **usual)).eval()
    segment = segment.to(memory_format=torch.channels_last)
    classify = Classifier().eval().to(memory_format=torch.channels_last)
    for name in ("masks", "overlays"):
        (out / name).mkdir(parents=True, exist_ok=True)
    ready = time.time()
    films = sorted(path for path in folder.iterdir() if path.is_file())
    with (out / "results.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        for start in range(0, len(films), BATCH):
            paths = films[start : start + BATCH]
            images = [load(path) for path in paths]
            small = np.stack([cv2.resize(i, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for i in images])
            batch = torch.from_numpy(small)[:, None].repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
            segment(batch)  # its weights are random: an ellipse a lung stands for its answer
            crops, insides, boxes, masks = [], [], [], []
            for image in images:
                mask = np.zeros((SIZE, SIZE), np.uint8)
                for x in (80, 176):
                    cv2.ellipse(mask, (x, 128), (36, 80), 0, 0, 360, 1, cv2.FILLED)
                mask = largest_two(cv2.resize(mask, image.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0)
                x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
                box = slice(y, y + h), slice(x, x + w)
                crops.append(cv2.resize(image[box], (SIDE, SIDE), interpolation=cv2.INTER_AREA))
                insides.append(cv2.resize(mask[box].astype(np.float32), (SIDE, SIDE)))
                boxes.append(box)
                masks.append(mask)
            inside = torch.from_numpy(np.stack(insides))[:, None]
            logits, maps = classify(torch.from_numpy(np.stack(crops))[:, None] * inside, inside)
            for n, (path, image) in enumerate(zip(paths, images, strict=True)):
                heat = np.zeros(image.shape, np.float32)
                cam = maps[n, 0].numpy()
                region = image[boxes[n]]
                heat[boxes[n]] = cv2.resize(cam / max(cam.max(), 1e-6), region.shape[::-1])
                shown = np.stack([image, image, np.maximum(image, heat)], axis=-1)
                cv2.imwrite(str(out / "masks" / f"{path.stem}.png"), masks[n].astype(np.uint8) * 255)
                cv2.imwrite(str(out / "overlays" / f"{path.stem}.png"), (shown * 255).astype(np.uint8))
                rows.writerow([path, *torch.softmax(logits[n], 0).tolist()])
    print(f"{ready} {time.time()} {len(films)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
