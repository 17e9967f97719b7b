"""The languages: every text that overlays, reports and pages show has a translation, and every translation a text."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import cxr_pipeline
from cxr_pipeline.run import inputs
from cxr_pipeline.stages.apply import crashed
from cxr_pipeline.stages.base import Record
from cxr_pipeline.texts import FAILURES, LANGUAGES, LEFT_OUT, REASONS, WORDS, LanguageError, Texts, table

ROOT = Path(cxr_pipeline.__file__).parent
SCRIPTS = ("report/templates/report.js", "web/pages/page.js", "reading/pages/reading.js")
TINTED = "the film is tinted: its brightness was judged"  # a warning without a code
SAY = ("say",)  # what an instance of Texts is called in code


def in_python(path):
    """The texts that a module says: the first argument of `say(...)`, where it is a text or a name of one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SAY and node.args:
            for said in ast.walk(node.args[0]):
                if isinstance(said, ast.Constant) and isinstance(said.value, str):
                    yield said.value
                elif isinstance(said, ast.Name) and said.id in named:
                    yield named[said.id]


def shown():
    """All texts, by where they are."""
    out = {word: "WORDS" for word in WORDS} | {text: "REASONS" for text in REASONS.values()} | {TINTED: "data.content"}
    out |= {text: "FAILURES" for text in FAILURES.values()} | {text: "LEFT_OUT" for text in LEFT_OUT.values()}
    for path in [*(ROOT / "report").glob("*.py"), *(ROOT / "results").glob("*.py")]:
        out |= {text: path.name for text in in_python(path)}
    for name in SCRIPTS:
        code = (ROOT / name).read_text(encoding="utf-8")
        out |= {text: name for text in re.findall(r'\bt\(\s*"((?:[^"\\]|\\.)+)"', code)}
    html = (ROOT / "report" / "templates" / "films.html").read_text(encoding="utf-8")
    out |= {text: "films.html" for text in re.findall(r"\{\{(.+?)\}\}", html)}
    for path in (ROOT / "web" / "pages" / "index.html", ROOT / "reading" / "pages" / "reading.html"):
        html = path.read_text(encoding="utf-8")
        out |= {text: path.name for text in re.findall(r"data-t>([^<]+)<", html)}
        out |= {text: path.name for text in re.findall(r'data-t-label aria-label="([^"]+)"', html)}
    from cxr_pipeline.about import NOTICE

    return {text: where for text, where in out.items() if text.strip()} | {NOTICE: "about"}


def test_texts_are_found_at_all():
    found = shown()
    assert len(found) > 120
    assert {"research use only", "Previous film", "Choose films", "Write the labels", "{n} screen positive"} <= set(
        found
    )


@pytest.mark.parametrize("language", [one for one in LANGUAGES if one != "en"])
def test_every_text_has_a_translation_with_the_same_names(language):
    found, translated = shown(), table(language)
    assert sorted(set(found) - set(translated)) == []
    assert sorted(set(translated) - set(found)) == []
    for english, text in translated.items():
        assert text.strip(), english
        names = [sorted(re.findall(r"\{(\w+)\}", one)) for one in (english, text)]
        assert names[0] == names[1], english


def test_a_missing_text_shows_english_and_names_are_filled_in():
    say = Texts("fr")
    assert say("a text that nobody translated: {n}", n=3) == "a text that nobody translated: 3"
    assert say("{n} films", n=3) != "3 films" or say.language == "en"
    assert Texts()("{n} films", n=3) == "3 films"
    with pytest.raises(LanguageError, match="'de'.*en, fr"):
        Texts("de")


def test_reasons_are_said_by_their_code_with_no_figures_of_the_film():
    say = Texts("fr")
    lateral = "lateral: its view is Left lateral by ViewCodeSequence (0054,0220). Give the frontal film, PA or AP"
    assert say.reason(lateral) == f"lateral: {say(REASONS['lateral'])}" != f"lateral: {REASONS['lateral']}"
    assert Texts().reason(lateral) == lateral
    assert say.reason("broken.png: its content is no image") == "broken.png: its content is no image"
    two = f"unsure: with a score of 47.9, films differ. Read the film; {TINTED}; unsure: and once more"
    assert say.reasons(two) == f"unsure: {say(REASONS['unsure'])}; {say(TINTED)}"
    assert say.reasons("") == ""


def test_every_code_that_a_film_may_be_given_has_words():
    from cxr_pipeline.data import content
    from cxr_pipeline.stages.decisions import DOUBTS
    from cxr_pipeline.stages.quality import CODES

    of_readers = set()
    for path in (ROOT.parent / "data" / "formats").glob("*.py"):
        of_readers |= set(re.findall(r'"(\w+)",\s*refused=True', path.read_text(encoding="utf-8")))
    assert of_readers >= {"not_a_radiograph", "not_a_chest", "multi_frame"}
    assert set(REASONS) == set(CODES) | of_readers | {one.rstrip(": ") for one in DOUBTS}
    assert TINTED in Path(content.__file__).read_text(encoding="utf-8")


def failures_in(path):
    """What a module says of a file that cannot be read, as in results.csv; "a 7" stands for what code fills in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RadiographError"):
            continue
        if any(one.arg == "refused" for one in node.keywords):
            continue  # these have a code
        said = node.args[1]
        parts = said.values if isinstance(said, ast.JoinedStr) else [said]
        if not isinstance(said, ast.Attribute):
            yield "film.png: " + "".join(part.value if isinstance(part, ast.Constant) else "a 7" for part in parts)


def test_every_failure_is_said_in_other_languages():
    """A new error of reading needs a pattern in FAILURES."""
    paths = [*(ROOT.parent / "data" / "formats").glob("*.py"), ROOT.parent / "data" / "radiograph.py"]
    found = [text for path in [*paths, ROOT / "run" / "isolation.py"] for text in failures_in(path)]
    assert len(found) > 50
    found += [
        f"a.zip: {inputs.ARCHIVED}",
        "films/x: the folder cannot be listed (Permission denied). Change its access rights",
        "x: this is a device or a pipe. Give a file",
        "x.png: reading it took longer than 120 s. Check the disk, or export it again",
        "pulled/1.dcm: https://pacs.example.org/dicom-web did not give it (HTTP 404)",
        crashed(Record(None, id="x"), "classify", ZeroDivisionError("division by zero")).error,
    ]
    assert [text for text in found if Texts("ru").failure(text) == text] == []
    assert [text for text in found if Texts().failure(text) != text] == []


def test_failures_are_said_in_short():
    say = Texts("fr")
    assert say.failure("x.dcm: the DICOM file is damaged (bad tag). Export it again") == say(
        "the file is damaged or cut off. Export or copy it again"
    )
    assert say.failure("lateral: its view is LL") == f"lateral: {say(REASONS['lateral'])}"
    assert say.failure("classify: ValueError: x") == say("something unforeseen happened. The file run.log says more")
    assert say.failure("what nobody wrote before") == "what nobody wrote before"


def test_every_reason_to_leave_a_file_out_has_words():
    assert set(LEFT_OUT) == set(inputs.REASONS)


def test_the_command_offers_the_languages_that_there_are():
    from cxr_pipeline.cli.main import cli

    (option,) = [one for one in cli.commands["run"].params if one.name == "language"]
    assert tuple(option.type.choices) == tuple(LANGUAGES)
