"""The inputs of a run: files, folders and manifests become one list, each film with an id of its own."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.formats import labels, looks_like_image, suffixes
from cxr_pipeline.data.names import brief
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
class LeftOut:
    """A file, or a folder of which nothing is read, that lies in a folder given and is no input; `reason` as a word."""

    file: str
    reason: str


# What `left_out.csv` says of a file, and a sentence for a person; what is not worth one has "".
REASONS = {
    "no_image": "their first bytes are those of no format that is read",
    "archive": "they are archives: unpack them and give the folder, such as unzip FILE -d FOLDER",
    "link": "they are links to nothing or to themselves",
    "index": "",  # DICOMDIR, thumbs.db
    "hidden": "",  # the name begins with a dot, or ends with ~
    "results": "",  # the results of an earlier run
}


@dataclass(frozen=True)
class Input:
    """A file to read.

    Attributes:
        path: where it lies, as given, or joined to the folder or manifest that was given.
        key: names the file in the journal; see `results.journal.key_of`.
        names: what its id can be made of, the shortest first.
        problem: why it cannot be read, where that is known already (a folder without permission).
        note: what goes into the film's warnings, such as that another input is the same file.
    """

    path: str
    key: str
    names: tuple[str, ...]
    problem: str = ""
    note: str = ""

    def shard(self, count: int) -> int:
        """Which of `count` shards the file belongs to, from 1: by its path below what was given, on every machine."""
        return 1 + int(_hash(self.names[-1])[:16], 16) % count


def find_inputs(
    given: Sequence[str | Path], *, out: Path | None = None, left_out: list[LeftOut] | None = None
) -> list[Input]:
    """All films of what a person gave, in its order; folders recursively and sorted. A file given twice counts once.

    A file that is named is always taken. In folders only files that look like images are, without hidden ones, results
    folders of earlier runs, and `out`. A manifest (a CSV with a column `image`, or a folder with `manifest.csv`) gives
    the films that it lists, whether they exist or not.

    Args:
        out: the results folder of the run.
        left_out: takes what lies in folders and is no input, with the reason; see `REASONS`.

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
            new = iter([_input(path, path.parent, ARCHIVED if _is_archive(path) else "")])
        else:
            raise InputError(f"there is no {str(item)!r}. Give files, folders or a manifest")
        for one in new:
            found.setdefault(one.key, one)
    if not found:
        raise InputError(
            f"no films in {', '.join(map(str, given))}. Looked for {labels()} files "
            f"({' '.join(sorted(suffixes()))}, or of any other name by content), in folders below too"
            + "".join(f". {sentence}" for sentence in left_out_in_words(left_out))
        )
    return list(found.values())


ARCHIVED = "this is an archive. Unpack it and give the folder, such as unzip FILE -d FOLDER"
_NO_ARCHIVES = (".nii.gz", ".dcm.gz", ".docx", ".npz", ".odp", ".ods", ".odt", ".pptx", ".xlsm", ".xlsx")
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


def left_out_in_words(files: Sequence[LeftOut]) -> list[str]:
    """A sentence for each reason that a person should know: how many files, and which is the first."""
    sentences = []
    for reason, why in REASONS.items():
        some = [one.file for one in files if one.reason == reason]
        if some and why:
            sentences.append(f"Left out, as {why}: {len(some)} file(s), such as {brief(some[0], 200)}")
    return sentences


def _is_archive(path: Path) -> bool:
    """Whether a file is an archive that may hold films; not a packed file such as `.nii.gz`, nor an office document."""
    if path.name.lower().endswith(_NO_ARCHIVES):
        return False
    if path.name.lower().endswith(".tar"):
        return True
    try:
        with open(path, "rb", buffering=0) as file:
            return path.is_file() and file.read(8).startswith(_ARCHIVES)
    except OSError:
        return False


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_results(folder: Path) -> bool:
    return (folder / "run.json").is_file() and (folder / "journal.jsonl").is_file()


