"""The command as a process of its own: what it imports, and how it ends when it is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_pipeline.results.folder import rows
from tests.pipeline.fake_chain import hears_ctrl_c, write_film

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
HEAVY = {"tensorflow", "keras", "pandas", "matplotlib", "cv2", "numpy", "pydantic", "onnxruntime", "rich", "yaml"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["train", "--help"], ["evaluate", "--help"], ["data", "import", "--help"]],
)
def test_help_imports_nothing_heavy(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "cxr_pipeline.cli.main", *arguments]
    answer = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.stderr.splitlines()}
    assert "click" in imported
    assert not imported & HEAVY
    assert "Usage: pipeline" in answer.stdout


def test_what_a_run_imports_is_not_heavy():
    code = "import sys, cxr_pipeline.run.chain, cxr_pipeline.cli.console, cxr_pipeline.run.runner\n"
    code += "from cxr_pipeline.stages import segment, classify, localize\n"
    code += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    answer = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True)
    heavy = {"tensorflow", "keras", "pandas", "matplotlib", "sklearn", "skimage", "albumentations", "scipy"}
    assert not set(answer.stdout.split()) & heavy


def test_info_imports_no_runtime():
    code = "import sys; from cxr_pipeline.cli import main; main._call(['info']); print('|', *sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True)
    # It asks each stage what it needs and fills, so it imports the stages, and with them cv2.
    assert not set(answer.stdout.rpartition("|")[2].split()) & {"tensorflow", "keras", "onnxruntime", "pandas"}


def test_version_and_module_call():
    command = [sys.executable, "-m", "cxr_pipeline", "--version"]
    answer = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"cxr-pipeline \d+\.\d+\.\d+\S*\n", answer.stdout)


SLOW_CALL = """
import functools, sys, threading
from cxr_pipeline import stages
from tests.pipeline import fake_chain
from cxr_pipeline.data.radiograph import read
from cxr_pipeline.run import chain
from cxr_pipeline.cli import main as cli
from cxr_pipeline.run import runner

def reader(path, id):
    if id == "09_hangs":
        threading.Event().wait()
    return read(path, id=id)

runner.Runner = functools.partial(runner.Runner, reader=reader)
stages.load_chain = lambda *a, **k: fake_chain.chain(delay=0.1)
chain._hashes = lambda *a: {}
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_ctrl_c_is_130_within_seconds_and_keeps_what_is_done(tmp_path):
    folder, weights = tmp_path / "films", tmp_path / "weights"
    for name in ("segment", "classify", "localize"):
        (weights / name).mkdir(parents=True)
        (weights / name / "card.json").write_text("{}")
    for number in range(30):
        write_film(folder / f"{number:02}.png", number)
    write_film(folder / "09_hangs.png")
    command = [
        sys.executable,
        "-c",
        SLOW_CALL,
        "run",
        folder,
        "--out",
        tmp_path / "out",
        "--weights",
        weights,
        "--workers",
        "4",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ENV, preexec_fn=hears_ctrl_c, **pipes) as process:
        journal = tmp_path / "out" / "journal.jsonl"
        while process.poll() is None and not (journal.is_file() and journal.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "the same command goes on" in error
    assert "Traceback" not in error
    assert 1 <= len(list(rows(tmp_path / "out"))) < 31
