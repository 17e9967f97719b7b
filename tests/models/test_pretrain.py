"""The training of the features that ship: what it learns from, that it goes on, and that its file is one of ours."""

from __future__ import annotations

import importlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.geometry import Box, Frame, bounding_box
from cxr_pipeline.data.manifest import BOX_COLUMNS, COLUMNS, Manifest
from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.models.backbones.chest import CHANNELS, SHIFT, load_features
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.classifier import build_classifier
from cxr_pipeline.models.store import SHIPPED
from cxr_pipeline.models.training.errors import TrainingError
from cxr_pipeline.stages.segment import Segment

FOLDER = Path(__file__).parent.parent.parent / "docs" / "experiments"
SIZE = 64
# (source, label, findings, split) of films, each drawn three times
KINDS = (
    ("covidradiography", "NORM", "", "train"),
    ("covidradiography", "NTB", "COVID-19", "train"),
    ("kermany", "NORM", "", "train"),
    ("kermany", "NTB", "bacterial", "train"),
    ("nih", "NORM", "No Finding", "train"),
    ("nih", "NTB", "Mass|Pleural_Thickening", "train"),
    ("tbx11k", "TB", "", "train"),
    ("jsrt", "NORM", "", "train"),
    ("ieee8023", "NTB", "", "train"),
    ("nih", "NTB", "Mass", "test"),
    ("shenzhen", "TB", "", "train"),
    ("shenzhen", "NORM", "", "train"),
    ("rahman", "TB", "", "train"),
    ("rahman", "NORM", "", "train"),
)


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield tuple(importlib.import_module(name) for name in ("pretrain", "pretrain_films", "pretrain_tb"))


