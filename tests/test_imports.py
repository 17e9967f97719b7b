"""Imports run one way between the rooms, and in no circle anywhere.

The source is parsed and not run. Imports inside functions and under `if TYPE_CHECKING` are left out: neither happens
when a module is imported, and the rooms use them to stay light and to name types.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "cxr_pipeline"
ROOMS = ["configs", "data", "models", "stages", "pipeline"]  # each may import those before it


def modules(root: Path) -> dict[str, Path]:
    """Every module by its name once installed. The folder pipeline/ is the package itself."""
    found = {}
    for room in ROOMS:
        prefix = (PACKAGE,) if room == "pipeline" else (PACKAGE, room)
        for path in (root / room).rglob("*.py"):
            parts = path.relative_to(root / room).with_suffix("").parts
            found[".".join(prefix + (parts[:-1] if parts[-1] == "__init__" else parts))] = path
    return found


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from at_import(node.orelse)
            continue
        yield node
        for name in ("body", "orelse", "finalbody"):
            yield from at_import(getattr(node, name, []))
        for handler in getattr(node, "handlers", []):
            yield from at_import(handler.body)


def imports(root: Path) -> dict[str, set[str]]:
    """Which modules each module imports, of this package alone."""
    known = modules(root)
    graph = {}
    for module, path in known.items():
        wanted = set()
        for node in at_import(ast.parse(path.read_text(encoding="utf-8")).body):
            if isinstance(node, ast.Import):
                wanted |= {one.name for one in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute, for relative ones hide the room"
                wanted |= {
                    name if (name := f"{node.module}.{one.name}") in known else node.module for one in node.names
                }
        graph[module] = (wanted & set(known)) - {module}
    return graph


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "pipeline"


def against_the_way(graph: dict[str, set[str]]) -> list[str]:
    """Imports of a room by one that comes before it."""
    return sorted(
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    )


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that wait for each other: what is left when all are taken away that wait for nobody; empty if none."""
    left = dict(graph)
    while ready := [module for module, others in left.items() if not others & set(left)]:
        for module in ready:
            del left[module]
    return sorted(left)


def test_imports_run_one_way_between_the_rooms():
    assert against_the_way(imports(ROOT)) == []


def test_no_modules_wait_for_each_other():
    assert circle(imports(ROOT)) == []


def test_every_module_was_looked_at():
    graph = imports(ROOT)
    assert {"cxr_pipeline.cli.main", "cxr_pipeline.stages.base", "cxr_pipeline.data.formats.png"} <= set(graph)
    assert "cxr_pipeline.configs.errors" in graph["cxr_pipeline.stages.base"]


def test_circles_and_wrong_ways_are_found(tmp_path):
    files = {
        "data/one.py": "try:\n    from cxr_pipeline.data import two\nexcept ImportError:\n    pass\n",
        "data/two.py": "from cxr_pipeline.stages.three import x\n",
        "stages/three.py": "from cxr_pipeline.data.one import y\n",
        "stages/four.py": "def later():\n    import cxr_pipeline.run\n",
        "pipeline/run.py": "import cxr_pipeline.stages.four\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = imports(tmp_path)
    assert circle(graph) == ["cxr_pipeline.data.one", "cxr_pipeline.data.two", "cxr_pipeline.stages.three"]
    assert against_the_way(graph) == ["cxr_pipeline.data.two imports cxr_pipeline.stages.three"]
