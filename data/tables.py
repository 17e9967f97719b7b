"""Tables as people have them: CSV with any separator and mark, UTF-16, Excel. One reader, bounded.

What is plainly no table (a JSON, a picture, an archive) is refused by its first bytes, and one without the columns that
are needed by its first row, before the rest is read.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.names import brief

if TYPE_CHECKING:  # a table is read without it
    import pandas as pd

SUFFIXES = frozenset({".csv", ".tsv", ".xlsx", ".xlsm"})
MAX_BYTES = 1 << 30  # tables with run lengths of 200,000 films stay below
MAX_COLUMNS = 1000
_CELL = 1 << 24  # characters of one cell; run lengths of a large mask take a hundred thousand
_HEAD = 1 << 16  # bytes that hold the first row of any table
_TITLE_ROWS = 20  # among which the header is looked for
_SHEET_BYTES = 1 << 29  # of an Excel file, unpacked
# What a file is that starts like this, and what to do with it.
_NO_TABLES = (
    (b"\x89PNG", "a picture. Give films to `pipeline run`, and a table of them here"),
    (b"\xff\xd8\xff", "a picture. Give films to `pipeline run`, and a table of them here"),
    (b"%PDF", "a PDF. Save the table as CSV"),
    (b"\x1f\x8b", "a packed file. Unpack it first"),
    (b"7z\xbc\xaf", "a packed file. Unpack it first"),
    (b"Rar!", "a packed file. Unpack it first"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file. Save it as .xlsx or as CSV UTF-8"),
    (b"PAR1", "a Parquet file. Save the table as CSV"),
    (b"SQLite format", "a database. Save the table as CSV"),
)


# The number of each row as a spreadsheet shows it, and its cells; the header comes first.
Records = Generator[tuple[int, list[str]], None, None]


HeaderTest = Callable[[Sequence[str]], bool]


class TableError(CxrError, ValueError):
    """A file that is no table, or lacks a column; the message is one short sentence without the file's name."""


@dataclass
class Table:
    """A table as text.

    Attributes:
        columns: names of the columns, outer blanks removed, in their order.
        rows: cells by column, outer blanks removed; "" where a cell is missing.
        numbers: the row that a spreadsheet shows each in (the header is row 1).
        faults: rows with more cells than the header.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    numbers: list[int]
    faults: list[str] = field(default_factory=list)


def read_table(path: Path, needed: Sequence[str] = (), likely: Sequence[str] = ()) -> Table:
    """A table, its header matched to `needed` without regard to case.

    The header is the first row, or a later one of the first `_TITLE_ROWS` where only that has the columns asked for: a
    title may stand above. Of an Excel file, the first sheet with such a row counts, or else the first sheet.

    Args:
        path: a CSV (comma, semicolon, tab or bar; UTF-8 or UTF-16) or an Excel file.
        needed: columns that must be there; checked before the body is read.
        likely: names of columns by one of which the header is known, the best first; none of them must be there.

    Raises:
        TableError: there is no such file, it is no table, is too large, or lacks a column.
    """
    tests = _header_tests(needed, likely)
    records = _excel(path, tests) if _is_excel(path) else _text(path, tests)
    try:
        header = [name.strip() for name in next(records, (1, []))[1]]
        columns, places = _header(header, needed)
        return _body(records, columns, places, len(header))
    except csv.Error as error:
        raise TableError(f"it is no table ({brief(error)}). Save it as CSV UTF-8") from None
    except UnicodeDecodeError as error:
        raise TableError(f"it is not UTF-8 text (byte {error.start}). Save the table as CSV UTF-8") from None
    finally:
        records.close()


def row_dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table whose columns have names that are text, as dicts by column."""
    return cast("list[dict[str, Any]]", table.to_dict("records"))


def column_named(wanted: str, columns: Sequence[str]) -> str | None:
    """The column that `wanted` means: of the same name, or of the only one that differs in case, blanks or dashes."""
    if wanted in columns:
        return wanted
    alike = [name for name in columns if _plain(name) == _plain(wanted)]
    return alike[0] if len(alike) == 1 else None


def missing_column(wanted: str, columns: Sequence[str], hint: Sequence[str] = ()) -> str:
    """A sentence on a column that is not there: those that are, and the nearest one."""
    shown = ", ".join(brief(name, 30) for name in columns[:8]) or "none"
    more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
    by_plain = {_plain(name): name for name in columns}
    near = [by_plain[name] for name in get_close_matches(_plain(wanted), list(by_plain), 1, 0.7)]
    near = near or [by_plain[_plain(name)] for name in hint if _plain(name) in by_plain]
    meant = f". Did you mean `{brief(near[0], 30)}`? Rename it to `{wanted}`" if near else ""
    return f"no column `{wanted}`. Columns there: {shown}{more}{meant}"


