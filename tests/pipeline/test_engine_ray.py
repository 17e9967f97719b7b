"""Runs on Ray: the same folder as the ordinary engine leaves, whatever is killed."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from cxr_pipeline.cli import main as cli
from cxr_pipeline.data.synthetic import write_samples
from cxr_pipeline.results.folder import ResultsFolder, rows
from cxr_pipeline.run.engines.cluster import EngineError, import_ray, room_for
from cxr_pipeline.run.engines.ray import RayRunner, films_a_block
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import RunError, Runner
from cxr_pipeline.run.spec import ChainSpec
from tests.pipeline import ray_chains
from tests.pipeline.fake_chain import tree, write_film

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of three workers on this machine; none for the tests that go without."""
    pytest.importorskip("ray")
    ray = import_ray()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    ray.init(
        "local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Fourteen: synthetic ones, one that is cut, one without lungs, and two of the same name."""
    folder = write_samples(tmp_path_factory.mktemp("films"), 10, size=(128, 112)).parent / "images"
    first = sorted(folder.iterdir())[0]
    (folder / "cut.png").write_bytes(first.read_bytes()[:300])
    (folder / "again").mkdir()
    (folder / "again" / first.name).write_bytes(first.read_bytes())
    write_film(folder / "white.png", 3, size=(96, 96), lungs=0.7)
    (folder / "empty.dcm").touch()
    return folder


@pytest.fixture(scope="module")
def local(films, tmp_path_factory):
    """What the ordinary engine leaves of the films, by the shipped weights."""
    out = tmp_path_factory.mktemp("local") / "out"
    chain = ChainSpec().open()
    Runner(chain.stages, out, identity=chain.identity, batch_size=2).run(find_inputs([films]))
    return tree(out)


def test_a_block_is_some_batches_fewer_of_few_films_and_more_of_very_many():
    assert films_a_block(1000, 8, 4) == 32
    assert films_a_block(12, 8, 3) == 2
    assert films_a_block(1, 8, 3) == 1
    assert films_a_block(0, 8, 3) == 1
    assert films_a_block(10_000_000, 8, 64) == 1000


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "room"),
    [
        ([{"CPU": 4}], 1, 0, 4),
        ([{"CPU": 1}], 0.1, 0, 10),  # not 9, which floats would say
        ([{"CPU": 3}, {"CPU": 3}], 2, 0, 2),  # of each machine, not of their sum
        ([{"CPU": 16, "GPU": 1}], 2, 0.25, 4),
        ([{"CPU": 16}, {"CPU": 16, "GPU": 2}], 1, 1, 2),
    ],
)
def test_as_many_workers_as_fit_on_the_machines(resources, cpus, gpus, room):
    gone = {"Alive": False, "Resources": {"CPU": 100, "GPU": 100}}
    assert room_for([*({"Alive": True, "Resources": one} for one in resources), gone], cpus, gpus) == room


def test_a_worker_that_fits_nowhere_is_explained():
    with pytest.raises(EngineError, match=r"8 CPUs and 0 GPUs fits nowhere.*4 CPUs and 0 GPUs.*--cpus-per-worker"):
        room_for([{"Alive": True, "Resources": {"CPU": 4.0}}], 8, 0)


