"""The heart as a second organ of the segmentation: targets, loss, masks, and what needs a mask of it."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.models.training.fit import TrainingError
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.lungs import largest
from cxr_pipeline.stages.segment import Segment
from cxr_pipeline.stages.segment_films import arrays_of
from tests.tiny import TINY

SIZE = 64
DECISIONS = {"size": SIZE, "threshold": 0.5, "margin": 0.05, "min_fraction": 0.01, "min_side": 16, "min_age": None}


def organ(*boxes):
    """(64, 64) uint8, 1 in the boxes x, y, w, h."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = 1
    return mask


LUNGS, HEART = organ((8, 12, 18, 40), (38, 12, 18, 40)), organ((24, 34, 18, 18))


def manifest(folder, hearts, splits=None):
    """Films with lungs, and a heart where `hearts` says so."""
    grey = np.random.default_rng(0).integers(40, 200, (SIZE, SIZE)).astype(np.uint8)
    rows = []
    for number, heart in enumerate(hearts):
        for name, image in (("film", grey), ("lungs", LUNGS * 255), ("heart", HEART * 255)):
            cv2.imwrite(str(folder / f"{name}{number}.png"), image)
        rows.append(
            {"image": f"film{number}.png", "mask": f"lungs{number}.png", "label": "", "patient": f"p{number}"}
            | {"source": "drawn", "split": splits[number] if splits else "train", "findings": ""}
            | {"heart_mask": f"heart{number}.png" if heart else ""}
        )
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return read_manifest(folder)


def test_targets_are_codes_and_an_unknown_heart_is_marked(tmp_path):
    _, masks = arrays_of(manifest(tmp_path, [True, False]), SIZE, tmp_path / "cache", heart=True)
    np.testing.assert_array_equal(masks[0], LUNGS + 2 * HEART)
    np.testing.assert_array_equal(masks[1], LUNGS + 4)


def test_white_lungs_are_lungs_and_not_hearts_or_films_without_one():
    import albumentations as A

    from cxr_pipeline.data.augment import LungOpacities

    grey = np.full((SIZE, SIZE), 90, np.uint8)
    for codes in (LUNGS + 2 * HEART, LUNGS + np.uint8(4)):
        out = A.Compose([LungOpacities(p=1.0)], seed=3)(image=grey, mask=codes)
        expected = A.Compose([LungOpacities(p=1.0)], seed=3)(image=grey, mask=LUNGS)
        np.testing.assert_array_equal(out["image"], expected["image"])
        np.testing.assert_array_equal(out["mask"], codes)


def test_without_the_setting_masks_are_lungs_alone(tmp_path):
    _, masks = arrays_of(manifest(tmp_path, [True, False]), SIZE, tmp_path / "cache")
    np.testing.assert_array_equal(masks[0], LUNGS)


def predictions(lungs, heart):
    return np.stack([lungs, heart], axis=-1).astype(np.float32)[None]


@pytest.mark.parametrize("loss", ["dice_cross_entropy", "dice", "cross_entropy", "focal"])
def test_the_loss_sees_the_heart_only_where_it_is_known(loss):
    from cxr_pipeline.models.training.losses import LungsAndHeart

    judge = LungsAndHeart(loss)
    known, unknown = ((LUNGS + code)[None, ..., None].astype(np.float32) for code in (2 * HEART, np.uint8(4)))
    right, wrong = predictions(LUNGS, HEART), predictions(LUNGS, 1 - HEART)
    assert float(judge(known, right)) == pytest.approx(0, abs=1e-3)
    assert float(judge(known, wrong)) > 0.3
    assert float(judge(unknown, right)) == pytest.approx(float(judge(unknown, wrong)), abs=1e-6)
    assert float(judge(unknown, predictions(1 - LUNGS, HEART))) > 0.3
    assert LungsAndHeart.from_config(judge.get_config()).get_config() == judge.get_config()


