"""The base installation runs the chain; what needs more says which extra brings it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_pipeline.configs import extras
from tests.pipeline.fake_chain import write_film

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 reads no TOML by itself")

ROOT = Path(__file__).parent.parent
# All that the base installation leaves out, and what comes with it.
BLOCKED = sorted({*(name for names in extras.MODULES.values() for name in names), "absl", "skimage", "tensorboard"})
BLOCK = f"""
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Nothing())
from importlib import util
found = util.find_spec
def find_spec(name, package=None):
    return None if name.partition(".")[0] in {BLOCKED!r} else found(name, package)
util.find_spec = find_spec
"""


def python(code, folder):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", BLOCK + code], env=env, cwd=folder, capture_output=True, text=True)


def pipeline(folder, *calls):
    """What the command says in a Python that has the base installation alone; the exit codes are its last lines."""
    code = "from cxr_pipeline.cli import main\n"
    code += "".join(f"print('code', main._call({[str(one) for one in call]!r}))\n" for call in calls)
    return python(code, folder)


def test_the_chain_runs_on_the_base_installation(tmp_path):
    write_film(tmp_path / "films" / "a.png")
    site = tmp_path / "site.yaml"
    site.write_text("temperature: 1.0\noffsets: {TB: 0.0, NTB: 0.0, NORM: 0.0}\nthreshold: 0.3\nweights: {}\n")
    run = ("run", "films", "--no-refuse", "--out")
    calls = [
        (*run, "a"),
        (*run, "a"),  # with nothing to do
        (*run, "b", "--outputs", "all", "--also", "measure", "--site", site),
        (*run, "part", "--shard", "1/1"),
        ("merge", "part", "--out", "whole"),
        ("screen", "a", "--threshold", "40"),
        ("report", "a"),
        ("info",),
    ]
    answer = pipeline(tmp_path, *calls)
    assert answer.stdout.count("code 0") == len(calls), answer.stdout + answer.stderr
    assert (tmp_path / "a" / "report.html").is_file()


def test_python_works_on_the_base_installation(tmp_path):
    write_film(tmp_path / "a.png")
    code = """
from cxr_pipeline import Pipeline
chain = Pipeline()
print(len(chain.run("a.png", out="out").rows), chain.analyze("a.png").status)
try:
    chain.run("a.png", out="out").table
except ImportError as error:
    print(error)
"""
    answer = python(code, tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"Results.table needs pandas, .*cxr-pipeline\[pandas\]", answer.stdout)


@pytest.mark.parametrize(
    ("call", "extra", "missing"),
    [
        (("train", "--data", ".", "--out", "w"), "train", "tensorflow"),
        (("evaluate", "--stage", "classify", "--data", ".", "--out", "e"), "figures", "matplotlib"),
        (("calibrate", "--data", "."), "figures", "scipy"),
        (("compare", "tb", "tb"), "train", "onnx"),
        (("data", "summary", "."), "pandas", "pandas"),
        (("run", "a.png", "--out", "o", "--runtime", "keras"), "train", "keras"),
        (("run", "a.png", "--out", "o", "--runtime", "openvino"), "openvino", "openvino"),
        (("run", "a.png", "--out", "o", "--engine", "ray"), "ray", "Ray"),
        (("serve",), "web", "fastapi"),
    ],
)
def test_what_needs_more_names_the_extra(tmp_path, call, extra, missing):
    write_film(tmp_path / "a.png")
    answer = pipeline(tmp_path, call)
    assert "code 2" in answer.stdout, answer.stdout + answer.stderr
    assert f"cxr-pipeline[{extra}]" in answer.stderr
    assert missing in answer.stderr
    assert "Traceback" not in answer.stderr


def test_every_extra_is_one_that_can_be_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras.MODULES) <= set(project["optional-dependencies"])
    base = {re.split(r"[<>=!\[]", one)[0].lower() for one in project["dependencies"]}
    assert not base & {"tensorflow", "keras", "pandas", "scipy", "scikit-learn", "scikit-image", "matplotlib", "onnx"}