def test_without_ray_it_says_what_to_install(films, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli._call(["run", str(films), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert "pip install 'cxr-pipeline[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpus-per-worker", "2"], "--cpus-per-worker: for --engine ray only"),
        (["--address", "auto"], "--address: for --engine ray only"),
        (["--engine", "ray", "--gpus-per-worker", "0.5"], "Add --runtime onnx-cuda or onnx-tensorrt or keras"),
        (["--engine", "ray", "--cpus-per-worker", "0"], "0"),
    ],
)
def test_options_that_cannot_be_obeyed_are_refused(films, tmp_path, capsys, options, message):
    assert cli._call(["run", str(films), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_paths_are_absolute_for_workers_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    named = ChainSpec("tb", "segment", config="tb")
    assert named.absolute() == named
    ours = ChainSpec("w", "segment", config="mine.yaml", site=Path("s.yaml")).absolute()
    assert (ours.weights, ours.last_stage) == (str(tmp_path / "w"), "segment")
    assert (ours.config, ours.site) == (str(tmp_path / "mine.yaml"), tmp_path / "s.yaml")


@pytest.mark.slow
@needs_ray
def test_the_command_leaves_what_the_ordinary_engine_leaves(cluster, films, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(films.parent)
    given = ["run", films.name, "--batch-size", "2", "--no-report", "--out"]  # a report shows the arguments
    assert cli._call([*given, str(tmp_path / "local")]) == 1
    ray = [*given, str(tmp_path / "ray"), "--engine", "ray", "--workers", "2", "--cpus-per-worker", "0.5"]
    assert cli._call(ray) == 1
    message = capsys.readouterr().out
    on_threads, on_ray = tree(tmp_path / "local"), tree(tmp_path / "ray")
    assert on_ray["run.json"].pop("arguments")["engine"] == "ray"
    assert on_threads["run.json"].pop("arguments")["engine"] == "local"
    assert on_ray == on_threads
    status = {row["image"]: row["status"] for row in rows(tmp_path / "ray")}
    assert len(status) == 14
    assert status[os.path.join(films.name, "cut.png")] == "failed"
    assert "cut.png" in message


@pytest.mark.slow
@needs_ray
def test_a_worker_that_is_killed_changes_nothing(cluster, films, local, tmp_path):
    chain = ChainSpec().open()
    marker, out = tmp_path / "killed", tmp_path / "out"
    killed = partial(ray_chains.killed_once, "synthetic_005_TB", marker)
    runner = RayRunner(chain.stages, out, identity=chain.identity, opening=killed, batch_size=1, workers=3)
    summary = runner.run(find_inputs([films]))
    assert marker.exists()
    assert summary.counts["ok"] >= 10
    assert tree(out) == local


@pytest.mark.slow
@needs_ray
def test_a_driver_that_is_killed_is_resumed_with_an_equal_result(cluster, tmp_path):
    for number in range(12):
        write_film(tmp_path / "films" / f"f{number}.png", number, lungs=0.05 * number)
    out, journal = tmp_path / "out", tmp_path / "out" / "journal.jsonl"
    command = [sys.executable, "-m", "tests.pipeline.ray_chains", str(tmp_path / "films"), str(out), "0.2"]
    driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 3):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert len(list(rows(out))) < 12
    stages = ray_chains.fake().stages
    inputs = find_inputs([tmp_path / "films"])
    summary = RayRunner(stages, out, opening=ray_chains.fake, workers=2).run(inputs)
    assert 3 <= summary.already < 12
    Runner(stages, tmp_path / "local").run(inputs)
    assert tree(out) == tree(tmp_path / "local")


@pytest.mark.slow
@needs_ray
def test_interrupted_it_keeps_what_is_finished_and_goes_on(cluster, tmp_path):
    for number in range(12):
        write_film(tmp_path / "films" / f"f{number}.png", number)
    inputs, stages, out = find_inputs([tmp_path / "films"]), ray_chains.fake().stages, tmp_path / "out"

    def interrupt(done):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RayRunner(stages, out, opening=ray_chains.fake, batch_size=1, workers=2).run(inputs, progress=interrupt)
    assert len(list(rows(out))) == 6
    assert Runner(stages, out).run(inputs).already == 6  # the other engine goes on from there as well
    Runner(stages, tmp_path / "local").run(inputs)
    assert tree(out) == tree(tmp_path / "local")


@pytest.mark.slow
@needs_ray
def test_a_film_that_kills_its_workers_costs_only_itself(cluster, tmp_path):
    for number in range(6):
        write_film(tmp_path / f"f{number}.png", number)
    inputs, stages = find_inputs([tmp_path]), ray_chains.fake().stages
    out = tmp_path / "out"
    runner = RayRunner(stages, out, opening=partial(ray_chains.deadly, "f4"), batch_size=2, workers=1, retries=1)
    summary = runner.run(inputs)
    assert summary.counts == {"ok": 5, "refused": 0, "failed": 1}
    assert "f4.png: the process that judged it was killed" in summary.problems[0][2]
    assert Runner(stages, out).run(inputs).counts["ok"] == 6  # it is tried again
    Runner(stages, tmp_path / "local").run(inputs)
    assert tree(out) == tree(tmp_path / "local")


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (ray_chains.full, r"masks.f0\.png.*No space left on device.*goes on where it stopped"),
        (partial(ray_chains.fake, fingerprint="another"), "a worker on .*: it would judge with other stages"),
    ],
    ids=["full", "other-weights"],
)
def test_what_stops_a_worker_stops_the_run_and_is_explained(cluster, tmp_path, opened, message):
    write_film(tmp_path / "f0.png")
    runner = RayRunner(ray_chains.fake().stages, tmp_path / "out", opening=opened, workers=1)
    with pytest.raises(RunError, match=message):
        runner.run(find_inputs([tmp_path / "f0.png"]))


@needs_ray
def test_no_cluster_at_the_address_is_explained(films, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(import_ray(), "is_initialized", lambda: False)
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert cli._call(["run", str(films), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert f"no Ray cluster at {address}" in capsys.readouterr().err


@needs_ray
def test_two_runs_do_not_share_a_folder(films, tmp_path, capsys):
    chain = ChainSpec().open()
    with ResultsFolder(tmp_path / "out", chain.identity):
        assert cli._call(["run", str(films), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert "another run is working" in capsys.readouterr().err
