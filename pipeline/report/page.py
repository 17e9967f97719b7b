"""What all reports share: a page that needs no other file and reaches no network, tables of figures, weights' cards."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import IO, Any

from cxr_pipeline.about import NOTICE, PROGRAM
from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import mode_like, whole_file
from cxr_pipeline.texts import ENGLISH, Texts

TEMPLATES = Path(__file__).parent / "templates"


class Markup(str):
    """HTML made here, which a table takes as it is."""

    __slots__ = ()


class ReportError(CxrError, ValueError):
    """A folder that no report can be made of; says what was looked for."""


@contextmanager
def page(
    path: Path, title: str, script: str = "", *, linked: bool = False, say: Texts = ENGLISH
) -> Iterator[IO[bytes]]:
    """A page to write the content of, piece by piece; it is at `path` when the block ends, whole or not at all.

    Its Content-Security-Policy allows the one style sheet and script by their hashes, pictures within the page, and
    nothing else: no network, and no script that came in with a file name.

    Args:
        title: as text.
        script: file in the templates' folder.
        linked: pictures beside the page are allowed too.
        say: texts of the language.
    """
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8").replace("NOTICE", say(NOTICE).replace('"', "'"))
    code = (TEMPLATES / script).read_text(encoding="utf-8") if script else ""
    pictures = "data: 'self' file:" if linked else "data:"
    policy = [
        "default-src 'none'",
        f"img-src {pictures}",
        f"style-src {_hash(style)}",
        f"script-src {_hash(code) if code else _NONE}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    text = Template((TEMPLATES / "page.html").read_text(encoding="utf-8")).substitute(
        policy="; ".join(policy),
        program=PROGRAM,
        language=say.language,
        skip=escape(say("Skip to the content")),
        title=escape(title),
        style=style,
        notice=escape(say(NOTICE)),
        content="\0",
        script=code,
    )
    before, _, after = text.partition("\0")
    if not code:
        after = after.replace("<script></script>\n", "")
    with whole_file(path, mode=mode_like(path.with_name("run.json"))) as file:
        file.write(before.encode())
        yield file
        file.write(after.encode())


_NONE = "'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def escape(value: Any) -> str:
    """A value as text of the page or of an attribute in double quotes."""
    return html.escape(str(value), quote=True).encode("utf-8", "backslashreplace").decode()


def template(name: str, say: Texts = ENGLISH) -> str:
    """A file of the templates' folder, its texts in double braces in the language of `say`."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    return re.sub(r"\{\{(.+?)\}\}", lambda found: escape(say(found[1])), text)


def data_block(name: str, value: Any) -> str:
    """A value as JSON in the page, for the script to read; nothing in it can end the block."""
    return f'<script type="application/json" id="{name}">{as_json(value)}</script>\n'


def as_json(value: Any) -> str:
    """JSON in ASCII without `<`, which could end a script block or open a comment."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, *, kind: str = "") -> str:
    """A table of text (or `Markup`); the first cell of a row names it. `kind` is a class of the style sheet."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{cell if isinstance(cell, Markup) else escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{kind}">'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def folded(summary: str, content: str) -> str:
    """Content that opens when its summary is chosen."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}</details>\n"


def is_figure(value: Any) -> bool:
    """Whether a value is a figure with its interval, as in metrics.json and on cards."""
    return isinstance(value, dict) and "ci95" in value


def number(value: Any, digits: int = 3) -> str:
    """A number for reading; "none" for null."""
    return "none" if value is None else f"{value:.{digits}f}"


def figure(value: dict[str, Any]) -> str:
    """A figure as text: value, 95 % interval, number of films."""
    interval = value.get("ci95") or [None, None]
    bounds = "" if None in interval else f" ({number(interval[0])} to {number(interval[1])})"
    films = f", n {value['n']}" if "n" in value else ""
    return "none" if value.get("value") is None else f"{number(value['value'])}{bounds}{films}"


def figures_table(splits: dict[str, Any], caption: str) -> str:
    """Figures by name, a column for each of `splits`; empty where there are none."""
    names = list(dict.fromkeys(name for node in splits.values() for name, one in node.items() if is_figure(one)))
    if not names:
        return ""
    rows = [
        [name, *(figure(node[name]) if is_figure(node.get(name)) else "" for node in splits.values())] for name in names
    ]
    return table(["figure (95 % interval)", *splits], rows, caption, kind="figures")


def figures_by_source(splits: dict[str, Any]) -> str:
    """For each split with more than one source, its figures by source, folded."""
    out = ""
    for split, node in splits.items():
        sources = node.get("by_source") or {}
        if len(sources) > 1:
            content = figures_table(sources, f"{split}, by source")
            out += folded(f"Figures of the {split} films by source", content) if content else ""
    return out


def as_text(value: Any) -> str:
    """A setting or decision for reading."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {as_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(as_text, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def films_said(training: dict[str, Any]) -> str:
    """The films that a card says a stage was trained on."""
    parts = [
        f"{split} {part['n']} ({as_text(part.get('by_source', {}))})"
        for split, part in (training.get("films") or {}).items()
    ]
    if parts:
        return "; ".join(parts)
    return str(training.get("fitted") or "not said")


def card_section(stage: str, card: dict[str, Any], decisions: dict[str, Any]) -> str:
    """A stage's card: what it was trained on, what it decides, how good it was measured to be, its terms."""
    facts = [
        ["classes", as_text(decisions.get("classes")) if "classes" in decisions else "none: it finds lungs"],
        ["decisions", "; ".join(f"{key}: {as_text(value)}" for key, value in decisions.items() if key != "classes")],
        ["trained on films", films_said(card.get("training") or {})],
        ["licence", card.get("licence") or "not said"],
    ]
    splits = card.get("figures") or {}
    measured = figures_table(splits, f"{stage}: measured figures") or "<p>The card holds no measured figures.</p>\n"
    title = f"<h3>Card of {escape(stage)}</h3>\n"
    return (
        title + table(["what", "value"], facts, f"{stage}: card", kind="facts") + measured + figures_by_source(splits)
    )
