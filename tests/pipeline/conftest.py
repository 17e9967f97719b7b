"""Films and weights of the fake chain, for tests of the command."""

from __future__ import annotations

import json

import pytest

from cxr_pipeline import stages
from tests.pipeline import fake_chain
from tests.pipeline.fake_chain import write_film


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of weights; what is loaded from it are the fake stages."""
    folder = tmp_path / "weights"
    trained = {"segment": {"threshold": 0.4}, "localize": {"threshold": 0.3}}
    for one in fake_chain.chain():
        (folder / one.name).mkdir(parents=True)
        card = one.card | {"training": {"settings": trained.get(one.name, {})}}
        (folder / one.name / "card.json").write_text(json.dumps(card))

    def load_chain(weights, last_stage=None, runtime="onnx", threads=None):
        loaded = fake_chain.chain(last_stage)
        for one in loaded:
            one.card = json.loads((folder / one.name / "card.json").read_text())
        return loaded

    monkeypatch.setattr(stages, "load_chain", load_chain)
    return folder


@pytest.fixture
def films(tmp_path):
    for number in range(3):
        write_film(tmp_path / "films" / f"f{number}.png", number, lungs=0.1 + 0.1 * number)
    return tmp_path / "films"
