"""The inputs of a run: files, folders and manifests become one list, each film with an id of its own."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.radiograph import FORMATS, IMAGE_SUFFIXES, looks_like_image
from cxr_pipeline.results.journal import key_of

TABLES = frozenset(
    {".csv", ".tsv", ".xlsx", ".xlsm"}
)  # as data.tables reads them, which is not imported for films alone
_LONGEST_ID = 100  # bytes in UTF-8; file systems allow 255 for a name, of which suffixes and temporary names take some
_NOT_FILMS = frozenset({"dicomdir", "thumbs.db"})
_LEVELS = range(6)  # of names: three without a hash, then with 8, 16 and 64 digits of it
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))}
)  # names that Windows keeps for itself


class InputError(CxrError, ValueError):
    """An input that does not exist or holds no films; says what was looked for."""


@dataclass(frozen=True)
class Input:
    """A file to read.

    Attributes:
        path: where it lies, as given, or joined to the folder or manifest that was given.
        key: names the file in the journal; see `results.journal.key_of`.
        names: what its id can be made of, the shortest first.
        problem: why it cannot be read, where that is known already (a folder without permission).
    """

    path: str
    key: str
    names: tuple[str, ...]
    problem: str = ""

    def shard(self, count: int) -> int:
        """Which of `count` shards the file belongs to, from 1: by its path below what was given, on every machine."""
        return 1 + int(_hash(self.names[-1])[:16], 16) % count


def find_inputs(
    given: Sequence[str | Path], *, out: Path | None = None, left_out: list[str] | None = None
) -> list[Input]:
    """All films of what a person gave, in its order; folders recursively and sorted. A file given twice counts once.

    A file that is named is always taken. In folders only files that look like images are, without hidden ones, results
    folders of earlier runs, and `out`. A manifest (a CSV with a column `image`, or a folder with `manifest.csv`) gives
    the films that it lists, whether they exist or not.

    Args:
        out: the results folder of the run.
        left_out: takes the files in folders that are no image, by name or content.

    Raises:
        InputError: an input does not exist or is `out` itself, a CSV is no manifest, or there are no films at all.
    """
    found: dict[str, Input] = {}
    left_out = [] if left_out is None else left_out
    for item in given:
        path = Path(item)
        if path.is_dir():
            manifest = path / "manifest.csv"
            if manifest.is_file():
                new = _listed(manifest)
            elif out is not None and _same(path, out) and (len(given) == 1 or not _is_results(path)):
                raise InputError(f"{path} is both the input and --out. Give a folder of its own for the results")
            else:
                new = _walked(path, out, left_out)
        elif path.suffix.lower() in TABLES and path.is_file():
            new = _listed(path)
        elif os.path.lexists(path):
            new = iter([_input(path, path.parent)])
        else:
            raise InputError(f"there is no {str(item)!r}. Give files, folders or a manifest")
        for one in new:
            found.setdefault(one.key, one)
    if not found:
        raise InputError(
            f"no films in {', '.join(map(str, given))}. Looked for {FORMATS} files "
            f"({' '.join(sorted(IMAGE_SUFFIXES))}, or of any other name by content), in folders below too"
            + (f". {said_left_out(left_out)}" if left_out else "")
        )
    return list(found.values())


def said_left_out(files: Sequence[str]) -> str:
    """A sentence on files of folders that are not read."""
    return f"Left out, as their first bytes are none of {FORMATS}: {len(files)} file(s), such as {files[0]}"


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_results(folder: Path) -> bool:
    return (folder / "run.json").is_file() and (folder / "journal.jsonl").is_file()


def _input(path: Path, root: Path, problem: str = "") -> Input:
    """An input with its names: the stem, then with the folders up to `root`, then with the folders above that."""
    stem = path.name[: -len(path.suffix)] if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    try:
        below = list(path.relative_to(root).parts[:-1])
    except ValueError:
        below = []
    above = [part for part in Path(os.path.abspath(root)).parts[-1:] if part != os.sep]
    names = (stem, "_".join([*below, stem]), "_".join([*above, *below, stem]))
    return Input(str(path), key_of(path), names, problem)


def _walked(folder: Path, out: Path | None, left_out: list[str]) -> Iterator[Input]:
    """The films in a folder: its files sorted, then its folders sorted. Links are followed, circles are not."""
    seen = {os.path.realpath(out)} if out is not None else set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen or _is_results(here):
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            yield _input(here, folder, f"the folder cannot be listed ({error.strerror}). Change its access rights")
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith("~") or entry.name.lower() in _NOT_FILMS:
                continue
            if entry.is_dir():
                folders.append(here / entry.name)
            elif looks_like_image(here / entry.name):
                yield _input(here / entry.name, folder)
            else:
                left_out.append(str(here / entry.name))
        waiting += reversed(folders)


def _listed(manifest: Path) -> Iterator[Input]:
    """The films of a manifest. Only its column `image` matters here, so faults in the others do not stop a run."""
    from cxr_pipeline.data.names import FileIndex
    from cxr_pipeline.data.tables import TableError, read_table

    try:
        rows = read_table(manifest, ["image"]).rows
    except TableError as error:
        raise InputError(f"{manifest} is no manifest: {error}") from None
    index = FileIndex(manifest.parent)
    for row in rows:
        if row["image"]:
            yield _input(manifest.parent / index.find(row["image"])[0], manifest.parent)


def assign_ids(inputs: Sequence[Input], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """An id for each input's key: unique even where case does not count, and safe as a file name everywhere.

    It is the stem where no other input has it, otherwise the folders and the stem joined, otherwise that with a hash.
    It depends on the inputs alone, not on their order. Inputs in `known` (key -> id, of earlier runs) keep their ids,
    and no other input gets one of these.
    """
    known = known or {}
    ids = _by_names(inputs, taken=(), levels=_LEVELS)
    reserved = {_folded(name) for name in known.values()}
    moved = [one for one in inputs if one.key not in known and _folded(ids[one.key]) in reserved]
    ids |= {key: known[key] for key in ids if key in known}
    if moved:
        aside = {one.key for one in moved}
        taken = reserved | {_folded(name) for key, name in ids.items() if key not in aside}
        # With a hash at once, which no other input has a say in: a killed run must find the same ids again.
        ids |= _by_names(moved, taken, levels=_LEVELS[3:])
    return ids


def _by_names(inputs: Sequence[Input], taken: Iterable[str], levels: Sequence[int]) -> dict[str, str]:
    used, ids, left = set(taken), {}, list(inputs)
    for level in levels:
        candidates = [_candidate(one, level) for one in left]
        counts = Counter(map(_folded, candidates))
        again = []
        for one, candidate in zip(left, candidates, strict=True):
            if counts[_folded(candidate)] == 1 and _folded(candidate) not in used:
                ids[one.key] = candidate
            else:
                again.append(one)
        used |= {_folded(name) for name in ids.values()}
        left = again
        if not left:
            break
    else:
        raise InputError(f"no unique id for {left[0].path}. Rename it")  # two paths of one SHA-256
    return ids


def _candidate(one: Input, level: int) -> str:
    if level < 3:
        return safe_name(one.names[level])
    return safe_name(one.names[1], tail=_hash(one.path)[: (8, 16, 64)[level - 3]])


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def safe_name(name: str, *, tail: str = "") -> str:
    """A name that every file system takes: letters and digits of any script, `-`, `_`, inner dots; up to 100 bytes.

    A longer one is cut and ends in a hash of the whole. `tail` is appended after a `_`.
    """
    text = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    text = re.sub(r"[^\w.-]+", "_", text).strip("._-") or "film"
    if text.partition(".")[0].lower() in _DEVICES:
        text = f"_{text}"
    limit = _LONGEST_ID - (len(tail) + 1 if tail else 0)
    if len(text.encode()) > limit:
        end = _hash(name)[:8]
        text = text.encode()[: limit - 9].decode(errors="ignore").rstrip("._-") + "_" + end
    return f"{text}_{tail}" if tail else text
