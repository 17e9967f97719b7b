"""The training of the lungs that ship: a small network answers as a large one, and as masks where there are any."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.store import read_card
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.segment import Segment
from tests.tiny import SMALL

FOLDER = Path(__file__).parent.parent.parent / "docs" / "experiments"
SIZE = 64


@pytest.fixture(scope="module")
def distil():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("distil")


class Teacher:
    """Says 0.8 of lungs and 0.2 of the heart, wherever the film is bright."""

    size, fingerprint = SIZE, "teacher"
    card = {  # noqa: RUF012
        "content": {"network": "0123456789abcdef"},
        "decisions": {"size": SIZE, "threshold": 0.5, "margin": 0.05, "min_fraction": 0.0, "min_side": 32}
        | {"min_age": None, "heart": True},
    }

    @staticmethod
    def network(batch):
        return {"lungs": (batch > 0.5) * np.float32([0.8, 0.2])}


def test_no_film_of_test_teaches_and_of_external_ones_those_with_masks(distil, samples):
    data = read_manifest(samples)
    table = data.table.copy()
    table["split"] = (["train", "val", "test", "external", "external"] * len(table))[: len(table)]
    table.loc[4, "mask"] = ""
    table["source"] = ["a", "b"] * (len(table) // 2) + ["a"] * (len(table) % 2)
    data = replace(data, table=table)
    chosen = set(distil.films_of(data, "train", None).table["image"])
    with_mask = (table["split"] == "external") & (table["mask"] != "")
    assert chosen == set(table["image"][(table["split"] == "train") | with_mask])
    assert table.loc[4, "image"] not in chosen
    assert set(distil.films_of(data, "train", "a").table["source"]) == {"b"}
    assert set(distil.films_of(data, "val", None).table["split"]) == {"val"}


def test_the_largest_sources_are_cut_down(distil, samples, monkeypatch):
    data = read_manifest(samples)
    data = replace(data, table=data.table.assign(split="train", source="much"))
    monkeypatch.setitem(distil.AT_MOST, "much", 3)
    assert len(distil.films_of(data, "train", None)) == 3


@pytest.mark.parametrize("seed", range(12))
def test_masks_move_with_the_film(distil, seed):
    """The overlap of a bright square with its mask stays, however the view lies."""
    film, truth = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE, 2), np.uint8)
    film[16:44, 18:40] = 200
    truth[16:44, 18:40, 0] = 1
    truth[..., 1] = distil.UNKNOWN
    view, moved = distil.view_of(film, truth, seed, 0.5)
    again, _ = distil.view_of(film, truth, seed, 0.5)
    np.testing.assert_array_equal(view, again)
    assert view.shape == (SIZE, SIZE)
    assert moved.shape == (SIZE, SIZE, 2)
    inside = moved[..., 0] == 1
    if inside.any() and not inside.all():
        assert abs(np.median(view[inside]) - np.median(view[~inside])) > 20
    assert (moved[..., 1] == distil.UNKNOWN).any()  # beside the film no organ is


@pytest.mark.parametrize("seed", range(8))
def test_a_film_that_is_cut_lies_on_its_square_as_such_a_film_does(distil, seed):
    film, truth = np.full((SIZE, SIZE), 200, np.uint8), np.ones((SIZE, SIZE, 2), np.uint8)
    truth[..., 1] = distil.UNKNOWN
    cut, moved = distil.cut_off(film, truth, np.random.default_rng(seed))
    shown = cut > 0
    assert 0.4 < shown.mean() < 0.95  # the rest is black
    np.testing.assert_array_equal(moved[..., 0] == 1, shown)
    assert (moved[..., 1] == distil.UNKNOWN).all()


def test_where_a_mask_is_known_it_counts_half(distil):
    view = np.full((SIZE, SIZE), 200, np.uint8)
    truth = np.full((SIZE, SIZE, 2), distil.UNKNOWN, np.uint8)
    truth[:32, :, 0], truth[32:, :, 0] = 1, 0
    ((number, row),) = distil.answered([(7, view, truth)], Teacher())
    assert number == 7
    assert row["view"].shape == (SIZE, SIZE)
    np.testing.assert_array_equal(np.unique(row["answer"][:32, :, 0]), [round(0.9 * 255)])
    np.testing.assert_array_equal(np.unique(row["answer"][32:, :, 0]), [round(0.4 * 255)])
    np.testing.assert_array_equal(np.unique(row["answer"][..., 1]), [round(0.2 * 255)])


def test_views_are_seen_in_the_same_order_again(distil):
    arrays = np.arange(40, dtype=np.uint8)[:, None, None], np.zeros((40, 1, 1, 2), np.uint8)
    views = distil.Views(arrays, shuffle=True)
    first = [views[n][0].ravel().tolist() for n in range(len(views))]
    views.on_epoch_end()
    assert [views[n][0].ravel().tolist() for n in range(len(views))] != first
    views.epoch = 0
    assert [views[n][0].ravel().tolist() for n in range(len(views))] == first


def test_a_small_network_is_trained_into_a_bundle(distil, samples, tmp_path, eagerly):
    settings = [*SMALL, "segment.heart=true", "segment.fit.epochs=1"]
    data = read_manifest(samples)
    table = pd.concat([data.select(split=split).table.head(4) for split in ("train", "val", "test")])
    data = replace(data, table=table.reset_index(drop=True))
    distil.distil(data, load_config("tb", settings), Teacher(), tmp_path / "out", tmp_path / "work")
    card = read_card(tmp_path / "out")
    assert card["training"]["distilled"].startswith("from 0123456789ab")
    assert card["training"]["films"]["train"]["n"] == 4
    assert 0 <= card["figures"]["test"]["dice"]["value"] <= 1
    stage = Segment.load(tmp_path / "out")
    from cxr_pipeline.data.radiograph import read

    (record,) = stage.run([Record(read(data.path(table.iloc[0]["image"])))])
    assert record.mask is None or record.mask.shape == record.size
    assert len(pd.read_csv(tmp_path / "out" / "history.csv")) == 1
