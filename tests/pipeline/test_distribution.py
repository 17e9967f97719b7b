"""Training on two devices, in a process of its own, and in mixed precision, by one line of the config."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from cxr_pipeline.cli.main import _call
from cxr_pipeline.models.store import open_network
from tests.tiny import TINY, step_by_step

CODE = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # it takes longer than the steps
from cxr_pipeline.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_chain_trains_on_two_devices(samples, tmp_path):
    own = ["distribute=mirrored", "classify.fit.epochs=1"]
    settings = [word for setting in [*TINY, *own] for word in ("--set", setting)]
    command = [sys.executable, "-c", CODE, "train", "--data", str(samples), "--out", str(tmp_path / "w"), *settings]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    for stage, epochs in (("segment", 2), ("classify", 2)):
        with (tmp_path / "w" / stage / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == epochs
        assert all(float(row["loss"]) > 0 for row in rows)
    assert (tmp_path / "w" / "localize" / "card.json").is_file()


@pytest.fixture(scope="module")
def mixed(samples, tmp_path_factory):
    """Weights of the lungs by the encoder that ships, trained in mixed precision, on the split "test" too."""
    out = tmp_path_factory.mktemp("mixed") / "w"
    own = ["precision=mixed_float16", "segment.fit.epochs=1", "segment.fit.splits=[train, test]"]
    own += ["segment.encoder=mobilenetv2"]
    settings = [word for setting in [*TINY, *own] for word in ("--set", setting)]
    with step_by_step():
        assert _call(["train", "--stage", "segment", "--data", str(samples), "--out", str(out), *settings]) == 0
    return out


@pytest.mark.slow
def test_a_network_trained_in_mixed_precision_is_stored_in_float32(mixed):
    with zipfile.ZipFile(mixed / "segment" / "model.keras") as file:
        assert b"mixed" not in file.read("config.json")
    batch = np.random.default_rng(0).random((2, 64, 64, 1), np.float32)
    (stored,) = open_network(mixed / "segment", "keras")(batch).values()
    (served,) = open_network(mixed / "segment", "onnx")(batch).values()
    assert served.dtype == np.float32
    np.testing.assert_allclose(served, stored, atol=1e-4)


@pytest.mark.slow
def test_splits_that_were_trained_on_are_not_judged(mixed):
    card = json.loads((mixed / "segment" / "card.json").read_text())
    assert "test" not in card["figures"]
    assert card["training"]["films"]["train"]["n"] > 9
