"""Installed, the folders are one package, whatever lies in the folder that Python is started in."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 reads no TOML by itself")

ROOT = Path(__file__).parent.parent
ROOMS = {"pipeline": "cxr_pipeline"} | {
    room: f"cxr_pipeline.{room}" for room in ("configs", "data", "models", "stages")
}
# Names that this project has too, as a user may have them.
THEIRS = (
    "data.py",
    "stages.py",
    "models/__init__.py",
    "pipeline/__init__.py",
    "configs/__init__.py",
    "cli.py",
    "run.py",
)
USE = """
import sys
import cxr_pipeline
from cxr_pipeline import Pipeline, stages
from cxr_pipeline.cli.main import cli
from cxr_pipeline.data import radiograph
from cxr_pipeline.models.store import shipped
assert [stages.stage_class(name).name for name in stages.names()] == list(stages.names())
assert "tb" in shipped(), shipped()
import data, models
assert (data.OWNER, models.OWNER) == ("theirs", "theirs")
print(cxr_pipeline.__file__)
"""


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def folders_with_python() -> set[str]:
    """Names, once installed, of all folders of the rooms that hold Python files."""
    found = set()
    for room, name in ROOMS.items():
        for path in (ROOT / room).rglob("*.py"):
            found.add(".".join((name, *path.parent.relative_to(ROOT / room).parts)))
    return found


@pytest.fixture
def theirs(tmp_path):
    """A researcher's own folder, full of names that this project has too."""
    for name in THEIRS:
        path = tmp_path / "theirs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('OWNER = "theirs"\n')
    return tmp_path / "theirs"


def use(folder, *before):
    """Where the package comes from in a Python started in `folder`, after a little use of it."""
    code = "\n".join((*before, USE))
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_every_folder_of_python_files_is_packed():
    assert folders_with_python() == set(settings()["packages"])
    assert settings()["package-dir"] == {name: room for room, name in ROOMS.items()}


def test_the_editable_install_works_among_names_of_the_same_kind(theirs):
    assert use(theirs) == ROOT / "pipeline" / "__init__.py"
    module = [sys.executable, "-m", "cxr_pipeline", "--version"]
    done = subprocess.run(module, cwd=theirs, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network."""
    if find_spec("pip") is None or find_spec("setuptools") is None:
        pytest.skip("pip and setuptools are needed to build a wheel without a network")
    out = tmp_path_factory.mktemp("wheel")
    # From a copy of what git knows, so that a build folder of earlier times cannot hide a file that is missing.
    source = out / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    if files.returncode:
        pytest.skip("this is no checkout of git")
    for name in files.stdout.decode().split("\0"):
        if name.split("/")[0] in {*ROOMS, "pyproject.toml", "README.md", "LICENSE"} and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        out,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_works_among_names_of_the_same_kind(wheel, theirs, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        tops = {name.split("/")[0] for name in file.namelist()}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"cxr_pipeline"}
        file.extractall(tmp_path / "site")
    # First on the path, before the finder of the editable install is asked.
    before = (
        "import sys",
        "sys.meta_path = [one for one in sys.meta_path if 'editable' not in getattr(one, '__module__', '')"
        " and 'Editable' not in getattr(one, '__name__', '')]",
        f"sys.path.insert(1, {str(tmp_path / 'site')!r})",
    )
    assert use(theirs, *before) == tmp_path / "site" / "cxr_pipeline" / "__init__.py"
