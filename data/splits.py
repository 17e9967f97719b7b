"""Splits by patient: no person's films on both sides, ever."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from cxr_pipeline.data.manifest import Manifest


def split_by_patient(manifest: Manifest, *, val: float = 0.15, test: float = 0.15, seed: int = 1) -> Manifest:
    """The manifest with a fresh `split` column: train, val and test.

    Patients are dealt out within each group of source and label (a patient's commonest), in an order that depends on
    the seed and the patient's name alone: the result does not depend on the order of the rows.

    Args:
        val, test: share of the patients, each above 0, together under 1.
        seed: another seed deals otherwise.

    Raises:
        ValueError: shares that leave nothing to train on.
    """
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise ValueError(f"val and test must lie above 0 and together below 1. Received: val={val}, test={test}")
    where: dict[str, str] = {}
    rows = ((row["patient"], row["source"], row["label"]) for row in manifest.rows())
    for patients in patients_by_kind(rows, seed):
        n_test, n_val = round(test * len(patients)), round(val * len(patients))
        for position, patient in enumerate(patients):
            where[patient] = "test" if position < n_test else "val" if position < n_test + n_val else "train"
    return replace(manifest, table=manifest.table.assign(split=manifest.table["patient"].map(where)))


def patients_by_kind(films: Iterable[tuple[str, str, str]], seed: int) -> list[list[str]]:
    """Patients grouped by source and label (their films' commonest), each group in the order in which it is dealt out.

    Args:
        films: (patient, source, label) of each.
        seed: another seed orders otherwise.
    """
    kinds: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for patient, source, label in films:
        kinds[patient][(source, label)] += 1
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for patient, counts in kinds.items():
        groups[max(counts, key=lambda kind: (counts[kind], kind))].append(patient)
    for patients in groups.values():
        patients.sort(key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    return list(groups.values())


def leaking_patients(manifest: Manifest) -> dict[str, set[str]]:
    """Patients with films in more than one split, and the splits they are in."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in manifest.rows():
        if row["split"]:
            splits[row["patient"]].add(row["split"])
    return {patient: found for patient, found in sorted(splits.items()) if len(found) > 1}
