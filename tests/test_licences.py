"""Nothing that the product needs may be under a licence that binds it: no GPL, no AGPL."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution

from tests.test_locks import LOCKS, entries

NAME = re.compile(r"^[A-Za-z0-9._-]+")
# Packages that offer another licence beside it, which is the one taken.
CHOICE: frozenset[str] = frozenset()


def needed(root: str) -> set[str]:
    """Every installed distribution that `root` needs, its extras among them."""
    seen, waiting = set(), [root]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        seen.add(name)
        waiting += [NAME.match(line).group() for line in found.requires or ()]
    return seen


def licences(name: str) -> list[str]:
    about = distribution(name).metadata
    classified = [line for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    stated = about.get("License-Expression") or (about.get("License") or "").splitlines()[:1]
    return [*classified, *([stated] if isinstance(stated, str) else stated)]


def binds(licence: str) -> bool:
    """Whether a licence is the GPL or AGPL, and not the LGPL."""
    return bool(re.search(r"(?<!L)A?GPL|General Public", licence)) and "Lesser" not in licence


def locked() -> set[str]:
    """Every package that a lock file names and this system has."""
    names = {name for lock in LOCKS.glob("*.txt") for name in entries(lock)}
    return {name for name in names if is_there(name)}


def is_there(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def test_nothing_that_is_locked_is_gpl():
    packages = locked()
    assert len(packages) > 100
    assert {name: found for name in packages if (found := [text for text in licences(name) if binds(text)])} == {}


def test_no_dependency_is_gpl():
    packages = needed("cxr-pipeline")
    assert {"numpy", "pydicom", "imagecodecs"} <= packages
    bound = {name: found for name in packages - CHOICE if (found := [text for text in licences(name) if binds(text)])}
    assert bound == {}
