"""What every pooling and every runtime keeps to; a new one is picked up by its line in the registry."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from cxr_pipeline.models.classifier import build_classifier
from cxr_pipeline.models.gradcam import has_linear_head
from cxr_pipeline.models.pooling import POOLINGS, find_pooling
from cxr_pipeline.models.runtimes import RUNTIMES
from cxr_pipeline.models.store import find, open_network

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


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_answers_as_onnx_runtime_does(name):
    if importlib.util.find_spec(RUNTIMES[name].package) is None:
        pytest.skip(f"{RUNTIMES[name].package} is not installed")
    bundle = find("tb") / "segment"
    batch = np.random.default_rng(0).random((2, 256, 256, 1)).astype(np.float32)
    wanted, found = (open_network(bundle, runtime, threads=1)(batch) for runtime in ("onnx", name))
    assert set(wanted) <= set(found)
    for output, values in wanted.items():
        assert found[output].dtype == np.float32
        np.testing.assert_allclose(found[output], values, atol=1e-3)
