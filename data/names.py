"""Names of files as people write them: shown without harm, and found where tables spell them another way."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

_ENDINGS = ("png", "jpg", "jpeg", "tif", "tiff", "bmp", "dcm", "dicom", "webp", "gif", "jp2", "nii", "nii.gz", "npy")
# Control characters but tab and newline, those that turn the direction of text round, and halves of characters.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with terminal codes and the like spelled out, such as ``\\x1b``: a file's name must not drive a console.

    Tabs and line ends stay.
    """

    def spelled(match: re.Match[str]) -> str:
        number = ord(match[0])
        return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"

    return _HARMFUL.sub(spelled, text)


def brief(text: object, limit: int = 80) -> str:
    """A cell or a name for a message: one line, printable, at most `limit` characters."""
    line = printable(" ".join(str(text)[: 4 * limit].split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


class FileIndex:
    """Finds the files that a table names. Each folder is listed once: one look per file is slow on network drives.

    A name is tried as it stands; then with slashes for back slashes; in another case or Unicode form, its folders too;
    with the ending that it lacks; and, for a path of another computer, by its last parts below the table's folder.

    Args:
        root: the folder that relative names start from.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, dict[str, bool]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}
        self.moved = 0

    def find(self, name: str) -> tuple[str, str]:
        """The name of the file that `name` means, and "" where it was found, else what is wrong.

        The name comes back as given where it stands for a file as it is, or for none.
        """
        spelled = [name]
        if "\\" in name:
            spelled.append(name.replace("\\", "/"))
        try:
            for spelling in spelled:
                found, problem = self._here(spelling)
                if found or problem:
                    return found or spelling, problem
            if (folder := self._spelled_folder(spelled[-1])) is not None:
                found, problem = self._here(folder)
                if found or problem:
                    return found or spelled[-1], problem
            tail = self._tail(spelled[-1])
            if tail:
                self.moved += 1
                return tail, ""
        except ValueError:  # a NUL in the name
            return name, "has a name that no file can have"
        return spelled[-1] if "\\" in name and not Path(name).is_absolute() else name, "does not exist"

    def _here(self, name: str) -> tuple[str, str]:
        path = self._root / name
        folder = str(path.parent)
        entries = self._listing(folder)
        if path.name in entries:
            return (name, "") if not entries[path.name] else ("", "is a folder. Name a file in each row")
        if path.name in ("", ".", "..") or not entries:
            return "", ""
        folded = self._folded[folder]
        key = _folded(path.name)
        matches = folded.get(key) or sorted({n for end in _ENDINGS for n in folded.get(f"{key}.{end}", [])})
        matches = [match for match in matches if not entries[match]]
        if len(matches) == 1:
            return name[: len(name) - len(path.name)] + matches[0], ""
        if matches:
            return "", f"may be any of {', '.join(brief(match, 40) for match in matches[:4])}. Give the whole name"
        return "", ""

    def _spelled_folder(self, name: str) -> str | None:
        """A relative name with its folders in the case that the disk has them; None where one of them is not there."""
        *folders, last = name.split("/")
        if not folders or name.startswith("/") or ".." in folders:
            return None
        here: list[str] = []
        for part in folders:
            at = str(self._root.joinpath(*here))
            entries = self._listing(at)
            alike = [part] if part in entries else self._folded[at].get(_folded(part), [])
            alike = [one for one in alike if entries[one]]
            if part not in ("", ".") and len(alike) != 1:
                return None
            here += alike[:1] if part not in ("", ".") else []
        return "/".join([*here, last])

    def _tail(self, name: str) -> str:
        """The longest end of a path of another computer that is a file below the root; "" where none is."""
        parts = [part for part in re.sub(r"^[A-Za-z]:", "", name).split("/") if part not in ("", ".")]
        foreign = name.startswith("/") or re.match(r"[A-Za-z]:", name) is not None
        if not foreign or ".." in parts:
            return ""
        for start in range(max(1, len(parts) - 8), len(parts)):
            found, _ = self._here("/".join(parts[start:]))
            if found:
                return found
        return ""

    def _listing(self, folder: str) -> dict[str, bool]:
        """Names in a folder, and whether each is a folder; empty where it cannot be listed."""
        if folder not in self._folders:
            entries: dict[str, bool] = {}
            folded: dict[str, list[str]] = {}
            try:
                with os.scandir(folder) as found:
                    for entry in found:
                        entries[entry.name] = _is_dir(entry)
                        folded.setdefault(_folded(entry.name), []).append(entry.name)
            except OSError:
                pass
            self._folders[folder], self._folded[folder] = entries, folded
        return self._folders[folder]


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
