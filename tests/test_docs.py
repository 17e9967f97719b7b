"""The documents say what is so."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from cxr_pipeline.data.layouts import LAYOUTS

ROOT = Path(__file__).parent.parent


def test_the_model_card_shows_the_figures_of_the_shipped_weights():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    page = figures.PAGE.read_text(encoding="utf-8")
    assert figures.filled(page) == page, "run python docs/figures.py"
    assert "n 138" in figures.figures_text()


def test_the_table_of_data_sets_is_that_of_the_registry():
    spec = importlib.util.spec_from_file_location("data_page", ROOT / "docs" / "data.py")
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    page = data.PAGE.read_text(encoding="utf-8")
    assert data.filled(page) == page, "run python docs/data.py"
    assert all(f"| `{name}` | {one.title} |" in page for name, one in LAYOUTS.items())


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_table_of_experiments_is_that_of_their_files():
    spec = importlib.util.spec_from_file_location("experiments", ROOT / "docs" / "experiments" / "run.py")
    experiments = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(experiments)
    page = experiments.PAGE.read_text(encoding="utf-8")
    assert experiments.filled(page) == page, "run python docs/experiments/run.py"


def test_the_reference_names_every_command():
    import click

    from cxr_pipeline.cli.main import cli

    def names(group, prefix):
        for name, one in group.commands.items():
            yield from names(one, f"{prefix} {name}") if isinstance(one, click.Group) else [f"{prefix} {name}"]

    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert [name for name in names(cli, "pipeline") if f"`{name}" not in page] == []


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tables_of_refusals_are_those_of_their_file():
    spec = importlib.util.spec_from_file_location("quality", ROOT / "docs" / "experiments" / "quality.py")
    quality = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quality)
    page = quality.PAGE.read_text(encoding="utf-8")
    assert quality.filled(page) == page, "run python docs/experiments/quality.py"
