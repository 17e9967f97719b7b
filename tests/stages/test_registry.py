"""Stages by name: their order, what belongs to which weights, and stages of other packages."""

from __future__ import annotations

import csv
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cxr_pipeline import stages
from cxr_pipeline.configs.schema import load_config
from cxr_pipeline.data.synthetic import write_samples


def test_the_order_follows_from_needs_whatever_is_asked_first():
    assert stages.ordered(["measure", "localize", "classify", "segment"]) == [
        "segment",
        "classify",
        "localize",
        "measure",
    ]
    assert stages.leading_to("measure") == ["segment", "measure"]
    assert stages.leading_to("localize") == ["segment", "classify", "localize"]
    assert stages.leading_to("localize", among=["classify", "localize"]) == ["classify", "localize"]
    assert stages.before("classify", stages.names()) == ["segment"]


@pytest.mark.parametrize(
    ("chain", "end"),
    [
        (["segment"], "segment"),
        (["segment", "classify", "localize"], "localize"),
        (["classify", "localize"], "localize"),
        (["segment", "measure"], "measure"),
        (["segment", "classify", "localize", "measure"], "localize+measure"),
    ],
)
def test_a_chain_ends_with_what_nothing_builds_on(chain, end):
    assert stages.ends(chain) == end


@pytest.mark.parametrize(
    ("done", "wanted", "covered"),
    [
        ("localize", "segment", True),
        ("segment", "localize", False),
        ("localize", "measure", False),
        ("measure", "localize", False),
        ("localize+measure", "measure", True),
        ("localize+measure", "classify", True),
        ("measure", "segment", True),
        ("gone", "segment", False),
        ("gone", "gone", True),
    ],
)
def test_what_is_done_already_is_told_by_stages_and_not_by_position(done, wanted, covered):
    assert stages.covers(done, wanted) == covered


def test_stages_belong_to_a_config_by_what_they_say():
    assert stages.names_for(load_config("tb")) == ["segment", "classify", "localize"]
    assert stages.names_for(load_config("tb", ["segment.heart=true"])) == ["segment", "classify", "localize", "measure"]
    whole = load_config("tb", ["classify.lungs=none", "classify.pool=all"])
    assert stages.names_for(whole) == ["classify", "localize"]


def test_a_stage_whose_needs_nobody_fills_is_refused(tmp_path, monkeypatch):
    from cxr_pipeline.models import store
    from cxr_pipeline.stages.base import StageError

    decisions = {"lungs": "none"}
    (tmp_path / "classify").mkdir()
    store.write_card(tmp_path / "classify", {"decisions": decisions})
    with pytest.raises(StageError, match=r"'measure' needs mask, which no stage .* these: segment"):
        stages.load_chain(tmp_path, "measure")


STAGE = '''
    """Counts bright pixels in the lungs."""

    from cxr_pipeline.stages.base import Column, Stage

    class Bright(Stage):
        name = "bright"
        summary = "how much of the lungs is bright"
        needs = ("mask",)
        fills = ("measures",)
        has_weights = False
        columns = (Column("bright_share", "share of the lungs brighter than half"),)
        headline_figures = ("bright",)
        fingerprint = "bright 1"

        @classmethod
        def load(cls, bundle, *, runtime="onnx", threads=None):
            return cls()

        @classmethod
        def train(cls, data, config, out, chain=()):
            return out

        def run(self, records):
            for record in records:
                if record.ok:
                    share = float((record.radiograph.pixels[record.mask > 0] > 0.5).mean())
                    record.measures = {**(record.measures or {}), "bright_share": round(share, 3)}
            return list(records)

        def evaluate(self, data, out, chain=()):
            return {"films": []}
'''


@pytest.fixture
def package(tmp_path):
    """A folder for sys.path with a package of another author in it, installed as pip would leave it."""
    site = tmp_path / "site"
    (site / "lungtools").mkdir(parents=True)
    (site / "lungtools" / "__init__.py").write_text("")
    (site / "lungtools" / "bright.py").write_text(textwrap.dedent(STAGE))
    info = site / "lungtools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lungtools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cxr_pipeline.stages]\nbright = lungtools.bright:Bright\n")
    return site


def pipeline(site, *arguments):
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from cxr_pipeline.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_stage_of_another_package_runs_without_an_edit_here(package, tmp_path):
    write_samples(tmp_path / "films", 2, size=(128, 128))
    films = tmp_path / "films" / "images"
    done = pipeline(package, "run", films, "--out", tmp_path / "out", "--stage", "bright")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(0 <= float(row["bright_share"]) <= 1 for row in rows)
    assert "bright" in pipeline(package, "run", "--help").stdout
    again = pipeline(package, "run", films, "--out", tmp_path / "out")  # other stages than the folder has
    assert again.returncode == 2
    assert "up to bright" in again.stderr


@pytest.mark.parametrize(
    ("point", "why"), [("lungtools.nowhere:Bright", "cannot be loaded"), ("lungtools.bright:Stage", "whose `name` is")]
)
def test_a_stage_that_cannot_be_loaded_is_named(package, tmp_path, point, why):
    info = package / "lungtools-1.0.dist-info"
    (info / "entry_points.txt").write_text(f"[cxr_pipeline.stages]\nbright = {point}\n")
    write_samples(tmp_path / "films", 1, size=(128, 128))
    done = pipeline(package, "run", tmp_path / "films" / "images", "--out", tmp_path / "out", "--stage", "bright")
    assert done.returncode == 2
    assert why in done.stderr
    assert "bright" in done.stderr


def test_the_reference_names_every_stage_with_its_columns_and_figures():
    text = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in stages.names():
        kind = stages.stage_class(name)
        figures = [figure for figure in kind.headline_figures if figure != "auroc"]
        for word in (name, *(column.name for column in kind.columns), *figures):
            assert f"`{word}`" in text, word