class TrueLungs(Segment):
    """A segmentation that knows the lungs of drawn films; says of one that it is turned."""

    def __init__(self, masks):
        self.masks, self.fingerprint, self.heart = masks, "true", False

    def run(self, records):
        for record in records:
            record.mask = self.masks[record.radiograph.id]
            record.lung_box = bounding_box(record.mask)
            if record.radiograph.id.endswith("covidradiography_NTB_2"):
                record.warn("turned: by 90 degrees")
        return list(records)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A manifest of drawn films, and the stage that knows their lungs."""
    folder, rows, boxes, masks = tmp_path_factory.mktemp("drawn"), [], [], {}
    for seed, (source, label, findings, split) in enumerate(KINDS):
        for number in range(3):
            film = make_film(10 * seed + number, label=label, size=(96, 112))
            image = f"{split}_{source}_{label}_{number}.png"
            cv2.imwrite(str(folder / image), np.round(film.pixels * 255).astype(np.uint8))
            masks[Path(image).stem] = film.mask
            rows.append({"image": image, "label": label, "source": source, "split": split, "findings": findings})
            boxes += [(image, label, *box) for box in film.boxes]
    table = pd.DataFrame(rows).reindex(columns=COLUMNS, fill_value="")
    return Manifest(table, folder, pd.DataFrame(boxes, columns=BOX_COLUMNS)), TrueLungs(masks)


@pytest.fixture(scope="module")
def films(scripts, drawn, tmp_path_factory):
    data, stage = drawn
    return scripts[1].films_of(data, [stage], tmp_path_factory.mktemp("crops"), SIZE)


@pytest.fixture(scope="module")
def plans(scripts):
    kinds = ("covid", "findings", "lesions", "host", "children")
    return (
        scripts[1].Plan("a", SIZE, 4e-4, dict.fromkeys(kinds, 1)),
        scripts[1].Plan("b", SIZE, 4e-4, dict.fromkeys((*kinds, "host_of_all", "sick_host"), 1)),
    )


def test_only_training_films_of_its_sources_take_part(films, scripts):
    images = [row["image"] for row in films.rows]
    assert len(images) == 9 * 3 - 1  # one is turned
    assert not any(name.startswith("test") or "shenzhen" in name for name in images)
    assert films.crops.shape == films.lungs.shape == (len(images), SIZE, SIZE)
    with_boxes = {row["source"] for n, row in enumerate(films.rows) if len(films.boxes_of(n))}
    assert with_boxes == {"tbx11k"}


def test_boxes_lie_where_they_do_on_the_film(scripts):
    frame = Frame((200, 100), Box(20, 40, 50, 100), (SIZE, SIZE))
    inside, beside, at_the_edge = Box(30, 50, 10, 20), Box(90, 190, 5, 5), Box(60, 130, 40, 60)
    kept = scripts[1]._on_grid([inside, beside, at_the_edge], frame)
    film = scripts[1].Films(None, None, kept[None], [])
    np.testing.assert_array_equal(film.boxes_of(0), [(12, 6, 26, 20), (51, 57, SIZE, SIZE)])


def test_sources_are_asked_what_they_know(scripts):
    rows = [dict(zip(("source", "label", "findings"), kind[:3], strict=True)) for kind in KINDS]
    labels = scripts[1].labels_of(rows)
    expected = [(0, -1, -1), (1, -1, -1), (-1, 0, -1), (-1, 1, -1), (-1, -1, 0), (-1, -1, 1)]
    np.testing.assert_array_equal(labels[:6, :3], expected)
    found = [name for name, value in zip(scripts[1].FINDING_NAMES, labels[5, 3:], strict=True) if value == 1]
    assert found == ["Mass", "Pleural_Thickening"]
    assert (labels[6:9] == -1).all()


def test_batches_depend_on_their_number_alone(scripts, films, plans):
    batches = scripts[1].Batches(films, plans[1], 5)
    for part, again in zip(batches[7], list(batches.ahead(5, 9))[2], strict=True):
        np.testing.assert_array_equal(part, again)
    assert not np.array_equal(batches[7].crops, batches[8].crops)


def test_places_are_told_what_is_known_of_them(scripts, films, plans):
    batches = scripts[1].Batches(films, plans[1], 5)
    values = {kind: [set(), set()] for kind in plans[1].batch}
    for number in range(30):
        batch = batches[number]
        assert batch.crops.min() >= -1
        assert batch.crops.max() <= 1
        assert (batch.cells[batch.share[..., 0] < 0.05] == -1).all()
        for row, kind in enumerate(plans[1].batch):
            for channel in (0, 1):
                values[kind][channel] |= set(np.unique(batch.cells[row, ..., channel]))
    assert values["lesions"] == values["host"] == values["host_of_all"] == [{-1, 0, 1}] * 2
    assert values["sick_host"] == [{-1, 0, 1}, {-1, 1}]  # it may have opacities of its own
    assert values["children"] == [{-1}] * 2
    assert values["covid"] == values["findings"] == [{-1, 0}] * 2


def test_a_kind_without_films_is_named(scripts, films, plans):
    lacking = films._replace(rows=[row | {"source": row["source"].replace("kermany", "x")} for row in films.rows])
    with pytest.raises(CxrError, match="for children. Needed are"):
        scripts[1].Batches(lacking, plans[0], 0)


@pytest.mark.slow
def test_two_stages_make_features_that_a_classifier_starts_from(scripts, films, plans, tmp_path, monkeypatch, eagerly):
    pretrain = scripts[0]
    settings = {"steps": (2, 2), "seed": 1, "encoder_weights": None, "plans": plans}
    model = pretrain.train(films, tmp_path / "work", **settings)
    pretrain.export(model, tmp_path / "features.npz")
    found, ours = load_features(str(tmp_path / "features.npz")), load_features("chest")
    assert {name: part.shape for name, part in found.items()} == {name: part.shape for name, part in ours.items()}
    assert {part.dtype for part in found.values()} == {np.dtype(np.float16)}
    assert not found["context/kernel"][:, :2].any()

    classifier = build_classifier("chest", SIZE, 1, 3, pool="evidence", encoder_weights=str(tmp_path / "features.npz"))
    batch = scripts[1].Batches(films, plans[1], 5)[0]
    grey = (batch.crops + 1) / 2
    lungs = np.ones_like(grey)
    k = keras()
    cells = k.Model(classifier.input, classifier.get_layer("evidence").output)(np.concatenate([grey, lungs], -1))
    trained = model([batch.crops, np.ones_like(batch.share)], training=False)[1]
    np.testing.assert_allclose(np.asarray(cells)[..., :2], np.asarray(trained) + SHIFT, atol=0.02)
    assert cells.shape[-1] == len(CHANNELS)

    # Stopped after the first step of stage b, it ends where it would have.
    for checkpoint in (tmp_path / "work" / "b").glob("*.checkpoint"):
        checkpoint.unlink()
    keep = pretrain.Checkpoints.keep

    def stop(self, number, checkpoint):
        keep(self, number, checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "KEEP_EVERY", 1)
    monkeypatch.setattr(pretrain.Checkpoints, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(films, tmp_path / "work", **settings)
    monkeypatch.setattr(pretrain.Checkpoints, "keep", keep)
    resumed = pretrain.train(films, tmp_path / "work", **settings)
    for one, other in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    with pytest.raises(TrainingError, match="other settings"):
        pretrain.train(films, tmp_path / "work", **settings | {"seed": 2})


def test_films_are_compared_within_their_hospital(scripts):
    plan = scripts[2].plan_for(["shenzhen", "rahman"])
    kinds = [kind for kind, count in plan.batch.items() for _ in range(count)]
    found = {(kinds[a], kinds[b]) for a, b in zip(*np.nonzero(scripts[2].pairs_of(plan)), strict=True)}
    assert found == {("shenzhen TB", "shenzhen NORM"), ("rahman TB", "rahman NORM")}

    loss = scripts[2].compared(np.zeros((len(kinds), scripts[1].LABELS), np.float32), scripts[2].pairs_of(plan))
    unknown = np.full((len(kinds), scripts[1].LABELS), -1, np.float32)

    def of(evidence):
        by_kind = np.array([[evidence.get(kind, 0.0)] for kind in kinds], np.float32)
        cells = np.full((len(kinds), 2, 2, 2), -1, np.float32)
        return float(loss([np.zeros_like(unknown), np.zeros_like(cells), by_kind, by_kind], unknown, cells))

    level = {"shenzhen TB": 5.0, "shenzhen NORM": 5.0, "covid": 9.0}  # of a hospital, and of films without a say
    assert of(level) == pytest.approx(of({}))
    assert of({"rahman TB": 2.0}) < of({}) < of({"rahman NORM": 2.0})


@pytest.mark.slow
def test_films_with_tb_go_on_from_the_shipped_features(scripts, drawn, tmp_path, eagerly):
    data, stage = drawn
    sources = (*scripts[1].SOURCES, "shenzhen", "rahman")
    films = scripts[1].films_of(data, [stage], tmp_path / "crops", SIZE, sources)
    plan = scripts[2].plan_for(["shenzhen", "rahman"], SIZE)
    given = {"seed": 1, "features": "chest"}
    before, after = (scripts[2].train(films, tmp_path / str(steps), plan, steps=steps, **given) for steps in (0, 1))
    scripts[0].export(before, tmp_path / "features.npz")
    found, ours = load_features(str(tmp_path / "features.npz")), load_features("chest")
    assert found.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(found[name], ours[name])
    pairs = zip(before.trainable_weights, after.trainable_weights, strict=True)
    assert all(not np.array_equal(one, other) for one, other in pairs if one.path.startswith("cells"))


def test_the_shipped_features_have_context_of_labels_alone():
    assert (SHIPPED / "chest" / "features.npz").stat().st_size < 2_000_000
    shipped = load_features("chest")
    assert not shipped["context/kernel"][:, :2].any()
    assert shipped["context/kernel"][:, 2:].any(axis=0).all()
