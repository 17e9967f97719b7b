"""Training on two devices by one line of the config; in a process of its own, which has two CPU devices."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

from tests.tiny import TINY

CODE = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from pipeline.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_chain_trains_on_two_devices(samples, tmp_path):
    settings = [word for setting in [*TINY, "distribute=mirrored"] for word in ("--set", setting)]
    command = [sys.executable, "-c", CODE, "train", "--data", str(samples), "--out", str(tmp_path / "w"), *settings]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    for stage, epochs in (("segment", 2), ("classify", 3)):
        with (tmp_path / "w" / stage / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == epochs
        assert all(float(row["loss"]) > 0 for row in rows)
    assert (tmp_path / "w" / "localize" / "card.json").is_file()
