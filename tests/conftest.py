"""What all tests share: small synthetic films, a tiny trained chain, and the real data where it lies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from cxr_pipeline.configs.schema import Config, load_config
from cxr_pipeline.data.locks import FolderLock
from tests.decoders import Pool, lent_by
from tests.tiny import TINY, step_by_step

settings.register_profile("patient", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("patient")

HERE = Path(__file__).parent
# Files that take a minute or more, heaviest first. `--dist loadfile` hands files out in this order, so that no worker
# is left with one of them at the end while the others have nothing to do.
HEAVY = (
    "pipeline/test_end_to_end.py",
    "pipeline/test_engine_ray.py",
    "pipeline/test_distribution.py",
    "models/test_networks.py",
    "stages/test_quality.py",
    "pipeline/test_runner.py",
    "stages/test_contract.py",
    "pipeline/test_export.py",
    "pipeline/test_engines.py",
    "pipeline/test_other_tasks.py",
    "stages/test_classify_training.py",
    "models/test_pretrain.py",
    "stages/test_heart.py",
    "models/test_fit.py",
    "models/test_checkpoints.py",
    "pipeline/test_read_loop.py",
    "pipeline/test_small_run.py",
    "stages/test_distil.py",
    "hospital/test_demo.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist, where it is used, keep our order: by itself it sorts files by their number of tests.

    And have Python keep what it compiles, here and in the processes that tests start. Where PYTHONDONTWRITEBYTECODE is
    set, each would compile TensorFlow again, for 8 seconds, as uv compiles nothing when it installs.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Heavy files first; within a file, and among the others, the order stays."""
    place = {HERE / name: number for number, name in enumerate(HEAVY)}
    items.sort(key=lambda item: place.get(item.path, len(HEAVY)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real films that CXR_DATA names; the test is skipped without it."""
    folder = os.environ.get("CXR_DATA")
    if not folder:
        pytest.skip("CXR_DATA does not name the real films")
    return Path(folder)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run have in common; see `made_once`."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def made_once(folder: Path) -> Iterator[bool]:
    """Hold `folder`, which is made where it is missing, against the other processes; whether it has to be filled.

    Whoever fails, or is killed, leaves it to the next to fill.
    """
    guard = folder.with_name(f"{folder.name}.guard")
    for one in (folder, guard):
        one.mkdir(parents=True, exist_ok=True)
    lock, done = FolderLock(guard), guard / "done"
    while not lock.acquire():
        time.sleep(0.2)
    try:
        yield not done.exists()
        done.touch()
    finally:
        lock.release()


@pytest.fixture(scope="session")
def samples(shared: Path) -> Path:
    """A manifest of 18 synthetic films with masks, labels, boxes and splits; not to be changed."""
    from cxr_pipeline.data.synthetic import write_samples

    with made_once(shared / "samples") as missing:
        if missing:
            write_samples(shared / "samples", 18, size=(96, 112))
    return shared / "samples" / "manifest.csv"


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """The whole chain, small enough to train in a test."""
    return load_config("tb", TINY)


@pytest.fixture(scope="session")
def tiny_chain(shared: Path, samples: Path, tiny_config: Config) -> Path:
    """A folder of weights as `pipeline train` leaves it, trained for a moment on the samples; not to be changed."""
    from cxr_pipeline.train.training import train

    with made_once(shared / "chain") as missing:
        if missing:
            with step_by_step():
                train(samples, tiny_config, shared / "chain")
    return shared / "chain"


@pytest.fixture(scope="module")
def eagerly() -> Iterator[None]:
    """Trainings run step by step, from the first test of a file that names it on."""
    with step_by_step():
        yield


@pytest.fixture(scope="session")
def decoders() -> Iterator[Pool]:
    """Processes that decode films, for `lent_by`."""
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def kept_decoders(decoders: Pool) -> Iterator[None]:
    """For files of many short runs, which do not look at the processes that decode films: they take used ones."""
    with lent_by(decoders):
        yield
