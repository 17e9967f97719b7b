"""The words of overlays, reports and pages in several languages.

A text is called by its English form, so that code reads as before: ``say("{n} films", n=3)``. Each other language has a
table beside this file, `fr.json` and so on: English form to translation, with the same names in braces. A text that a
table lacks is shown in English. Errors stay English, and so do the reasons and warnings in `results.csv`: they are what
a search finds. Reports and pages say those that begin with a code of `REASONS` in their own language, and failures,
which have no code, by what their sentence says.
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
_DAMAGED = "the file is damaged or cut off. Export or copy it again"
_LARGE = "the file takes more room than a film may. Scale the film down"
_NO_FILM = "the file is no picture that is read. Give the film as PNG, JPEG, TIFF or DICOM"
# What a failed film's error says in short, by a pattern that its sentence has; the first that is found counts. Pages
# search with them too, so they are of the kind that JavaScript and Python share.
FAILURES = {
    r"the whole run was killed": "the whole run was killed while the file was read. Export it again, smaller",
    r"took longer than": "reading the file took too long. Check the disk, or export it again",
    r"there is no such file": "there is no such file. Check the path",
    r"the folder cannot be listed": "no permission to read the folder. Change its access rights",
    r"this is an? .*archive": "this is an archive. Unpack it and give the folder",
    r"this is a folder": "this is a folder. Give its files, or the folder as input",
    r"no permission to read": "no permission to read the file. Change its access rights",
    r"it cannot be opened": "the file cannot be opened. Check the disk or the path",
    r"this is a device or a pipe": "this is a device or a pipe. Give a file",
    r"the file is empty": "the file is empty. Export or copy it again",
    r"did not give it \(HTTP|gave no DICOM object|gave another object": "the PACS did not give the film. Ask it again",
    r"which needs .*Install it": "this kind of file needs a further package. Save the film as PNG",
    r"is no image that can be read|this is an? ": _NO_FILM,
    r"over the limit|more memory than|unfolds? to more than|made of more than": _LARGE,
    r"pixels are too few": REASONS["too_small"],
    r"compressed in a way that is not read": "the pixels are compressed in a way that is not read. Export the film "
    "uncompressed",
    r"holds no pixels": "the DICOM file holds no pixels. Give the image itself",
    r"infinite or not a number|its grey levels are": "some grey levels are no usable numbers. Export the film again",
    r"every pixel has the same grey level": "every pixel has the same grey level. Export the film again",
    r"transparent everywhere": "the film is transparent everywhere. Save it without transparency",
    r"channels; a film has|SamplesPerPixel|palette|its samples are|its elements are": "the pixels are no plain grey or "
    "colour. Save the film as grey",
    r"damaged|cut off|checksum|cannot be decoded|header (?:says|lacks)|no frame header|no size in its header|"
    r"have no header|fewer bytes than": _DAMAGED,
    r"^\w+: \w+: ": "something unforeseen happened. The file run.log says more",
}
# Why files of a folder were left out, by the reason in `left_out.csv`.
LEFT_OUT = {
    "no_image": "no image: their first bytes are those of no format that is read",
    "archive": "archives, which are not unpacked",
    "link": "links to nothing, or to themselves",
    "index": "indices, such as DICOMDIR and Thumbs.db",
    "hidden": "hidden files, whose name begins with a dot or ends with ~",
    "results": "results of an earlier run",
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

    def failure(self, error: str) -> str:
        """Why a film was refused or failed, in short in this language: by its code, or else by a word of `FAILURES`."""
        said = self.reason(error)
        if not self.table or said != error:
            return said
        return next((self(text) for pattern, text in FAILURES.items() if re.search(pattern, error)), error)

    def reasons(self, joined: str) -> str:
        """The same of several, joined by `; ` as in `results.csv`; each said once."""
        return "; ".join(dict.fromkeys(map(self.reason, joined.split("; "))))


ENGLISH = Texts()
