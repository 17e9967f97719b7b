"""Files written whole or not at all, tables that are safe to open, and text that is safe to show.

Every file that this program leaves for somebody is written here: under a temporary name in the same folder, then
renamed, so that nobody ever sees half of it, whoever is killed.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cxr_pipeline.configs.errors import CxrError

PART = ".part"  # how a temporary name ends; it starts with a dot
PRIVATE = 0o600  # of files that show or name patients; a stricter umask takes further bits away
_BLOCK = 1 << 20
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")  # what spreadsheets take for a formula
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


class NotRegularError(CxrError, OSError):
    """What should be a file is a folder, a pipe or a device."""


@contextmanager
def whole_file(path: Path, *, durable: bool = False, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file to write that takes the name `path` only when the block ends without an error.

    The temporary name is one that no other process takes, should two write the same file.

    Args:
        path: in a folder that exists.
        durable: also wait until the disk has it, so that not even a power cut takes it back.
        mode: permissions; the umask takes bits away from them.

    Raises:
        OSError: the disk or the folder takes no more; what was at `path` is still there.
    """
    part = part_name(path)
    try:
        with _new(part, mode) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


_BINARY = getattr(os, "O_BINARY", 0)  # Windows


def _new(path: Path, mode: int) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode), "wb")


def part_name(path: Path) -> Path:
    """A temporary name beside `path` that no other process takes; `sweep` finds what is left under it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")


@contextmanager
def whole_files(*paths: Path, mode: int = 0o666) -> Iterator[list[Path]]:
    """Empty files under temporary names, for code that writes by name; they become `paths` when the block ends.

    They are renamed in the order of `paths`, so that where the last one is, all of them are whole.

    Args:
        paths: in folders that exist.
        mode: permissions; the umask takes bits away from them.

    Raises:
        OSError: the disk or a folder takes no more.
    """
    parts = [part_name(path) for path in paths]
    try:
        for part in parts:
            _new(part, mode).close()
        yield parts
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink()


def write_new(path: Path, data: bytes, *, mode: int = PRIVATE) -> bool:
    """Write `data` to `path`, whole and onto the disk, unless something is there: of several writers the first wins.

    Args:
        path: in a folder that exists.

    Returns:
        Whether `data` is what lies there now.

    Raises:
        OSError: the disk or the folder takes no more.
    """
    part = part_name(path)
    try:
        with _new(part, mode) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            if os.path.lexists(path):
                return False
            os.replace(part, path)
        sync_folder(path.parent)
        return True
    finally:
        with suppress(OSError):
            part.unlink()


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the new name too; not every system lets a folder be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, data: bytes, *, durable: bool = False, mode: int = 0o666) -> None:
    """Write `data` to `path`, whole or not at all; makes the folder. See `whole_file`."""
    try:
        with whole_file(path, durable=durable, mode=mode) as file:
            file.write(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, durable=durable, mode=mode) as file:
            file.write(data)


def write_text(path: Path, text: str, *, durable: bool = False, mode: int = 0o666) -> None:
    """Write text as UTF-8, whole or not at all; makes the folder. What is no valid text is spelled out."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable, mode=mode)


def write_json(path: Path, value: Any, *, durable: bool = False, mode: int = 0o666) -> None:
    """Write a value as JSON, whole or not at all; NaN and infinities, which JSON does not have, become null."""
    text = json.dumps(plain_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", durable=durable, mode=mode)


def write_csv(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    durable: bool = False,
    mode: int = 0o666,
) -> None:
    """Write a table, whole or not at all; makes the folder. Cells are those of `csv_line`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=durable, mode=mode) as file:
        file.write(csv_line(columns, dict(zip(columns, columns, strict=True))))
        for row in rows:
            file.write(csv_line(columns, row))


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a header as text, with the cells of `csv_line`."""
    header = csv_line(columns, dict(zip(columns, columns, strict=True)))
    return b"".join([header, *(csv_line(columns, row) for row in rows)]).decode()


def csv_line(columns: Sequence[str], row: Mapping[str, Any]) -> bytes:
    """A row as a line of CSV in UTF-8 that ends in a line feed.

    Args:
        columns: names, in their order.
        row: values by name; missing ones and None are empty. Text that a spreadsheet would take for a formula is
            marked, see `safe_cell`; a cell that holds a carriage return is quoted.
    """
    cells = [safe_cell(row.get(name)) for name in columns]
    text = io.StringIO()
    # The module quotes what holds its line terminator's letters: with "\r\n" there, a lone CR is quoted too.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return (text.getvalue().removesuffix("\r\n") + "\n").encode("utf-8", "backslashreplace")


def safe_cell(value: Any) -> str:
    """A value as text that no spreadsheet runs: `'` goes before text that starts like a formula.

    Numbers stay as they are. Text that already starts with the mark and a formula gets another one, so that
    `plain_cell` always gives back what was written.
    """
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(value)
    return "'" + text if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def plain_cell(text: str) -> str:
    """What `safe_cell` was given, as text."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def csv_rows(table: Iterable[str]) -> Iterator[dict[str, str]]:
    """The rows of a table that `write_csv` wrote, as text by column; cells that are missing are empty.

    Args:
        table: lines, of a file opened with `newline=""`.
    """
    for row in csv.DictReader(table, restkey="", restval=""):
        yield {name: plain_cell(text) for name, text in row.items() if name and isinstance(text, str)}


def plain_json(value: Any) -> Any:
    """The value with null for numbers that JSON does not have: a card may hold NaN for what could not be fitted."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_text(path: str) -> str:
    """A path as valid text: bytes of its name that are none are spelled out."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def sha256_of(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file's bytes, as 64 hex digits.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def open_regular(path: Path, *, follow: bool = True) -> IO[bytes]:
    """A file opened for reading that is neither a pipe nor a device, which could block for ever.

    Args:
        follow: whether `path` may be a link.

    Raises:
        NotRegularError: it is none.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegularError(errno.EINVAL, "this is no regular file, but a folder, a pipe or a device", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """The bytes of a regular file of at most `most` bytes; see `open_regular`.

    Raises:
        NotRegularError: it is none, or longer.
        OSError: it cannot be read.
    """
    with open_regular(path, follow=follow) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise NotRegularError(errno.EFBIG, f"the file has more than {most} bytes", str(path))
        return file.read()


def folder_mode(mode: int) -> int:
    """Permissions of folders for files of `mode`: who may read a file may enter its folder."""
    return mode | (mode & 0o444) >> 2


def mode_like(path: Path, otherwise: int = PRIVATE) -> int:
    """The permissions of a file, for another one beside it; `otherwise` where there is none."""
    try:
        return stat.S_IMODE(path.lstat().st_mode) & 0o666
    except OSError:
        return otherwise


def sweep(folder: Path, idle: float = 0.0) -> None:
    """Remove the temporary files and folders that a killed process left in `folder`.

    Args:
        idle: seconds that nothing was written to them; for folders that several processes write at once.
    """
    with os.scandir(folder) as entries:
        leftovers = [e for e in entries if e.name.startswith(".") and e.name.endswith(PART)]
        for leftover in leftovers:
            with suppress(FileNotFoundError):  # one that another process finished meanwhile
                if time.time() - leftover.stat(follow_symlinks=False).st_mtime < idle:
                    continue
                if leftover.is_dir(follow_symlinks=False):
                    shutil.rmtree(leftover.path)
                else:
                    os.unlink(leftover.path)