def _input(path: Path, root: Path, problem: str = "") -> Input:
    """An input with its names: the stem, then with the folders up to `root`, then with the folders above that."""
    stem = path.name[: -len(path.suffix)] if path.suffix.lower() in suffixes() else path.name
    try:
        below = list(path.relative_to(root).parts[:-1])
    except ValueError:
        below = []
    above = [part for part in Path(os.path.abspath(root)).parts[-1:] if part != os.sep]
    names = (stem, "_".join([*below, stem]), "_".join([*above, *below, stem]))
    return Input(str(path), key_of(path), names, problem)


def _walked(folder: Path, out: Path | None, left_out: list[LeftOut]) -> Iterator[Input]:
    """The films in a folder: its files sorted, then its folders sorted. Links are followed, circles are not."""
    seen = {os.path.realpath(out)} if out is not None else set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        if _is_results(here):
            left_out.append(LeftOut(str(here), "results"))
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            yield _input(here, folder, f"the folder cannot be listed ({error.strerror}). Change its access rights")
            continue
        folders = []
        for entry in entries:
            path = here / entry.name
            reason = _reason(entry, path)
            if reason == "folder":
                folders.append(path)
            elif reason:
                left_out.append(LeftOut(str(path), reason))
            else:
                yield _input(path, folder)
        waiting += reversed(folders)


def _reason(entry: os.DirEntry[str], path: Path) -> str:
    """Why an entry of a folder is no film; "" where it may be one, "folder" where it is to be walked."""
    if entry.name.startswith(".") or entry.name.endswith("~"):
        return "hidden"
    if entry.name.lower() in _NOT_FILMS:
        return "index"
    try:
        if entry.is_dir():
            return "folder"
        gone = entry.is_symlink() and not os.path.exists(path)
    except OSError:  # a link to itself
        gone = True
    if gone:
        return "" if path.suffix.lower() in suffixes() else "link"  # a film that is gone has a row that says so
    if looks_like_image(path):
        return ""
    return "archive" if entry.is_file() and _is_archive(path) else "no_image"


def marked_equal(inputs: Sequence[Input]) -> list[Input]:
    """The inputs, those that are byte for byte the same file as an earlier one with a note that names it.

    Only files of one size are looked into, and only those are read whole whose beginning and middle agree.
    """
    groups: dict[object, list[int]] = {}
    with ThreadPoolExecutor(_LOOKERS) as pool:
        for step in (_size, _sample, _whole):
            numbers = range(len(inputs)) if step is _size else [n for same in groups.values() for n in same]
            parts = [numbers[first : first + _PART] for first in range(0, len(numbers), _PART)]
            found: dict[object, list[int]] = {}
            for part, answers in zip(parts, pool.map(partial(_looked, step, inputs), parts), strict=True):
                for number, answer in zip(part, answers, strict=True):
                    if answer is not None:
                        found.setdefault(answer, []).append(number)
            groups = {answer: same for answer, same in found.items() if len(same) > 1}
    marked = list(inputs)
    for same in groups.values():
        for number in same[1:]:
            note = f"same file as {brief(inputs[same[0]].path, 300)}"
            marked[number] = replace(inputs[number], note=note)
    return marked


_LOOKERS = 8  # threads that look at files: enough for a network drive
_PART = 256  # files that a thread looks at before it is asked again, which takes longer than to look at one


def _looked(step: Callable[[str], object], inputs: Sequence[Input], part: Sequence[int]) -> list[object]:
    return [step(inputs[number].path) for number in part]


def _size(path: str) -> object:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) and found.st_size else None


def _sample(path: str) -> object:
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(file.read(4096))  # what was read itself would be 8 KB in memory for each film
            file.seek(size // 2)
            digest.update(file.read(4096))
            return size, digest.digest()
    except OSError:
        return None


def _whole(path: str) -> object:
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.digest()


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
