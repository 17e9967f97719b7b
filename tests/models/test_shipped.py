"""The weights that come with the package: whole, small, and good for what the README says of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from cxr_pipeline import stages
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.radiograph import Radiograph, read
from cxr_pipeline.data.synthetic import LABELS, make_film
from cxr_pipeline.models.figures.metrics import auroc, dice
from cxr_pipeline.models.serving import serving_model
from cxr_pipeline.models.store import (
    KERAS_FILE,
    LICENCE,
    SERVING_FILE,
    SHIPPED,
    WeightsError,
    bundle_of,
    find,
    load_keras,
    open_network,
    read_card,
    shipped,
)
from cxr_pipeline.stages.base import Record
from cxr_pipeline.stages.crops import encoder_input, lung_crop
from cxr_pipeline.stages.films import read_mask

pytestmark = pytest.mark.skipif(not shipped(), reason="no weights are shipped")


@pytest.fixture(scope="module")
def chain():
    return stages.load_chain("tb", "classify")


def judge(chain, records):
    for stage in chain:
        records = stage.run(records)
    return records


def test_all_of_them_are_under_40_mb():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*") if p.is_file()) < 40_000_000


@pytest.mark.parametrize("name", shipped())
def test_bundles_are_whole_and_say_what_they_are(name):
    for stage in [n for n in stages.stored_names(SHIPPED / name) if stages.stage_class(n).has_weights]:
        folder = bundle_of(SHIPPED / name, stage)
        assert stage == "localize" or {KERAS_FILE, SERVING_FILE} <= {p.name for p in folder.iterdir()}
        card = read_card(folder)
        assert {"decisions", "training", "figures", "licence"} <= set(card)
        assert card["licence"] == LICENCE  # a training claims none: who ships weights says it
        for figures in card["figures"].values():
            for figure in figures.values():
                if isinstance(figure, dict) and figure.get("value") is not None and figure["n"] > 1:
                    assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1]
        assert not re.search(r'"(/|[A-Z]:)[^"]*[/\\]', json.dumps(card)), "a path of the machine that trained it"


@pytest.mark.parametrize("stage", ["segment", "classify"])
def test_keras_and_onnx_agree(stage):
    folder = bundle_of(SHIPPED / "tb", stage)
    channels = 1 if stage == "segment" else 2
    size = read_card(folder)["decisions"]["size"]
    film = make_film(3, label="TB", size=(size, size))
    batch = np.stack([film.pixels, film.mask], axis=-1)[None, ..., :channels].astype(np.float32)
    onnx, native = (open_network(folder, runtime)(batch) for runtime in ("onnx", "keras"))
    for name, value in native.items():
        np.testing.assert_allclose(onnx[name], value, atol=1e-4)


def test_lungs_of_synthetic_films_are_found(chain):
    films = [make_film(seed, label=LABELS[seed % 3], size=(360, 400)) for seed in range(100, 112)]
    records = [Record(Radiograph(f.pixels, str(n), "", f.mask.shape, None, "png", 8, {})) for n, f in enumerate(films)]
    done = judge(chain[:1], records)
    scores = [dice(film.mask, record.mask) for film, record in zip(films, done, strict=True)]
    assert min(scores) >= 0.85, scores


def test_a_run_imports_no_tensorflow(tmp_path):
    code = (
        "import sys; from cxr_pipeline.cli.main import _call; "
        f"_call(['samples', {str(tmp_path / 's')!r}, '-n', '1']); "
        f"code = _call(['run', {str(tmp_path / 's' / 'images')!r}, '--out', {str(tmp_path / 'r')!r}]); "
        "print('|', code, *sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code, *modules = answer.stdout.rpartition("|")[2].split()
    assert code == "0"
    assert not set(modules) & {"tensorflow", "keras", "torch", "jax"}


@pytest.mark.real
def test_lungs_of_films_never_trained_on(real_data, chain):
    """A part of shenzhen's test films; over all 86 the card holds 0.96."""
    films = read_manifest(real_data).select(source=["shenzhen"], split="test", has_mask=True)
    scores = []
    for row in films.table.iloc[::4].to_dict("records"):
        film = read(films.path(row["image"]), id=row["image"])
        (record,) = judge(chain[:1], [Record(film)])
        scores.append(dice(read_mask(films.path(row["mask"]), film.size), record.mask))
    assert np.mean(scores) >= 0.94


@pytest.mark.real
def test_tuberculosis_is_told_from_normal_at_home(real_data, chain):
    """Shenzhen's 100 test films: above what the card promises less what rounding may move."""
    films = read_manifest(real_data).select(source=["shenzhen"], split="test")
    rows = films.table.to_dict("records")
    records = judge(chain, [Record(read(films.path(row["image"]), id=row["image"])) for row in rows])
    truth = np.array([row["label"] == "TB" for row in rows])
    assert auroc(truth, np.array([record.tb_score for record in records])) >= 0.85


def test_maps_show_what_the_network_learned(chain):
    """Sanity check of Adebayo et al. 2018: with its weights shuffled, layer by layer, the network looks elsewhere."""
    films = [make_film(seed, label="TB", size=(300, 300)) for seed in range(8)]
    records = [Record(Radiograph(f.pixels, str(n), "", f.mask.shape, None, "png", 8, {})) for n, f in enumerate(films)]
    segment, classify = chain
    inputs = [
        encoder_input(*lung_crop(r, classify.size)[:2], classify.lungs, classify.pool) for r in segment.run(records)
    ]
    batch = np.stack(inputs)
    model = load_keras(bundle_of(SHIPPED / "tb", "classify") / KERAS_FILE)
    before = np.asarray(serving_model(model)(batch)["maps"])[..., 0]
    draw = np.random.default_rng(0)
    # the evidence is what the map shows; the five weights of the last layer all point the same way
    for layer in (model.get_layer("cells"), model.get_layer("encoder")):
        layer.set_weights([draw.permutation(w.ravel()).reshape(w.shape) for w in layer.get_weights()])
        after = np.asarray(serving_model(model)(batch)["maps"])[..., 0]
        alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(before, after, strict=True) if b.any()]
        assert not alike or np.mean(alike) < 0.6, (layer.name, alike)


def test_a_folder_without_stages_is_no_chain():
    assert (SHIPPED / "chest" / "features.npz").is_file()
    assert "chest" not in shipped()
    assert "tb" in shipped()
    with pytest.raises(WeightsError, match="no weights 'chest'"):
        find("chest")


def test_the_card_of_the_features_counts_its_films():
    training = json.loads((SHIPPED / "chest" / "card.json").read_text(encoding="utf-8"))["training"]
    films = training["films"]["train"]
    assert films["n"] == sum(films["by_source"].values())
    assert set(films["by_source"]) == set(training["taught_by"])
    assert not set(films["by_source"]) & set(training["never_seen"])
