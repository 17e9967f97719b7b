"""Splits by patient."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_pipeline.data.manifest import BOX_COLUMNS, COLUMNS, Manifest
from cxr_pipeline.data.splits import leaking_patients, split_by_patient


def manifest(rows):
    table = pd.DataFrame(rows, columns=["image", "patient", "source", "label"]).reindex(
        columns=list(COLUMNS), fill_value=""
    )
    return Manifest(table, Path(), pd.DataFrame(columns=list(BOX_COLUMNS)))


patients = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from("xy"), st.sampled_from(["TB", "NORM"])), min_size=3, max_size=120
)


@given(films=patients, seed=st.integers(0, 5), order=st.randoms())
@settings(max_examples=40, deadline=None)
def test_no_patient_is_ever_in_two_splits_and_order_does_not_matter(films, seed, order):
    rows = [(f"{n}.png", f"p{patient}", source, label) for n, (patient, source, label) in enumerate(films)]
    one = split_by_patient(manifest(rows), seed=seed)
    assert leaking_patients(one) == {}
    assert set(one.table["split"]) <= {"train", "val", "test"}
    order.shuffle(rows)
    other = split_by_patient(manifest(rows), seed=seed)
    assert one.split_hash() == other.split_hash()


def test_shares_hold_within_each_source_and_label():
    rows = [(f"{n}.png", f"p{n}", "xy"[n % 2], ("TB", "NORM")[n // 200]) for n in range(400)]
    table = split_by_patient(manifest(rows), val=0.2, test=0.1).table
    for _, group in table.groupby(["source", "label"]):
        assert (group["split"] == "val").sum() == 20
        assert (group["split"] == "test").sum() == 10


def test_another_seed_deals_otherwise():
    rows = [(f"{n}.png", f"p{n}", "x", "TB") for n in range(60)]
    assert (
        split_by_patient(manifest(rows), seed=1).split_hash() != split_by_patient(manifest(rows), seed=2).split_hash()
    )


def test_shares_that_leave_nothing_are_named():
    with pytest.raises(ValueError, match=r"val=0\.6, test=0\.5"):
        split_by_patient(manifest([("a", "a", "x", "TB")]), val=0.6, test=0.5)


def test_leaks_are_found():
    leaky = manifest([("a.png", "p1", "x", "TB"), ("b.png", "p1", "x", "TB"), ("c.png", "p2", "x", "TB")])
    leaky.table["split"] = ["train", "test", "train"]
    assert leaking_patients(leaky) == {"p1": {"train", "test"}}
