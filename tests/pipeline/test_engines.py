"""What every engine keeps: the same films leave the same bytes. A new one is picked up by its line in the registry."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from cxr_pipeline import stages
from cxr_pipeline.cli.main import cli
from cxr_pipeline.data.synthetic import write_samples
from cxr_pipeline.run import engines
from cxr_pipeline.run.engines import cluster
from cxr_pipeline.run.engines.base import Engine, EngineError
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.spec import ChainSpec
from tests.pipeline.fake_chain import tree


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_samples(folder, 3, size=(128, 128))
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder / "images"


@pytest.fixture(scope="module")
def expected(films, tmp_path_factory):
    return judged("local", films, tmp_path_factory.mktemp("expected") / "out")


def judged(name, films, out):
    spec = ChainSpec(last_stage="segment")
    runner = engines.engine_class(name).runner(spec.open(), spec, out, {"batch_size": 2, "workers": 1})
    summary = runner.run(find_inputs([str(films)]))
    assert summary.counts == {"ok": 3, "refused": 0, "failed": 1}
    return tree(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", engines.names())
def test_any_engine_leaves_the_same_bytes(name, films, expected, tmp_path):
    assert judged(name, films, tmp_path / "out") == expected


def test_many_films_are_judged_side_by_side_where_all_can(monkeypatch):
    monkeypatch.setattr("cxr_pipeline.run.chain.cores", lambda: 8)
    asked = []
    monkeypatch.setattr("cxr_pipeline.models.store._opened", lambda path, runtime, threads: asked.append(threads))

    def judges(**how):
        asked.clear()
        chain = ChainSpec(last_stage="localize", **how).open(side_by_side=True)
        return chain.judges, {*asked}

    assert judges() == (4, {2})
    assert judges(threads=3) == (1, {3})  # whoever gives the cores of a network has a place for each already
    assert judges(runtime="openvino") == (1, {None})
    monkeypatch.setattr(stages.stage_class("localize"), "shared", False)
    assert judges() == (1, {None})
    monkeypatch.undo()
    assert ChainSpec(last_stage="segment").open().judges == 1  # for a film now and then, with all cores


@pytest.mark.parametrize("name", engines.names())
def test_an_engine_says_what_it_is(name):
    engine = engines.engine_class(name)
    assert issubclass(engine, Engine)
    assert engine.name == name
    assert engine.summary
    for option in engine.options:
        assert engines.owner_of(option) == name
    known = {option.name for option in cli.commands["run"].params}
    assert set(engine.options) <= known


def test_an_unknown_engine_is_named():
    with pytest.raises(EngineError, match=r"must be one of local, ray\. Received: 'spark'"):
        engines.engine_class("spark")


def test_a_ray_that_does_not_start_here_says_so_and_speaks_of_no_address(monkeypatch):
    def init(*_, **__):
        raise TimeoutError("the node timed out")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "import_ray", lambda: SimpleNamespace(is_initialized=lambda: False, init=init))
    failing = pytest.raises(EngineError, match=r"did not start on this machine \(the node timed out\)")
    with failing as error, cluster.connected():
        pass
    assert "--address" not in str(error.value)


def test_a_spec_passes_between_processes_and_keeps_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("{}")
    spec = ChainSpec("mine", config="c.yaml", site=Path("ours.yaml"), also=("measure",))
    again = pickle.loads(pickle.dumps(spec.absolute()))
    assert again == spec.absolute()
    assert (again.weights, again.config) == (str(tmp_path / "mine"), str(tmp_path / "c.yaml"))
    assert ChainSpec("tb", config="tb").absolute() == ChainSpec("tb", config="tb")
