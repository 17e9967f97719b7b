"""The words of overlays, reports and pages in several languages.

A text is called by its English form, so that code reads as before: ``say("{n} films", n=3)``. Each other language has a
table beside this file, `fr.json` and so on: English form to translation, with the same names in braces. A text that a
table lacks is shown in English. Reasons, warnings and errors stay English: they are what a search finds.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from cxr_pipeline.configs.errors import CxrError

LANGUAGES = {
    "en": "English",
    "fr": "Français",
    "es": "Español",
    "pt": "Português",
    "hi": "हिन्दी",
    "ru": "Русский",
}
# Words that code looks up by a value, beside those that stand in it as text.
WORDS = (
    *("ok", "refused", "failed", "positive", "unsure", "negative", "right", "left", "upper", "middle", "lower"),
    *("waiting", "running", "TB"),
)


class LanguageError(CxrError, ValueError):
    """A language that there is no table of; says which there are."""


@cache
def table(language: str) -> dict[str, str]:
    """The translations of a language by their English form; empty for English.

    Raises:
        LanguageError: there is no such language.
    """
    if language not in LANGUAGES:
        raise LanguageError(f"there are no texts in the language {language!r}. Choose one of {', '.join(LANGUAGES)}")
    if language == "en":
        return {}
    return json.loads((Path(__file__).parent / f"{language}.json").read_text(encoding="utf-8"))


class Texts:
    """Says texts in one language.

    Args:
        language: one of `LANGUAGES`.

    Raises:
        LanguageError: there is no such language.
    """

    def __init__(self, language: str = "en") -> None:
        self.language, self.table = language, table(language)

    def __call__(self, english: str, **values: object) -> str:
        """The text in this language, English where there is none, with `values` in place of the names in braces."""
        text = self.table.get(english, english)
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text


ENGLISH = Texts()