# What others call the column of films.
IMAGE_NAMES = (
    *("image path", "image file", "file name", "filename", "image index", "image id", "file", "path", "filepath"),
    *("img", "film", "dicom", "image name", "images", "id", "study"),
)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _header_tests(needed: Sequence[str], likely: Sequence[str]) -> Sequence[HeaderTest]:
    """Whether the cells of a row are those of the header: the strictest test first, which all rows get before the next.

    The last knows a header by what others call the column of films; so an error names the columns that are there.
    """
    loose = likely or (IMAGE_NAMES if "image" in needed else ())

    def has_all(cells: Sequence[str]) -> bool:
        return all(column_named(name, cells) for name in (*needed, *likely[:1]))

    def has_any(cells: Sequence[str]) -> bool:
        return sum(map(bool, cells)) > 1 and any(column_named(name, cells) for name in loose)

    tests: list[tuple[object, HeaderTest]] = [(needed or likely, has_all), (loose, has_any)]
    return [test for asked, test in tests if asked]


def _is_excel(path: Path) -> bool:
    if path.suffix.lower() in (".xlsx", ".xlsm") and path.is_file():
        return True
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _header(header: list[str], needed: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names of the columns that have one, and their places."""
    if len(header) > MAX_COLUMNS:
        raise TableError(f"its first row has {len(header)} cells, so it is no table of films. Give a CSV")
    if not any(header):
        raise TableError("it is empty: there is no header")
    columns, places = [], []
    for place, name in enumerate(header):
        if name and name in columns:
            raise TableError(f"the column `{brief(name, 40)}` is there twice. Rename one of them")
        if name:
            columns.append(name)
            places.append(place)
    for name in needed:
        found = column_named(name, columns)
        if found is None:
            raise TableError(missing_column(name, columns, IMAGE_NAMES if name == "image" else ()))
        columns[columns.index(found)] = name
    return columns, places


def _body(records: Records, columns: list[str], places: list[int], width: int) -> Table:
    table = Table(columns, [], [])
    for number, cells in records:
        if not any(cell.strip().strip("\x1a") for cell in cells):  # DOS ends a text with that
            continue
        if any(cell.strip() for cell in cells[width:]):
            table.faults.append(
                f"row {number}: {len(cells)} cells, and the header has {width}. Put cells that hold a separator into "
                "quotes"
            )
        values = [cells[place].strip() if place < len(cells) else "" for place in places]
        table.rows.append(dict(zip(columns, values, strict=True)))
        table.numbers.append(number)
    return table


def _text(path: Path, tests: Sequence[HeaderTest]) -> Records:
    try:
        size = path.stat().st_size if path.is_file() else -1
        if size < 0:
            what = "it is a folder" if path.is_dir() else "it is no file" if path.exists() else "there is no such file"
            raise TableError(f"{what}. Give a CSV with a column `image`, or a folder with one folder per class")
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        encoding = _encoding(head)
        if size > MAX_BYTES:
            raise TableError(f"it has {size >> 20} MB, over the limit of {MAX_BYTES >> 20}. Split the table")
        first = head.decode(encoding, "ignore")
    except OSError as error:
        raise TableError(
            f"it cannot be read ({error.strerror or error}). Check the path and the access rights"
        ) from None
    start, separator = _separator(first, len(head) == _HEAD and size > _HEAD)
    start, separator = _below_titles(first, start, separator, tests)
    return _records(path, encoding, start, separator)


def _below_titles(head: str, start: int, separator: str, tests: Sequence[HeaderTest]) -> tuple[int, str]:
    """How many lines come before the header, where a title stands above it; and what separates its cells."""
    lines = re.split(r"\r\n|\r|\n", head.lstrip("\ufeff"))
    named = any("sep=" in line.lower() for line in lines[:start])  # the separator, by a line for spreadsheets
    for is_header in tests:
        for number, line in enumerate(lines[start : start + _TITLE_ROWS]):
            by = separator if named or not number else _commonest(line)
            try:
                cells = next(csv.reader([line], delimiter=by, skipinitialspace=True), [])
            except csv.Error:
                continue
            if is_header([cell.strip() for cell in cells]):
                return start + number, by
    return start, separator


def _commonest(line: str) -> str:
    return max(",;\t|", key=line.count)


def _records(path: Path, encoding: str, skip: int, separator: str) -> Records:
    csv.field_size_limit(_CELL)
    with open(path, encoding=encoding, newline="") as file:
        for _ in range(skip):
            file.readline()
        yield from enumerate(csv.reader(file, delimiter=separator, skipinitialspace=True), skip + 1)


def _encoding(head: bytes) -> str:
    """The encoding that the first bytes show.

    Raises:
        TableError: they are those of something that is no table.
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for magic, what in _NO_TABLES:
        if head.startswith(magic):
            raise TableError(f"it is {what}")
    if head[128:132] == b"DICM":
        raise TableError("it is a DICOM file. Give films to `pipeline run`, and a table of them here")
    if head.startswith(b"PK\x03\x04"):
        raise TableError("it is a ZIP archive. Unpack it first")
    if b"\0" in head:
        pairs = head[: 2 * (len(head) // 2)]
        if pairs[1::2].count(0) > 0.4 * len(pairs) / 2:
            return "utf-16-le"
        if pairs[::2].count(0) > 0.4 * len(pairs) / 2:
            return "utf-16-be"
        raise TableError("it is no text. Give a CSV with a column `image`")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        raise TableError("it is a JSON, and not a table. Boxes of COCO: pipeline data import table FILE --boxes JSON")
    if text[:1] == b"<":
        raise TableError("it is HTML or XML, and not a table. Save it as CSV UTF-8")
    return "utf-8-sig"


def _separator(head: str, cut: bool) -> tuple[int, str]:
    """How many lines come before the header, and what separates cells.

    Raises:
        TableError: the first line does not end within the head.
    """
    lines = head.lstrip("\ufeff").splitlines()
    if cut and len(lines) < 2:
        raise TableError(f"its first line has over {len(head)} characters, so it is no table of films. Give a CSV")
    skip = 0
    while skip < len(lines) and skip < 20 and not lines[skip].strip():
        skip += 1
    line = lines[skip] if skip < len(lines) else ""
    hint = line.strip().strip('"').lower()
    if hint.startswith("sep=") and len(hint) == 5:
        return skip + 1, hint[4]
    if hint == "sep=":  # a tab, stripped
        return skip + 1, "\t"
    return skip, _commonest(line)


def _excel(path: Path, tests: Sequence[HeaderTest]) -> Records:
    """Rows of the sheet of an Excel file that has the header, from there on, as text."""
    try:
        import openpyxl
    except ImportError:
        raise TableError(
            "it is an Excel file, which the package openpyxl reads (pip install 'cxr-pipeline[excel]'). Install it, or "
            "save the table as CSV UTF-8"
        ) from None
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TableError(f"it has over {MAX_BYTES >> 20} MB. Split the table")
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _SHEET_BYTES:
                raise TableError(f"it unpacks to over {_SHEET_BYTES >> 20} MB. Save the table as CSV UTF-8")
        # By its name openpyxl takes no file that is called .csv.
        file = path if path.suffix.lower() in (".xlsx", ".xlsm") else io.BytesIO(path.read_bytes())
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheet, begin = _sheet(book, tests)
        rows = sheet.iter_rows(min_row=begin, values_only=True)
    except TableError:
        raise
    except OSError as error:
        raise TableError(f"it cannot be read ({error.strerror or brief(error)})") from None
    except Exception as error:  # openpyxl raises whatever it likes on damaged files
        raise TableError(f"the Excel file is damaged ({type(error).__name__}). Save the table as CSV UTF-8") from None
    return _excel_rows(book, rows, begin)


def _sheet(book: Any, tests: Sequence[HeaderTest]) -> tuple[Any, int]:
    """The sheet that holds the table, and the number of the row to begin at."""
    for is_header in tests:
        for sheet in book.worksheets:
            for number, cells in enumerate(sheet.iter_rows(max_row=_TITLE_ROWS, values_only=True), 1):
                if is_header([_cell(cell).strip() for cell in cells]):
                    return sheet, number
    return book.worksheets[0], 1


def _excel_rows(book: Any, rows: Iterator[tuple[Any, ...]], begin: int) -> Records:
    begun = False
    try:
        for number, cells in enumerate(rows, begin):
            texts = [_cell(cell) for cell in cells]
            while texts and not texts[-1]:  # sheets are as wide as their widest formatted row
                texts.pop()
            begun = begun or bool(texts)
            if begun:
                yield number, texts
    except GeneratorExit:
        raise
    except Exception as error:
        raise TableError(f"the Excel file is damaged ({type(error).__name__}). Save the table as CSV UTF-8") from None
    finally:
        book.close()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
