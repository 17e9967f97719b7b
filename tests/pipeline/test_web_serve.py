"""The command `pipeline serve` with the shipped weights, and many clients at once."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

import httpx2 as httpx

from cxr_pipeline import Pipeline
from cxr_pipeline.data.synthetic import write_samples
from tests.pipeline.fake_chain import film
from tests.pipeline.web_server import fake, listening

ROOT = Path(__file__).parent.parent.parent
_spec = importlib.util.spec_from_file_location("web_load", ROOT / "benchmarks" / "web_load.py")
web_load = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(web_load)


def pngs(count):
    return [cv2.imencode(".png", film(seed))[1].tobytes() for seed in range(count)]


def test_fifty_clients_at_once_lose_nothing():
    with listening() as address:
        measured = web_load.load(address, pngs(100), clients=50, seconds=3)
    assert measured["lost"] == 0, measured["reasons"]
    assert measured["answered"] >= 50


def test_a_short_queue_turns_clients_away_but_loses_none():
    with listening(fake(delay=0.05), queue=4) as address:  # twelve clients hand in more than is judged
        measured = web_load.load(address, pngs(20), clients=12, seconds=1)
    assert measured["lost"] == 0, measured["reasons"]
    assert measured["turned_away_and_sent_again"] > 0


@pytest.fixture
def running(tmp_path):
    """The command in a process of its own, its temporary folder, and its address."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    command = [sys.executable, "-m", "cxr_pipeline.cli.main", "serve", "--port", "0"]
    env = os.environ | {"TMPDIR": str(folder)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    address = re.search(r"http://\S+:\d+", process.stderr.readline()).group()
    web_load.wait(address)
    yield process, folder, address
    process.kill()
    process.wait()
    process.stderr.close()


def test_it_answers_what_the_python_api_answers(running, tmp_path):
    process, folder, address = running
    write_samples(tmp_path, 2, size=(160, 150))
    path = sorted((tmp_path / "images").iterdir())[1]
    answer = httpx.post(f"{address}/v1/analyze", files={"file": path.read_bytes()}, timeout=60).json()
    record = Pipeline().analyze(path)
    assert answer["label"] == record.label
    assert answer["tb_score"] == pytest.approx(record.tb_score, abs=0.06)
    assert [box["bbox"] for box in answer["boxes"]] == [list(region.box) for region in record.regions]
    job = httpx.post(f"{address}/v1/jobs", files={"file": path.read_bytes()}).json()["id"]
    while httpx.get(f"{address}/v1/jobs/{job}").json()["status"] != "done":
        pass
    mask = httpx.get(f"{address}/v1/jobs/{job}/films/film-0001/mask.png").content
    assert np.array_equal(cv2.imdecode(np.frombuffer(mask, np.uint8), 0) > 127, record.mask > 0)
    assert list(folder.iterdir())
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert list(folder.iterdir()) == []


def serve(*arguments, **env):
    command = [sys.executable, "-m", "cxr_pipeline.cli.main", "serve", *arguments]
    kept = {name: value for name, value in os.environ.items() if name != "CXR_API_KEY"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=kept | env, timeout=120, check=False)


def test_elsewhere_without_a_key_it_does_not_start():
    answer = serve("--host", "0.0.0.0")
    assert answer.returncode == 2
    assert "CXR_API_KEY" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert serve("--host", "0.0.0.0", CXR_API_KEY="short").returncode == 2


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = serve("--port", port)
    assert answer.returncode == 2
    assert port in answer.stderr
    assert "--port" in answer.stderr


def test_the_examples_of_the_page_work(tmp_path):
    """Every Python block of docs/web.md runs against a server."""
    page = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    (tmp_path / "film.png").write_bytes(pngs(1)[0])
    with listening() as address:
        for block in blocks:
            code = block.replace("http://127.0.0.1:8000", address)
            subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
        with urllib.request.urlopen(f"{address}/openapi.json") as answer:
            routes = json.load(answer)["paths"]
    for route in routes:
        assert route in page, f"docs/web.md does not name {route}"
    assert (tmp_path / "results.zip").stat().st_size > 0
