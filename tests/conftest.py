"""What all tests share: small synthetic films, a tiny trained chain, and the real data where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from cxr_pipeline.configs.schema import Config, load_config
from tests.tiny import TINY

settings.register_profile("patient", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("patient")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real films that CXR_DATA names; the test is skipped without it."""
    folder = os.environ.get("CXR_DATA")
    if not folder:
        pytest.skip("CXR_DATA does not name the real films")
    return Path(folder)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 18 synthetic films with masks, labels, boxes and splits."""
    from cxr_pipeline.data.synthetic import write_samples

    return write_samples(tmp_path_factory.mktemp("samples"), 18, size=(96, 112))


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The whole chain, small enough to train in a test."""
    return load_config("tb", TINY)


@pytest.fixture(scope="session")
def tiny_chain(tmp_path_factory: pytest.TempPathFactory, samples: Path, tiny_config: Config) -> Path:
    """A folder of weights as `pipeline train` leaves it, trained for a moment on the samples."""
    from cxr_pipeline.train.training import train

    out = tmp_path_factory.mktemp("chain")
    train(samples, tiny_config, out)
    return out
