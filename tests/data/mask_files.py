"""Lung masks as labelling tools write them: the same two lungs in every kind of file."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.data.test_dicom import dicom

SIZE = (64, 60)  # height and width: not square, so that swapped sides show


def lungs(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The patient's right and left lung (on the picture's left and right), bool."""
    high, wide = size
    right, left = np.zeros(size, bool), np.zeros(size, bool)
    right[high // 6 : 5 * high // 6, wide // 8 : 3 * wide // 8] = True
    left[high // 6 : 4 * high // 5, 5 * wide // 8 : 7 * wide // 8] = True
    return right, left


def heart(size: tuple[int, int] = SIZE) -> np.ndarray:
    high, wide = size
    area = np.zeros(size, bool)
    area[high // 2 : 3 * high // 4, 2 * wide // 5 : 3 * wide // 5] = True
    return area


def save(path: Path, samples: np.ndarray) -> Path:
    cv2.imencode(path.suffix, samples)[1].tofile(path)
    return path


def runs(mask: np.ndarray, *, by_rows: bool) -> str:
    """Run lengths as Kaggle writes them, from 1."""
    flat = np.concatenate([[0], (mask if by_rows else mask.T).ravel().astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return " ".join(f"{start + 1} {end - start}" for start, end in zip(starts, ends, strict=True))


def counts(mask: np.ndarray) -> list[int]:
    """COCO's counts: zeros and ones in turn, down the columns."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def packed(numbers: list[int]) -> str:
    """COCO's packed counts, after `rleToString` of its API."""
    text = ""
    for at, number in enumerate(numbers):
        value = number - numbers[at - 2] if at > 2 else number
        goes_on = True
        while goes_on:
            letter = value & 31
            value >>= 5
            goes_on = value != (-1 if letter & 16 else 0)
            text += chr((letter | 32 if goes_on else letter) + 48)
    return text


def box_outline(area: np.ndarray) -> list[list[int]]:
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    (y1, y2), (x1, x2) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist()
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def write_all(folder: Path) -> dict[str, Path]:
    """Every kind of file that a mask of both lungs comes in, by kind."""
    right, left = lungs()
    both = right | left
    files = {
        "0_1": save(folder / "0_1.png", both.astype(np.uint8)),
        "0_255": save(folder / "0_255.png", both.astype(np.uint8) * 255),
        "0_128": save(folder / "0_128.png", both.astype(np.uint8) * 128),
        "16 bit, 0 and 1": save(folder / "bits16_1.png", both.astype(np.uint16)),
        "16 bit, 0 and 255": save(folder / "bits16_255.png", both.astype(np.uint16) * 255),
        "16 bit, 0 and 65535": save(folder / "bits16_65535.tif", both.astype(np.uint16) * 65535),
        "16-bit colour": save(folder / "rgb16.png", np.repeat(both[..., None], 3, 2).astype(np.uint16) * 255),
        "white on black": save(folder / "rgb.png", np.repeat(both[..., None], 3, 2).astype(np.uint8) * 255),
        "jpeg": save(folder / "soft.jpg", both.astype(np.uint8) * 255),
        "labels 1 and 2": save(folder / "labels.png", (right + 2 * left).astype(np.uint8)),
        "labels 127 and 254": save(folder / "wide_labels.png", (127 * right + 254 * left).astype(np.uint8)),
        "labels of lungs and heart": save(folder / "three.png", (right + 2 * left + 3 * heart()).astype(np.uint8)),
        "one label of both lungs, and the heart": save(folder / "two.png", (both + 2 * heart()).astype(np.uint8)),
    }
    red = np.zeros((*SIZE, 3), np.uint8)
    red[both] = (0, 0, 200)  # BGR
    files["red on black"] = save(folder / "red.png", red)
    red[~both] = (200, 60, 0)
    files["red on blue"] = save(folder / "red_on_blue.png", red)
    red[:] = 0
    red[right], red[left] = (0, 0, 255), (0, 255, 0)
    files["red and green"] = save(folder / "red_green.png", red)
    clear = np.full((*SIZE, 4), 255, np.uint8)
    clear[..., 3] = both * 255
    files["alpha"] = save(folder / "alpha.png", clear)
    clear[..., 3] = 255
    clear[~both, :3] = 0
    files["opaque"] = save(folder / "opaque.png", clear)
    for kind, picture in (("bits", Image.fromarray(both)), ("gif", Image.fromarray(both.astype(np.uint8) * 255))):
        files[kind] = folder / f"one.{'png' if kind == 'bits' else 'gif'}"
        picture.save(files[kind])
    palette = Image.fromarray((right + 2 * left).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.save(folder / "voc.png")
    white = Image.fromarray(both.astype(np.uint8), mode="P")
    white.putpalette([255, 255, 255, 0, 90, 200])
    white.save(folder / "white_palette.png")
    np.save(folder / "array.npy", both)
    np.save(folder / "floats.npy", both.astype(np.float32)[..., None])
    shapes = [{"label": f"{side} lung", "points": box_outline(area)} for side, area in (("r", right), ("l", left))]
    shapes.append({"label": "heart", "points": box_outline(heart())})
    labelme = {"shapes": shapes, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    (folder / "labelme.json").write_text(json.dumps(labelme))
    files |= {
        "palette": folder / "voc.png",
        "palette with a white ground": folder / "white_palette.png",
        "array": folder / "array.npy",
        "array of floats": folder / "floats.npy",
        "LabelMe": folder / "labelme.json",
    }
    for kind, drawn in (
        ("COCO polygons", lambda area: [[value for point in box_outline(area) for value in point]]),
        ("COCO counts", lambda area: {"counts": counts(area), "size": list(SIZE)}),
        ("COCO packed", lambda area: {"counts": packed(counts(area)), "size": list(SIZE)}),
    ):
        files[kind] = folder / f"{kind}.json"
        files[kind].write_text(json.dumps(coco(drawn)))
    return files | write_more(folder)


def write_more(folder: Path) -> dict[str, Path]:
    """Kinds that research code writes."""
    right, left = lungs()
    both = (right | left).astype(np.uint8)
    planes = np.stack([right, left])
    np.save(folder / "planes.npy", planes)
    np.save(folder / "planes_last.npy", np.moveaxis(planes, 0, -1).astype(np.float32))
    np.save(folder / "one_hot.npy", np.stack([~(right | left), right, left]).astype(np.uint8))
    np.save(folder / "batch.npy", both[None])
    np.savez_compressed(folder / "array.npz", mask=both)
    blank = Image.fromarray(both, mode="P")
    blank.putpalette([0, 0, 0] * 2)
    blank.save(folder / "blank_palette.png")
    save(folder / "labels.jpg", (127 * right + 255 * left).astype(np.uint8))
    (folder / "runs.json").write_text(json.dumps({"counts": counts(right | left), "size": list(SIZE)}))
    files = {
        "a plane for each lung": folder / "planes.npy",
        "planes last": folder / "planes_last.npy",
        "one plane is the outside": folder / "one_hot.npy",
        "a batch of one": folder / "batch.npy",
        "archive of one array": folder / "array.npz",
        "palette of one colour": folder / "blank_palette.png",
        "labels as jpeg": folder / "labels.jpg",
        "counts alone": folder / "runs.json",
    }
    if importlib.util.find_spec("nibabel"):
        import nibabel

        volume = np.ascontiguousarray((right + 2 * left).astype(np.int16)[::-1].T)[..., None]
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "labels.nii.gz")
        files["NIfTI"] = folder / "labels.nii.gz"
    return files | write_odd(folder)


def write_odd(folder: Path) -> dict[str, Path]:
    """Kinds that are easily taken for another mask, or for none."""
    right, left = lungs()
    both = (right | left).astype(np.uint8)
    colours = np.zeros((256, 240, 3), np.uint8)
    for area, colour in zip((*lungs((256, 240)), heart((256, 240))), np.eye(3, dtype=np.uint8) * 255, strict=True):
        colours[area] = colour
    save(folder / "colours.jpg", colours)
    picture = Image.fromarray(cv2.resize(both * 255, (240, 256), interpolation=cv2.INTER_NEAREST)).convert("RGB")
    picture.save(folder / "lossy.webp", quality=80)
    outline = cv2.dilate(both, np.ones((3, 3), np.uint8)) - both
    void = Image.fromarray(both + 255 * outline, mode="P")
    void.putpalette([0, 0, 0, 128, 0, 0, *[0] * 759, 224, 224, 192][:768])
    void.save(folder / "void.png")
    save(folder / "grey_void.png", both + 255 * outline)
    cut_out = np.dstack([np.arange(both.size * 3).reshape(*SIZE, 3) % 251, both * 255]).astype(np.uint8)
    save(folder / "cut_out.png", cut_out)
    box = right.any(axis=0).argmax(), right.any(axis=1).argmax()
    part = right[np.ix_(right.any(axis=1), right.any(axis=0))].astype(np.uint8)
    picture = base64.b64encode(cv2.imencode(".png", part * 255)[1].tobytes()).decode()
    shapes = [
        {"label": "r lung", "shape_type": "mask", "points": [list(map(int, box))], "mask": picture},
        {"label": "l lung", "shape_type": "polygon", "points": box_outline(left)},
    ]
    labelme = {"shapes": shapes, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    (folder / "picture.json").write_text(json.dumps(labelme))
    regions = [
        {
            "shape_attributes": {
                f"all_points_{axis}": [point[at] for point in box_outline(area)] for at, axis in enumerate("xy")
            },
            "region_attributes": {"part": name},
        }
        for area, name in ((right, "lung"), (left, "lung"), (heart(), "heart"))
    ]
    via = {"a.png123": {"filename": "A.PNG", "size": 123, "regions": regions}}
    (folder / "via.json").write_text(json.dumps({"_via_img_metadata": via}))
    (folder / "via_export.json").write_text(json.dumps(via))
    coco_elsewhere = coco(lambda area: [[value for point in box_outline(area) for value in point]])
    coco_elsewhere["images"][1]["file_name"] = "C:\\films\\A.PNG"
    (folder / "elsewhere.json").write_text(json.dumps(coco_elsewhere))
    return {
        "WebP, lossy as jpeg": folder / "lossy.webp",
        "colours as jpeg": folder / "colours.jpg",
        "an outline in label 255": folder / "void.png",
        "an outline in grey 255": folder / "grey_void.png",
        "a film cut out": folder / "cut_out.png",
        "LabelMe with a picture": folder / "picture.json",
        "VIA project": folder / "via.json",
        "VIA export": folder / "via_export.json",
        "COCO of another computer": folder / "elsewhere.json",
        "DICOM": dicom(folder / "mask.dcm", both.astype(np.uint16) * 255, 8),
    }


def coco(drawn) -> dict:
    right, left = lungs()
    return {
        "images": [
            {"id": 1, "file_name": "other.png", "height": 9, "width": 9},
            {"id": 5, "file_name": "films/a.png", "height": SIZE[0], "width": SIZE[1]},
        ],
        "categories": [{"id": 1, "name": "lung"}, {"id": 2, "name": "heart"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 1, "segmentation": drawn(right)},
            {"id": 2, "image_id": 5, "category_id": 1, "segmentation": drawn(left)},
            {"id": 3, "image_id": 5, "category_id": 2, "segmentation": drawn(heart())},
        ],
    }
