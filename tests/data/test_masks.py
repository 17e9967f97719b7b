"""Masks of every kind give the same lungs; what is none is named."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cxr_pipeline.data import masks
from cxr_pipeline.data.filmmasks import film_mask, mask_faults, size_of_film
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.masks import fault_of, read_mask
from cxr_pipeline.data.outlines import from_runs
from cxr_pipeline.data.radiograph import RadiographError
from tests.data.mask_files import SIZE, counts, heart, lungs, packed, runs, save, write_all


def manifest_of(folder, header, *rows):
    (folder / "m.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return read_manifest(folder / "m.csv")


def film(path, size=SIZE):
    return save(path, np.arange(size[0] * size[1], dtype=np.uint32).reshape(size).astype(np.uint8))


def lungs_of(data, size=SIZE):
    return film_mask(data, data.table.to_dict("records")[0], size)


def test_every_kind_of_file_gives_the_same_lungs(tmp_path):
    right, left = lungs()
    film(tmp_path / "a.png")
    for kind, path in write_all(tmp_path).items():
        got = lungs_of(manifest_of(tmp_path, "image,mask", f"a.png,{path.name}")).astype(bool)
        if "jpeg" in kind:
            assert (got != (right | left)).mean() < 0.01, kind
        else:
            assert (got == (right | left)).all(), kind


def test_an_archive_of_several_arrays_or_too_much_is_no_mask(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", one=np.zeros((40, 40)), two=np.zeros((40, 40)))
    with pytest.raises(RadiographError, match=r"holds one\.npy, two\.npy"):
        read_mask(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", np.zeros((400, 400)))
    monkeypatch.setattr("cxr_pipeline.data.maskfiles._MOST_BYTES", 1000)
    with pytest.raises(RadiographError, match="more bytes than any mask"):
        read_mask(tmp_path / "b.npz")


def test_labels_that_are_taken_are_named_once(tmp_path, caplog):
    right, left = lungs()
    masks.forget_advice()
    path = save(tmp_path / "three.png", (3 * right + 5 * left + 9 * heart()).astype(np.uint8))
    with caplog.at_level(logging.WARNING, "cxr.masks"):
        for _ in range(3):
            read_mask(path)
    assert len(caplog.records) == 1
    assert "3 and 5 read as the lungs, 9 left out" in caplog.text
    assert "--mask-labels" in caplog.text


def test_labels_can_be_named(tmp_path):
    right, left = lungs()
    path = save(tmp_path / "m.png", (1 * right + 2 * left + 3 * heart()).astype(np.uint8))
    assert (read_mask(path, labels=["3"]) == heart()).all()
    assert (read_mask(path, labels=[1]) == right).all()
    with pytest.raises(RadiographError, match="none of the labels 7. It holds 0, 1, 2, 3"):
        read_mask(path, labels=["7"])
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[right] = (0, 0, 255)
    assert (read_mask(save(tmp_path / "c.png", colours), labels=["#ff0000"]) == right).all()
    film(tmp_path / "a.png")
    (tmp_path / "x.csv").write_text("image,mask\na.png,m.png\n")
    data = read_manifest(tmp_path / "x.csv", mask_labels=["1"])
    assert (lungs_of(data) == right).all()
    assert data.content_hash(labels=False) != read_manifest(tmp_path / "x.csv").content_hash(labels=False)


def test_labels_that_are_not_clear_are_asked_for(tmp_path):
    spots = np.zeros(SIZE, np.uint8)
    spots[5:9, 5:40], spots[20:30, 10:30], spots[40:60, 2:8] = 1, 2, 3
    with pytest.raises(RadiographError, match="labels 1, 2, 3, and which of them .* --mask-labels 1,2"):
        read_mask(save(tmp_path / "m.png", spots))


def test_a_film_given_as_a_mask_is_named(tmp_path):
    rng = np.random.default_rng(0)
    soft = cv2.GaussianBlur(rng.integers(0, 256, (96, 96)).astype(np.float32), (0, 0), 4)
    soft = cv2.normalize(soft, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    with pytest.raises(RadiographError, match="no mask: it holds .* grey levels"):
        read_mask(save(tmp_path / "film.png", soft))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"x" * 40, b"{}"])
def test_what_cannot_be_read_costs_one_error(tmp_path, content):
    for name in ("m.png", "m.json", "m.npy"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RadiographError):
            read_mask(tmp_path / name)
    with pytest.raises(RadiographError, match="cannot be read"):
        read_mask(tmp_path / "absent.png")


def test_an_array_of_objects_is_not_loaded(tmp_path):
    np.save(tmp_path / "m.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RadiographError):
        read_mask(tmp_path / "m.npy")


def test_masks_scale_to_their_film_and_no_further(tmp_path):
    right, left = lungs()
    path = save(tmp_path / "m.png", (right | left).astype(np.uint8))
    assert read_mask(path, (128, 120)).shape == (128, 120)
    with pytest.raises(RadiographError, match="the mask is 60x64 pixels and its film 64x60"):
        read_mask(path, (60, 64))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda right, left: right | left, ""),
        (lambda right, left: np.zeros(SIZE, bool), "empty"),
        (lambda right, left: np.ones(SIZE, bool), "full"),
        (lambda right, left: ~(right | left), "inverted"),
        (lambda right, left: right, "one lung"),
        (lambda right, left: left, "one lung"),
    ],
)
def test_masks_to_learn_from_are_judged(make, fault):
    got = fault_of(make(*lungs()).astype(np.uint8))
    assert fault in got if fault else got == ""


def test_the_faults_of_a_manifests_masks(tmp_path):
    right, left = lungs()
    for name, mask in (("ok", right | left), ("empty", right & left), ("one", left), ("inverted", ~(right | left))):
        film(tmp_path / f"{name}.png")
        save(tmp_path / f"{name}_mask.png", mask.astype(np.uint8) * 255)
    film(tmp_path / "turned.png", SIZE[::-1])
    (tmp_path / "turned_mask.png").write_bytes((tmp_path / "ok_mask.png").read_bytes())
    names = ("ok", "empty", "one", "inverted", "turned")
    found = mask_faults(manifest_of(tmp_path, "image,mask", *(f"{name}.png,{name}_mask.png" for name in names)))
    assert sorted(found) == ["empty.png", "inverted.png", "one.png", "turned.png"]
    assert "60x64 pixels and its film 60x64" not in found["turned.png"]
    assert "its film 64x60" in found["turned.png"]


def test_left_and_right_masks_in_two_columns(tmp_path):
    right, left = lungs()
    film(tmp_path / "a.png")
    save(tmp_path / "r.png", right.astype(np.uint8))
    save(tmp_path / "l.png", left.astype(np.uint8) * 255)
    for header, row in (
        ("image,mask_left,mask_right", "a.png,l.png,r.png"),
        ("image,Left Mask,Right Mask", "a.png,l.png,r.png"),
        ("image,mask", "a.png,l.png|r.png"),
    ):
        data = manifest_of(tmp_path, header, row)
        assert len(data.select(has_mask=True)) == 1
        assert (lungs_of(data) == (right | left)).all()


@pytest.mark.parametrize("names", ["mask_l,mask_r", "Left Lung Mask,right_lung_mask"])
def test_a_column_for_each_lung(tmp_path, names):
    right, left = lungs()
    film(tmp_path / "a.png")
    for name, area in (("l", left), ("r", right)):
        save(tmp_path / f"{name}.png", area.astype(np.uint8))
    assert (lungs_of(manifest_of(tmp_path, f"image,{names}", "a.png,l.png,r.png")) == (right | left)).all()


def test_run_lengths_in_columns(tmp_path):
    right, left = lungs()
    film(tmp_path / "a.png")
    both = right | left
    kaggle, rows = runs(both, by_rows=False), runs(both, by_rows=True)
    for header, row in (
        ("image,mask_rle", f"a.png,{kaggle}"),
        ("image,mask_rle", f"a.png,{rows}"),  # told by where the lungs lie
        ("image,mask_rle,rle_order", f"a.png,{rows},rows"),
        ("image,mask_rle,mask_height,mask_width", f"a.png,{kaggle},{SIZE[0]},{SIZE[1]}"),
        (
            "image,Left Lung,Right Lung,Height,Width",
            f"a.png,{runs(left, by_rows=True)},{runs(right, by_rows=True)},64,60",
        ),
    ):
        assert (lungs_of(manifest_of(tmp_path, header, row)) == both).all(), header
    with pytest.raises(RadiographError, match="reach to pixel"):
        lungs_of(manifest_of(tmp_path, "image,mask_rle", "a.png,9000 5"))
    with pytest.raises(RadiographError, match="no pairs"):
        lungs_of(manifest_of(tmp_path, "image,mask_rle", "a.png,1 2 x"))


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))), st.booleans())
def test_run_lengths_go_there_and_back(mask, by_rows):
    assert (from_runs(runs(mask, by_rows=by_rows), mask.shape, "x", by_rows=by_rows) == mask).all()


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_packed_counts_go_there_and_back(mask):
    from cxr_pipeline.data.outlines import _unpacked

    assert _unpacked(packed(counts(mask))) == counts(mask)


def test_a_films_size_by_its_header(tmp_path):
    assert size_of_film(film(tmp_path / "a.png")) == SIZE
    (tmp_path / "b.png").write_bytes(b"nothing")
    assert size_of_film(tmp_path / "b.png") is None
