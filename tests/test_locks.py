"""The lock files: versions and hashes of everything that is installed, and of nothing else."""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "configs" / "locks"
NAME = re.compile(r"^[A-Za-z0-9._-]+")


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def entries(path: Path) -> dict[str, list[str]]:
    """Lines of a lock file by package: its version first, then its hashes."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.strip():
            name, *rest = line.split()
            found.setdefault(plain(NAME.match(name).group().partition("==")[0]), []).extend([name, *rest])
    return found


@pytest.mark.parametrize("name", ["dev.txt", "image.txt", "tools.txt"])
def test_every_entry_has_a_version_and_hashes_and_no_host(name):
    found = entries(LOCKS / name)
    assert found
    for package, words in found.items():
        assert "==" in words[0], package
        assert any(word.startswith("--hash=sha256:") for word in words), package
    assert "://" not in (LOCKS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(("lock", "extras"), [("dev.txt", ("dev",)), ("image.txt", ("dicom", "web"))])
def test_the_locks_hold_what_the_project_asks_for(lock, extras):
    found = entries(LOCKS / lock)
    wanted = [line for line in requires("cxr-pipeline") or () if not line.startswith("cxr-pipeline")]
    needed = [line for line in wanted if "extra ==" not in line or any(f'"{extra}"' in line for extra in extras)]
    missing = sorted({plain(NAME.match(line).group()) for line in needed} - set(found))
    assert missing == [], "run `make lock`"


def test_the_locks_agree_with_the_constraints():
    versions = {line.split(" ;")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for name in ("dev.txt", "image.txt"):
        for package, words in entries(LOCKS / name).items():
            for word in words:
                if "==" in word and word[0].isalpha() and "python" not in word and "platform" not in word:
                    assert word in versions, f"{package}: run `make lock`"


def test_what_is_installed_is_what_the_lock_says():
    from importlib.metadata import PackageNotFoundError, version

    found, other = entries(LOCKS / "dev.txt"), []
    for package in ("numpy", "pydicom", "imagecodecs", "onnxruntime", "pillow"):
        try:
            if not any(word.endswith(f"=={version(package)}") for word in found[package]):
                other.append(package)
        except PackageNotFoundError:
            other.append(package)
    assert other == [], f"on Python {sys.version_info[:2]}: make .venv/ready"
