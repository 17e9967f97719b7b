"""Nodes of tests decode films in their own process: starting helpers is what these tests would mostly wait for."""

from __future__ import annotations

import pytest

from cxr_pipeline.data.radiograph import read
from cxr_pipeline.dicom import station
from cxr_pipeline.run import reading


class PlainReader:
    """Stands for `run.isolation.IsolatedReader`, which tests/pipeline/test_isolation.py looks at."""

    def __init__(self, **_):
        pass

    def __call__(self, path, *, id=None):
        return read(path, id=id)

    def close(self):
        pass


@pytest.fixture
def isolated():
    """Name it to have films decoded by helper processes, as in earnest. Nodes that are processes do so anyway."""


@pytest.fixture(autouse=True)
def plain_reader(request, monkeypatch):
    if "isolated" not in request.fixturenames:
        monkeypatch.setattr(station, "IsolatedReader", PlainReader)
        monkeypatch.setattr(reading, "IsolatedReader", PlainReader)
