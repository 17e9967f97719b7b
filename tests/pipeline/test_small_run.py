"""A run reads of large films what its networks and outputs need: what it answers is that of whole films."""

from __future__ import annotations

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest

from cxr_pipeline import stages
from cxr_pipeline.data.formats.small import Wanted
from cxr_pipeline.data.geometry import Box
from cxr_pipeline.data.radiograph import Radiograph, read
from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.results.folder import rows
from cxr_pipeline.results.outputs import chosen
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.stages.apply import apply
from cxr_pipeline.stages.base import Record
from tests.data.test_small import j2k
from tests.pipeline.fake_chain import chain as fake_chain

FAST = {"fast_decode": True}


def dice(one, two):
    return 2 * np.count_nonzero(one & two) / (np.count_nonzero(one) + np.count_nonzero(two))


def large_film(number, label, size):
    """A film (H, W) uint8, enlarged, as to draw so large a one takes long; with a detector's noise in single pixels."""
    small = make_film(number, label=label, size=(size[0] // 4, size[1] // 4)).pixels
    noise = np.random.default_rng(number).normal(0, 0.01, size)
    large = cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.round(np.clip(large + noise, 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights():
    return stages.load_chain("tb", threads=1)


@pytest.mark.slow
def test_a_run_on_large_films_reads_half_of_them(tmp_path, weights):
    size = (2205, 2051)
    (tmp_path / "films").mkdir()
    for number, label in enumerate(("TB", "NORM")):
        image = large_film(number, label, size)
        (tmp_path / "films" / f"{number}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    found = {}
    for name, more in (("small", FAST), ("whole", {}), ("crops", {"outputs": chosen("masks,crops")} | FAST)):
        Runner(weights, tmp_path / name, **more).run(find_inputs([tmp_path / "films"]))
        masks = [cv2.imread(str(tmp_path / name / "masks" / f"{n}.png"), cv2.IMREAD_UNCHANGED) for n in range(2)]
        assert {mask.shape for mask in masks} == {size}
        found[name] = masks, [float(row["tb_score"]) for row in rows(tmp_path / name)]
    # Crops show the film's own pixels, which are kept for them; it gets the score that it gets without.
    assert found["crops"][1] == found["whole"][1]
    for one, two in zip(found["crops"][0], found["whole"][0], strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(found["small"][0], found["whole"][0], strict=True):
        assert dice(one, two) >= 0.995
    # Moving the lung box by one of 2000 pixels changes the score of such a film by up to 3.
    np.testing.assert_allclose(found["small"][1], found["whole"][1], atol=2.0)


class Whole(Radiograph):
    """A film of which networks see all pixels."""

    def on(self, frame, least=None):
        return frame.to_grid(self.pixels)


def test_a_film_held_as_means_is_answered_as_a_whole_one(tmp_path, weights):
    """Masks to the pixel, as the segmentation's own view is made of all pixels; the score within 0.5."""
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", large_film(5, "TB", (2117, 2048)))[1].tobytes())
    whole = read(tmp_path / "a.png")
    kept = read(tmp_path / "a.png", **Runner(weights, tmp_path / "out").how)
    assert kept.small is not None
    films = [kept, whole, Whole(**vars(whole))]
    lean, same, wanted = (apply(weights, [Record(replace(one, meta={}))])[0] for one in films)
    assert wanted.ok
    for one in (lean, same):
        np.testing.assert_array_equal(one.mask, wanted.mask)
        assert (one.lung_box, one.label, one.warnings) == (wanted.lung_box, wanted.label, wanted.warnings)
        assert one.tb_score == pytest.approx(wanted.tb_score, abs=0.5)
    assert lean.tb_score == same.tb_score  # whoever reads whole films gets the same score


def test_what_a_run_needs_decides(weights, tmp_path):
    def least(**more):
        return Runner(weights, tmp_path, **FAST | more).least

    assert least() == 1024
    assert least(outputs=chosen("masks,heatmaps")) == 1024
    assert least(outputs=chosen("all")) is None
    assert least(reader=read) is None
    # Stages that do not say what they need see all of a film.
    assert Runner(fake_chain(), tmp_path, **FAST).how == {}
    wanted = Wanted(1024, (256,))
    # Unless it is asked for, only films are decoded small whose scores stay the same.
    assert Runner(weights, tmp_path).how == {"wanted": wanted, "least": 1024, "rough": False}
    assert Runner(weights, tmp_path, **FAST).how == {"wanted": wanted, "least": 1024, "rough": True}
    assert Runner(weights, tmp_path, fast_decode=False).how == {"wanted": wanted}


def enlarged(real_data, count, side):
    """Films (H, W) float32 of a site, enlarged."""
    with (real_data / "manifest.csv").open(newline="") as file:
        films = [row["image"] for row in csv.DictReader(file) if (row["source"], row["split"]) == ("shenzhen", "val")]
    for image in films[:: len(films) // count][:count]:
        film = read(real_data / image).pixels
        scale = side / max(film.shape)
        yield np.clip(cv2.resize(film, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), 0, 1)


@pytest.mark.real
@pytest.mark.slow
def test_real_films_as_jpeg_2000_keep_their_answers(real_data, weights, tmp_path):
    """Of five films, as a run reads them if nothing is asked for: scores within a half."""
    for film in enlarged(real_data, 5, 2300):
        path = j2k(tmp_path / "a.dcm", film)
        how = Runner(weights, tmp_path / "out").how
        whole, small = (apply(weights, [Record(read(path, **one))])[0] for one in ({}, how))
        assert small.film.small is not None
        assert small.film.counted is None  # not decoded whole
        assert (small.status, small.label, small.screen) == (whole.status, whole.label, whole.screen)
        assert dice(whole.mask, small.mask) >= 0.995
        assert small.tb_score == pytest.approx(whole.tb_score, abs=0.5)


@pytest.mark.real
@pytest.mark.slow
def test_real_films_keep_their_masks_and_scores(real_data, weights, tmp_path):
    """As JPEG decoded at a half. Scores change by 0.5, or as with their box a pixel aside."""
    changes = []
    for film in enlarged(real_data, 8, 2600):
        large = np.round(film * 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "a.jpg"), large, [cv2.IMWRITE_JPEG_QUALITY, 92])
        whole, small = (apply(weights, [Record(read(tmp_path / "a.jpg", least=n))])[0] for n in (None, 1024))
        assert small.film.small is not None
        assert whole.status == small.status
        if not whole.ok:
            continue
        assert dice(whole.mask, small.mask) >= 0.995
        moved = []
        for aside in (-1, 1):
            other = Record(whole.film, mask=whole.mask, lung_fraction=whole.lung_fraction)
            other.lung_box = Box(whole.lung_box.x + aside, *whole.lung_box[1:])
            moved.append(abs(weights[1].run([other])[0].tb_score - whole.tb_score))
        changes.append(abs(small.tb_score - whole.tb_score))
        assert changes[-1] <= max(0.5, 3 * max(moved))
    assert np.median(changes) <= 0.5
