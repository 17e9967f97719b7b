"""Which public data set a folder looks like, and archives that wait to be unpacked: for messages only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cxr_pipeline.data.walk import entries_of

_FOLDERS, _FILES, _DEPTH = 300, 40, 5  # of a folder so many files are looked at: they are named alike
_ARCHIVES = re.compile(r".+\.(zip|tar|tgz|tar\.gz|gz|7z|rar|001)", re.IGNORECASE)
# Names of files and folders that one data set alone has.
_SIGNS = {
    "montgomery": r"MCUCXR_\d+_[01]\..+",
    "shenzhen": r"CHNCXR_\d+_[01]\..+",
    "jsrt": r"JPC[LN]N\d{3}\..+",
    "tbx11k": r"TBX11K_(train|val|trainval)\.(txt|json)",
    "nih": r"Data_Entry_2017.*\.csv|sample_labels\.csv|BBox_List_2017\.csv",
    "chexpert": r"CheXpert-v1\.0.*|patient\d{5}",
    "kermany": r"person\d+_(bacteria|virus)_\d+\..+|NORMAL2-IM-.+",
    "tbdb": r"Tuberculosis\.metadata\.xlsx|Tuberculosis-\d+\.png",
    "covidradiography": r"COVID(-19)?\.metadata\.xlsx|COVID-\d+\.png|COVID-19 \(\d+\)\.png",
    "covidchestxray": r"covid-chestxray-dataset.*",
    "rsna": r"stage_2_(train|test|detailed).*",
    "vindr": r"image_labels_(train|test)\.csv|annotations_(train|test)\.csv",
}


def recognised(folder: Path, names: Iterable[str] | Mapping[str, Any]) -> list[str]:
    """The data sets whose signs lie in a folder, or in those below it; a bounded look."""
    wanted = {name: re.compile(_SIGNS[name], re.IGNORECASE) for name in names if name in _SIGNS}
    found: dict[str, None] = {}
    level, looked = [folder], 0
    for _ in range(_DEPTH):
        below = []
        for here in level:
            looked += 1
            if looked > _FOLDERS:
                return list(found)
            files, folders = entries_of(here)
            for name, sign in wanted.items():
                if any(sign.fullmatch(entry) for entry in [*files[:_FILES], *files[-_FILES:], *folders[:_FILES]]):
                    found[name] = None
            below += [here / folder for folder in folders]
        level = below
    return list(found)


def archives_in(folder: Path) -> list[str]:
    """Names of the archives in a folder, or its own name where it is one."""
    if folder.is_file():
        return [folder.name] if _ARCHIVES.fullmatch(folder.name) else []
    return [name for name in entries_of(folder)[0] if _ARCHIVES.fullmatch(name)]
