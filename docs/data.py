"""Writes the table of public data sets into docs/data.md, as the registry has them: `python docs/data.py`."""

from __future__ import annotations

from pathlib import Path

from cxr_pipeline.data.layouts import table_of_layouts

PAGE = Path(__file__).with_name("data.md")
BEGIN, END = "<!-- begin of the data sets, made by docs/data.py -->", "<!-- end of the data sets -->"


def filled(page: str) -> str:
    """The page with the table as the registry has it."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{table_of_layouts()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
