"""The words of overlays, reports and pages in several languages.

A text is called by its English form, so that code reads as before: ``say("{n} films", n=3)``. Each other language has a
table beside this file, `fr.json` and so on: English form to translation, with the same names in braces. A text that a
table lacks is shown in English. Errors stay English, and so do the reasons and warnings in `results.csv`: they are what
a search finds. Reports and pages say those that begin with a code of `REASONS` in their own language.
"""

from __future__ import annotations

import json
import re
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
# What a film's reason or warning says in short, by the code that it begins with (docs/quality.md). The sentence in
# results.csv says what was measured; measured figures are not translated.
REASONS = {
    "no_lungs": "too little lung was found. Give a film that shows both lungs whole",
    "no_chest": "this does not look like a frontal chest X-ray. Give an upright frontal film",
    "lateral": "a chest from the side. Give the frontal film",
    "turned": "the film is turned. Turn it upright",
    "inverted": "black and white are exchanged. Invert the film",
    "cut_off": "a lung reaches beyond the film. A film with both lungs whole shows more",
    "exposure": "the lungs are too dark or too bright, or show hardly any grey levels. Export the film again",
    "too_small": "the film has too few pixels. Export it larger",
    "child": "the patient is a child, and the weights are for adults",
    "several_films": "the picture shows several films. Give each as a file of its own",
    "colour_map": "colours lie over the film, or in its place. Give the film itself, in grey",
    "mirrored": "left and right may be exchanged. Compare with the side marker",
    "not_a_radiograph": "this is no X-ray film. Give X-ray films",
    "not_a_chest": "another part of the body. Give chest films",
    "multi_frame": "the file holds several pictures. Give a single film",
    "unsure": "films with and without the disease have such scores. Read the film",
    "uncertain": "the score lies where the threshold itself is not sure. Read the film",
    "abnormal, kind unsure": "not normal; the kind is unsure. Read the film",
}
_CODE = re.compile("(" + "|".join(map(re.escape, REASONS)) + "): ")


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

    def reason(self, text: str) -> str:
        """A film's reason or warning: in short in this language where it has a code of `REASONS`, else as it is."""
        found = _CODE.match(text)
        if not self.table or found is None:
            return self(text)
        return f"{found[1]}: {self(REASONS[found[1]])}"

    def reasons(self, joined: str) -> str:
        """The same of several, joined by `; ` as in `results.csv`; each said once."""
        return "; ".join(dict.fromkeys(map(self.reason, joined.split("; "))))


ENGLISH = Texts()
