"""docs/notebook.ipynb runs from its first cell to its last, and what it ends cells with shows itself."""

from __future__ import annotations

import ast
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    names, shown = {}, []
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [], "it is kept without outputs"
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names))
    results, table, overlay, regions, film, shapes = shown
    assert results._repr_html_().count("<tr>") == 9
    assert list(table["tb_score"]) == sorted(table["tb_score"], reverse=True)
    assert overlay._repr_png_()[:4] == b"\x89PNG"
    assert regions == results.regions[table["id"].iloc[0]]
    assert "score" in film._repr_html_()
    assert "Research use only" in film._repr_html_()
    assert shapes[0] == shapes[1]
