"""Weights from a stranger: archives that unfold to the machine's memory."""

from __future__ import annotations

import io
import zipfile

import pytest

from cxr_pipeline.models.runtimes import keras as runtime
from cxr_pipeline.models.store import WeightsError, open_network

h5py = pytest.importorskip("h5py", reason="the extra [train] is not installed")


def keras_file(path, *, padding=0, values=0):
    """A .keras file with an entry of zeros, and an array of zeros that takes no room until it is read."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as arrays:
        if values:
            arrays.create_dataset("layers/dense/vars/0", (values,), "f4", chunks=(1024,), compression="gzip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", memory.getvalue())
        archive.writestr("config.json", bytes(padding))
    return path


@pytest.mark.parametrize("how", [{"padding": 30_000_000}, {"values": 10_000_000}])
def test_a_network_that_unfolds_to_too_much_is_refused_before_it_does(tmp_path, monkeypatch, how):
    monkeypatch.setattr(runtime, "MAX_BYTES", 20_000_000)
    path = keras_file(tmp_path / "model.keras", **how)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(runtime, "keras", lambda: pytest.fail("it was loaded"))
    with pytest.raises(WeightsError, match="unfolds to 0.0 GB, over the limit"):
        open_network(tmp_path, "keras")
