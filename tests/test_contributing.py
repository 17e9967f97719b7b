"""The examples of CONTRIBUTING.md are a package that works, without an edit here."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cxr_pipeline.data.synthetic import make_film

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
DOORS = ("networks", "formats", "outputs", "stages", "layouts")
OUTPUTS_HAVE_A_DOOR = (ROOT / "pipeline" / "results" / "outputs").is_dir()


def blocks() -> dict[str, str]:
    """The examples by the file that their first line names."""
    found = re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return dict(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder for sys.path that holds the package of the page, as pip would leave it."""
    site = tmp_path_factory.mktemp("site")
    (site / "filmtools").mkdir()
    (site / "filmtools" / "__init__.py").write_text("")
    for name, text in blocks().items():
        if name.startswith("filmtools/"):
            (site / name).write_text(text, encoding="utf-8")
    project = blocks()["pyproject.toml"]
    groups = re.findall(r'\[project\.entry-points\."(cxr_pipeline\.\w+)"\]\n(\w+) = "(\S+)"', project)
    assert [group for group, _, _ in groups] == [f"cxr_pipeline.{door}" for door in DOORS]
    info = site / "filmtools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: filmtools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{name} = {place}\n" for group, name, place in groups))
    return site


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with two films as grey maps of 8 and 16 bits, which nothing in the project reads."""
    folder = tmp_path_factory.mktemp("films")
    for name, most in (("a", 255), ("b", 4095)):
        pixels = np.round(make_film(3, size=(160, 128)).pixels * most).astype(np.uint8 if most < 256 else ">u2")
        (folder / f"{name}.pgm").write_bytes(b"P5\n# a clinic\n128 160\n%d\n" % most + pixels.tobytes())
    return folder


def python(site, code, *arguments):
    # By the environment, so that processes that read films find the package too.
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def pipeline(site, *arguments):
    return python(site, "from cxr_pipeline.cli.main import main; main()", *arguments)


def test_a_format_and_a_stage_of_the_page_run(site, films, tmp_path):
    done = pipeline(site, "run", films, "--out", tmp_path / "out", "--stage", "bright", "--no-refuse")
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == ["a.pgm", "b.pgm"]
    assert all(row["status"] == "ok" and 0 < float(row["bright_share"]) < 1 for row in rows)
    whole = (films / "a.pgm").read_bytes()
    (tmp_path / "half.pgm").write_bytes(whole[: len(whole) // 2])
    cut = pipeline(site, "run", tmp_path / "half.pgm", "--out", tmp_path / "cut", "--stage", "bright")
    assert cut.returncode == 1
    assert "ends before its last pixel" in (tmp_path / "cut" / "results.csv").read_text()


@pytest.mark.skipif(not OUTPUTS_HAVE_A_DOOR, reason="outputs have no door here yet")
def test_an_output_of_the_page_is_written(site, films, tmp_path):
    out = tmp_path / "out"
    done = pipeline(site, "run", films, "--out", out, "--stage", "segment", "--no-refuse", "--outputs", "contours")
    assert done.returncode == 0, done.stdout + done.stderr
    outlines = json.loads((out / "contours" / "a.json").read_text())
    assert outlines
    assert all(0 <= x < 128 and 0 <= y < 160 for outline in outlines for x, y in outline)


def test_a_data_set_of_the_page_is_imported(site, tmp_path):
    import cv2

    for name in ("sick/P001-1.png", "sick/P001-2.png", "well/P002-1.png"):
        path = tmp_path / "clinic" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((64, 64), 90, np.uint8))
    done = pipeline(site, "data", "import", "clinic", tmp_path / "clinic", "--out", tmp_path / "manifest.csv")
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["patient"], row["label"]) for row in rows] == [
        ("clinic-P001", "TB"),
        ("clinic-P001", "TB"),
        ("clinic-P002", "NORM"),
    ]


NETWORK = """
import numpy as np
from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.models.classifier import build_classifier, network_settings
for name in ("small", "filmtools.networks:build"):
    config = load_config(None, [f"classify.network={name}", "classify.network_settings={depth: 4, filters: 5}"])
    model = build_classifier(name, 64, 1, 3, pool="all", **network_settings(config.classify))
    assert model.get_layer("pool").input.shape[1:] == (4, 4, 5), model.get_layer("pool").input.shape
    answer = np.asarray(model(np.random.default_rng(0).random((2, 64, 64, 1)).astype(np.float32)))
    assert answer.shape == (2, 3) and np.allclose(answer.sum(1), 1, atol=1e-5), answer
"""


@pytest.mark.slow
def test_a_network_of_the_page_is_built_by_name_and_by_place(site):
    done = python(site, NETWORK)
    assert done.returncode == 0, done.stderr


def test_files_and_registries_that_the_page_names_exist():
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:configs|data|models|stages|pipeline|docs|tests)/[\w/]+\.\w+)`", text))
    assert len(named) > 10
    missing = {name for name in named if "NAME" not in name and not (ROOT / name).exists()}
    if not OUTPUTS_HAVE_A_DOOR:
        missing = {name for name in missing if "outputs" not in name}
    assert missing == set()
    for name, file in re.findall(r"\| `(_?[A-Z]+(?:_[A-Z]+)?)` in `(\S+\.py)` \|", text):
        if (ROOT / file).exists():
            assert re.search(rf"^{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.M), (name, file)


def test_examples_are_formatted_and_linted(site):
    assert find_spec("ruff") is not None
    command = [sys.executable, "-m", "ruff"]
    for check in (["check", "--select", "E,F,W,B,UP,D1,SIM", "--ignore", "D104"], ["format", "--check"]):
        done = subprocess.run(
            [*command, *check, "--isolated", "--line-length", "120", site], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
