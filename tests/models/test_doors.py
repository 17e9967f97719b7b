"""What every pooling and every runtime keeps to; a new one is picked up by its line in the registry."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.data.synthetic import make_film
from cxr_pipeline.models.classifier import build_classifier
from cxr_pipeline.models.gradcam import has_linear_head
from cxr_pipeline.models.pooling import POOLINGS, find_pooling
from cxr_pipeline.models.runtimes import RUNTIMES, RuntimeUnusableError
from cxr_pipeline.models.store import WeightsError, find, open_network, read_card

OWN = "tests.models.own_network:build"


@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_makes_one_vector_of_a_film(name):
    pooling = find_pooling(name)
    channels = 2 if pooling.needs_lungs else 1
    model = build_classifier(OWN, 64, channels, 3, pool=name)
    assert has_linear_head(model)
    assert len(model.get_layer("pool").output.shape) == 2
    films = np.random.default_rng(0).random((2, 64, 64, channels)).astype(np.float32)
    if pooling.needs_lungs:
        films[..., 1] = 0
        films[:, 8:56, 4:60, 1] = 1
    whole = np.asarray(model(films))
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([model(films[:1]), model(films[1:])]), whole, atol=1e-5)
    if pooling.needs_lungs:
        films[..., 1] = 0
        assert np.isfinite(np.asarray(model(films))).all(), "a film without lungs"


def opened(bundle, runtime):
    """The network of a bundle; skips, with the reason, where this machine has no such runtime, or no GPU for it."""
    try:
        return open_network(bundle, runtime, threads=1)
    except RuntimeUnusableError as error:
        pytest.skip(str(error))
    except WeightsError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["segment", "classify"])
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_answers_as_onnx_runtime_does(name, stage):
    bundle = find("tb") / stage
    size, channels = read_card(bundle)["decisions"]["size"], 1 if stage == "segment" else 2
    film = make_film(3, label="TB", size=(size, size))
    seen = np.stack([film.pixels, film.mask], axis=-1)[..., :channels].astype(np.float32)
    batch = np.stack([seen, seen[:, ::-1], 1 - seen])
    network = opened(bundle, name)
    wanted, found = open_network(bundle, threads=1)(batch), network(batch)
    assert set(wanted) <= set(found)
    for output, values in wanted.items():
        assert found[output].dtype == np.float32
        np.testing.assert_allclose(found[output], values, atol=1e-3)
        np.testing.assert_allclose(network(batch[:1])[output], values[:1], atol=1e-3)  # a batch of another size
