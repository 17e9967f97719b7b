"""The chain that a person would write first, with Keras: one film after the other, `predict`, a gradient tape.

The same networks and the same outputs (mask, overlay, one row per film) as `pipeline run`, without its threads,
batches and serving graphs. A peer to measure against, not part of the product:
python benchmarks/plain_keras.py FOLDER OUT
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import cv2
import keras
import numpy as np
import pydicom
import tensorflow as tf
from skimage import io, measure, transform

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
WEIGHTS = ROOT / "models" / "weights" / "tb"


def load(path: Path) -> np.ndarray:
    """(H, W) float32 in [0, 1]."""
    if path.suffix == ".dcm":
        stored = pydicom.dcmread(path).pixel_array.astype(np.float32)
        return stored / max(stored.max(), 1)
    image = io.imread(path)
    if image.ndim == 3:
        image = image[..., :3].mean(axis=2)
    return image.astype(np.float32) / (65535 if image.max() > 255 else 255)


def largest_two(mask: np.ndarray) -> np.ndarray:
    """The two largest components of a mask."""
    labels = measure.label(mask)
    regions = sorted(measure.regionprops(labels), key=lambda region: -region.area)[:2]
    return np.isin(labels, [region.label for region in regions])


def grad_cam(split: keras.Model, batch: np.ndarray) -> np.ndarray:
    """Grad-CAM of the first class (h, w)."""
    with tf.GradientTape() as tape:
        features, logits = split(batch, training=False)
        chosen = logits[:, 0]
    weights = tf.reduce_mean(tape.gradient(chosen, features), axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))[0].numpy()


def main(folder: Path, out: Path) -> None:
    """Judge every film in a folder."""
    import cxr_pipeline.models.training.losses  # noqa: F401  (names that the files hold)

    segment = keras.models.load_model(WEIGHTS / "segment" / "model.keras", compile=False)
    classify = keras.models.load_model(WEIGHTS / "classify" / "model.keras", compile=False)
    pool, logits = classify.get_layer("pool"), classify.get_layer("logits")
    split = keras.Model(classify.input, [pool.input, logits.output])
    size, side = segment.input.shape[1], classify.input.shape[1]
    for name in ("masks", "overlays"):
        (out / name).mkdir(parents=True, exist_ok=True)
    ready = time.time()
    with (out / "results.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        films = sorted(path for path in folder.iterdir() if path.is_file())
        for path in films:
            image = load(path)
            small = transform.resize(image, (size, size), anti_aliasing=True).astype(np.float32)
            lungs = segment.predict(small[None, ..., None], verbose=0)[0, ..., 0]
            mask = largest_two(transform.resize(lungs, image.shape) > 0.5)
            ys, xs = np.nonzero(mask) if mask.any() else (np.arange(2), np.arange(2))
            box = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
            crop = transform.resize(image[box], (side, side), anti_aliasing=True).astype(np.float32)
            inside = transform.resize(mask[box].astype(np.float32), (side, side)) > 0.5
            batch = np.stack([crop * inside, inside], axis=-1)[None].astype(np.float32)
            p = classify.predict(batch, verbose=0)[0]
            heat = np.zeros(image.shape, np.float32)
            cam = grad_cam(split, batch)
            heat[box] = transform.resize(cam / max(cam.max(), 1e-6), image[box].shape)
            shown = np.stack([np.maximum(image, heat), image, image], axis=-1)
            io.imsave(out / "masks" / f"{path.stem}.png", (mask * 255).astype(np.uint8), check_contrast=False)
            io.imsave(out / "overlays" / f"{path.stem}.png", (shown * 255).astype(np.uint8), check_contrast=False)
            rows.writerow([path, *p])
    print(f"{ready} {time.time()} {len(films)}")


if __name__ == "__main__":
    cv2.setNumThreads(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
