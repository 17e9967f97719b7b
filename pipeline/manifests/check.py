"""What `pipeline data check` says of a manifest: faults, leaking patients, damaged films, near-duplicates."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from cxr_pipeline.data.duplicates import ALIKE, near_duplicates, thumbnails_of
from cxr_pipeline.data.manifest import Manifest, read_manifest
from cxr_pipeline.data.progress import progress_bar
from cxr_pipeline.data.splits import leaking_patients
from cxr_pipeline.models.store import write_text

_SHOWN = 10


@dataclass(frozen=True)
class Alike:
    """Two films that look like one exposure, as rows of the manifest.

    `leak` is "splits" where they lie in different splits, "labels" where one film has two labels, "patients" where two
    patients are named for it, "" where they are one patient's films in one split.
    """

    first: dict[str, str]
    second: dict[str, str]
    correlation: float

    @property
    def leak(self) -> str:
        """What differs between the two that should not, the worst of it."""
        for kind, column in (("splits", "split"), ("labels", "label"), ("patients", "patient")):
            if self.first[column] != self.second[column]:
                return kind
        return ""


@dataclass(frozen=True)
class Findings:
    """All that is wrong with a manifest."""

    manifest: Manifest
    faults: list[str]
    leaking: dict[str, set[str]]
    unreadable: dict[str, str]
    alike: list[Alike]

    @property
    def clean(self) -> bool:
        """Whether a training may be believed: no fault, no film on two sides of a split."""
        return not (self.faults or self.leaking or any(pair.leak == "splits" for pair in self.alike))


def check(data: Path, *, images: bool = True, alike: float = ALIKE) -> Findings:
    """Look a manifest over.

    Args:
        images: whether to read the films, which finds damaged ones and near-duplicates.
        alike: correlation of thumbnails from which two films count as one, see `data.duplicates`.

    Raises:
        ManifestError: the table itself cannot be read.
    """
    faults: list[str] = []
    manifest = read_manifest(data, faults_into=faults)
    rows = manifest.table.to_dict("records")
    unreadable: dict[str, str] = {}
    pairs: list[Alike] = []
    if images:
        paths = [manifest.path(row["image"]) for row in rows]
        with progress_bar("films", len(paths)) as update:
            seen, numbers, wrong = thumbnails_of(paths, progress=update)
        unreadable = {rows[number]["image"]: why for number, why in wrong.items()}
        pairs = [
            Alike(rows[numbers[p.first]], rows[numbers[p.second]], p.correlation) for p in near_duplicates(seen, alike)
        ]
    return Findings(manifest, faults, leaking_patients(manifest), unreadable, pairs)


def as_text(findings: Findings) -> str:
    """The findings for a person, the worst first."""
    table = findings.manifest.table
    lines = [f"{len(table)} films of {table['patient'].nunique()} patients from {table['source'].nunique()} source(s)"]
    for (source, label, split), part in table.groupby(["source", "label", "split"]):
        lines.append(f"  {source:14} {label or 'no label':10} {split or 'no split':10} {len(part)}")
    lines += _part("fault(s)", findings.faults)
    lines += _part(
        "patient(s) in more than one split",
        [f"{patient}: {', '.join(sorted(splits))}" for patient, splits in findings.leaking.items()],
    )
    lines += _part("film(s) that cannot be read", list(findings.unreadable.values()))
    for kind, said in (
        ("splits", "pair(s) of films that look like one, in different splits"),
        ("labels", "pair(s) of films that look like one, with different labels"),
        ("patients", "pair(s) of films that look like one, of different patients"),
        ("", "pair(s) of films that look like one, of the same patient"),
    ):
        lines += _part(
            said,
            [
                f"{pair.correlation:.3f}  {_named(pair.first)}  {_named(pair.second)}"
                for pair in findings.alike
                if pair.leak == kind
            ],
        )
    lines.append(
        "Clean: no film and no patient is on two sides of a split."
        if findings.clean
        else "Not clean: put all films of a patient, and films that are one, into one split."
    )
    return "\n".join(lines)


def write_pairs(findings: Findings, path: Path) -> None:
    """All pairs of films that look alike, as a CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("image", "patient", "source", "label", "split")
    writer.writerow(["correlation", "leak", *(f"{name}_{n}" for n in (1, 2) for name in columns)])
    for pair in findings.alike:
        films = [film[name] for film in (pair.first, pair.second) for name in columns]
        writer.writerow([f"{pair.correlation:.4f}", pair.leak, *films])
    write_text(path, text.getvalue())


def _named(film: dict[str, str]) -> str:
    return f"{film['image']} ({film['label'] or 'no label'}, {film['split'] or 'no split'})"


def _part(what: str, found: list[str]) -> list[str]:
    if not found:
        return []
    more = [f"  and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return ["", f"{len(found)} {what}:", *(f"  {text}" for text in found[:_SHOWN]), *more]
