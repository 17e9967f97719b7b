"""What `pipeline data check` says of a manifest: faults, leaking patients, damaged films, near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxr_pipeline.data.duplicates import ALIKE, near_duplicates, thumbnails_of
from cxr_pipeline.data.files import csv_text, write_text
from cxr_pipeline.data.filmmasks import box_faults, mask_faults
from cxr_pipeline.data.manifest import Manifest, read_manifest
from cxr_pipeline.data.names import printable
from cxr_pipeline.data.progress import progress_bar
from cxr_pipeline.data.splits import leaking_patients

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
    masks: dict[str, str] = field(default_factory=dict)
    boxes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether a training may be believed: no fault, no film on two sides of a split."""
        wrong = self.faults or self.leaking or self.masks or self.boxes
        return not (wrong or any(pair.leak == "splits" for pair in self.alike))


def check(
    data: Path, *, images: bool = True, alike: float = ALIKE, mask_labels: Sequence[str] | None = None
) -> Findings:
    """Look a manifest over.

    Args:
        images: whether to read films and masks, which finds damaged ones and near-duplicates.
        alike: correlation of thumbnails from which two films count as one, see `data.duplicates`.
        mask_labels: values of the masks that count as lung; by default the obvious ones.

    Raises:
        ManifestError: the table itself cannot be read.
    """
    faults: list[str] = []
    manifest = read_manifest(data, faults_into=faults, mask_labels=mask_labels)
    rows = manifest.rows()
    unreadable: dict[str, str] = {}
    pairs: list[Alike] = []
    masks: dict[str, str] = {}
    if images:
        with progress_bar("masks", int((manifest.table["mask"] != "").sum())) as update:
            masks = mask_faults(manifest, progress=update)
        paths = [manifest.path(row["image"]) for row in rows]
        with progress_bar("films", len(paths)) as update:
            seen, numbers, wrong = thumbnails_of(paths, progress=update)
        unreadable = {rows[number]["image"]: why for number, why in wrong.items()}
        pairs = [
            Alike(rows[numbers[p.first]], rows[numbers[p.second]], p.correlation) for p in near_duplicates(seen, alike)
        ]
    boxes = box_faults(manifest) if images else []
    return Findings(manifest, faults, leaking_patients(manifest), unreadable, pairs, masks, boxes)


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
    lines += _part(
        "mask(s) that cannot be learned from", [f"{image}: {fault}" for image, fault in findings.masks.items()]
    )
    lines += _part("box(es) outside their films", findings.boxes)
    for kind, what in (
        ("splits", "pair(s) of films that look like one, in different splits"),
        ("labels", "pair(s) of films that look like one, with different labels"),
        ("patients", "pair(s) of films that look like one, of different patients"),
        ("", "pair(s) of films that look like one, of the same patient"),
    ):
        lines += _part(
            what,
            [
                f"{pair.correlation:.3f}  {_named(pair.first)}  {_named(pair.second)}"
                for pair in findings.alike
                if pair.leak == kind
            ],
        )
    lines.append(_verdict(findings))
    return printable("\n".join(lines))


def _verdict(findings: Findings) -> str:
    if findings.clean:
        return "Clean: no film and no patient is on two sides of a split."
    todo = []
    if findings.leaking or any(pair.leak == "splits" for pair in findings.alike):
        todo.append("put all films of a patient, and films that are one, into one split")
    if findings.faults or findings.masks or findings.boxes:
        todo.append("mend the rows, masks and boxes above")
    return f"Not clean: {'; '.join(todo)}."


def write_pairs(findings: Findings, path: Path) -> None:
    """All pairs of films that look alike, as a CSV."""
    names = ("image", "patient", "source", "label", "split")
    columns = ["correlation", "leak", *(f"{name}_{n}" for n in (1, 2) for name in names)]
    rows = []
    for pair in findings.alike:
        films = [film[name] for film in (pair.first, pair.second) for name in names]
        rows.append(dict(zip(columns, [f"{pair.correlation:.4f}", pair.leak, *films], strict=True)))
    write_text(path, csv_text(columns, rows))


def _named(film: dict[str, str]) -> str:
    return f"{film['image']} ({film['label'] or 'no label'}, {film['split'] or 'no split'})"


def _part(what: str, found: list[str]) -> list[str]:
    if not found:
        return []
    more = [f"  and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return ["", f"{len(found)} {what}:", *(f"  {text}" for text in found[:_SHOWN]), *more]