def test_the_hearts_part_does_not_depend_on_how_few_films_have_one():
    from cxr_pipeline.models.training.losses import LungsAndHeart

    judge = LungsAndHeart("dice")
    known, unknown = (LUNGS + 2 * HEART)[..., None], (LUNGS + np.uint8(4))[..., None]
    wrong = predictions(LUNGS, 1 - HEART)
    alone = float(judge(known[None].astype(np.float32), wrong))
    among = float(judge(np.stack([known, unknown, unknown, unknown]).astype(np.float32), np.repeat(wrong, 4, axis=0)))
    assert among == pytest.approx(alone, rel=1e-3)


def test_dice_is_of_one_organ_each():
    from cxr_pipeline.models.training.losses import OrganDice

    lungs, heart = OrganDice(0), OrganDice(1)
    codes = np.stack([LUNGS + 2 * HEART, LUNGS + 4])[..., None].astype(np.float32)
    answer = np.concatenate([predictions(LUNGS, np.zeros_like(HEART))] * 2)
    for metric in (lungs, heart):
        metric.update_state(codes, answer)
    assert float(lungs.result()) == pytest.approx(1)
    assert float(heart.result()) == pytest.approx(0)


def network(channels):
    """Answers with the planted organs, whatever it sees."""

    def answer(batch):
        organs = np.stack([LUNGS, HEART | organ((2, 2, 3, 3))][:channels], axis=-1).astype(np.float32)
        return {"lungs": np.repeat(organs[None], len(batch), axis=0)}

    return answer


def film():
    pixels = np.random.default_rng(1).uniform(0.2, 0.8, (SIZE, SIZE)).astype(np.float32)
    return Record(Radiograph(pixels, "a", "a.png", (SIZE, SIZE)))


def test_a_run_fills_in_the_largest_heart_and_its_measures():
    segment = Segment(network(2), {"decisions": DECISIONS | {"heart": True}})
    (done,) = segment.run([film()])
    np.testing.assert_array_equal(done.heart_mask, HEART)
    assert not segment.restorable  # a results folder holds lungs alone


def test_weights_of_lungs_alone_have_no_heart():
    segment = Segment(network(1), {"decisions": DECISIONS})
    (done,) = segment.run([film()])
    assert done.heart_mask is None
    assert segment.restorable


def test_largest_of_nothing_is_nothing():
    assert not largest(np.zeros((5, 5), np.uint8)).any()


def test_training_asks_for_a_heart_in_train_and_val(tmp_path):
    config = load_config("tb", [*TINY, "segment.heart=true"])
    splits = ["train", "train", "val"]
    with pytest.raises(TrainingError, match=r"no film of split 'val' .* mask of the heart"):
        Segment.require(manifest(tmp_path, [True, True, False], splits), config)
    Segment.require(manifest(tmp_path, [True, False, True], splits), config)


def test_a_heart_mask_that_is_missing_is_a_fault_of_the_manifest(tmp_path):
    from cxr_pipeline.data.manifest import ManifestError

    hashes = {manifest(tmp_path, [heart]).content_hash(labels=False) for heart in (True, False)}
    assert len(hashes) == 2
    manifest(tmp_path, [True])
    (tmp_path / "heart0.png").unlink()
    with pytest.raises(ManifestError, match=r"heart_mask heart0\.png does not exist"):
        read_manifest(tmp_path)


@pytest.mark.slow
def test_lungs_and_heart_are_trained_exported_and_judged(tmp_path, eagerly):
    data = manifest(tmp_path, [True, True, False, True], ["train", "train", "train", "val"])
    config = load_config("tb", [*TINY, "segment.heart=true", "segment.fit.epochs=1"])
    out = Segment.train(data, config, tmp_path / "segment")
    assert json.loads((out / "card.json").read_text())["decisions"]["heart"] is True
    stage = Segment.load(out)
    (done,) = stage.with_settings(refuse=False).run([film()])
    assert done.heart_mask.shape == (SIZE, SIZE)
    figures = stage.evaluate(data, tmp_path)
    assert figures["heart_dice"].n == 3
    assert figures["dice"].n == 4
