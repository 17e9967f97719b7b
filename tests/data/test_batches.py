"""Batches depend on seed, epoch and batch alone."""

from __future__ import annotations

import os

import numpy as np
import pytest

from cxr_pipeline.data.augment import classify_augmentation
from cxr_pipeline.data.batches import Batches
from cxr_pipeline.data.cache import kept_arrays


def make(n=10, **more):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (n, 32, 32)).astype(np.uint8)
    images[:, 0, 0] = np.arange(n)
    settings = {"targets": np.eye(n, dtype=np.float32), "batch_size": 4, "seed": 1} | more
    masks = (images > 99).astype(np.uint8)
    return Batches(images, masks, settings.pop("targets"), lambda i, m: i[..., None] / np.float32(255), **settings)


def films_of(batches):
    return [batches[number][1].argmax(1).tolist() for number in range(len(batches))]


def test_without_shuffle_every_film_comes_once_in_order():
    assert films_of(make()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_shuffled_epochs_differ_and_repeat():
    one, two = make(shuffle=True), make(shuffle=True)
    first = films_of(one)
    assert first == films_of(two)
    seen = [film for batch in first for film in batch]
    assert len(set(seen)) == len(seen) == 8  # the last, smaller batch is dropped
    one.on_epoch_end()
    assert films_of(one) != first
    two.epoch = 1
    assert films_of(one) == films_of(two)


def test_augmentation_depends_on_the_epoch_not_on_the_order_of_asking():
    one, two = (make(shuffle=True, augmentation=classify_augmentation) for _ in range(2))
    forward = [one[0][0], one[1][0]]
    backward = [two[1][0], two[0][0]][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a, b)
    one.epoch = 1
    assert not np.array_equal(one[0][0], forward[0])


def test_what_goes_beside_the_films_goes_with_the_right_ones():
    batches = make(beside={"number": np.arange(10, dtype=np.float32)[:, None]}, weights=np.arange(10), shuffle=True)
    x, y, weights = batches[0]
    assert x["number"][:, 0].tolist() == y.argmax(1).tolist() == weights.tolist()
    assert np.round(x["crop"][:, 0, 0, 0] * 255).tolist() == weights.tolist()


def test_without_targets_the_mask_is_learned():
    x, y = make(targets=None)[0]
    assert y.shape == (4, 32, 32, 1)
    assert np.array_equal(y > 0, np.round(x * 255) > 99)


@pytest.mark.parametrize(("n", "sizes"), [(10, [4, 4, 2]), (9, [4, 4, 2]), (3, [2, 2]), (1, [2])])
def test_devices_share_every_batch_evenly(n, sizes):
    for shuffle in (False, True):
        batches = make(n, batch_size=5, replicas=2, shuffle=shuffle)
        films = films_of(batches)
        assert [len(batch) for batch in films] == (sizes if not shuffle else sizes[: max(1, n // batches.batch_size)])
        assert shuffle or {film for batch in films for film in batch} == set(range(n))


def test_no_films_is_named():
    with pytest.raises(ValueError, match="at least one film"):
        make(n=0, targets=np.zeros((0, 2), np.float32))


class TestKeptArrays:
    def keep(self, folder, key="a", fail_at=None):
        self.read = 0

        def rows():
            for number in (0, 2, 3):
                if number == fail_at:
                    raise KeyboardInterrupt
                self.read += 1
                yield number, {"image": np.full((4, 4), number, np.uint8)}

        return kept_arrays(folder, key, 5, {"image": (4, 4)}, rows)

    def test_films_left_out_leave_no_gap(self, tmp_path):
        arrays, numbers = self.keep(tmp_path)
        assert numbers.tolist() == [0, 2, 3]
        assert arrays["image"][:, 0, 0].tolist() == [0, 2, 3]

    def test_kept_ones_are_not_read_again_and_another_key_is(self, tmp_path):
        self.keep(tmp_path)
        arrays, _ = self.keep(tmp_path)
        assert self.read == 0
        assert arrays["image"][:, 0, 0].tolist() == [0, 2, 3]
        self.keep(tmp_path, key="b")
        assert self.read == 3

    def test_cut_off_it_starts_again(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            self.keep(tmp_path, fail_at=3)
        arrays, numbers = self.keep(tmp_path)
        assert (self.read, len(numbers)) == (3, 3)
        assert arrays["image"][2, 0, 0] == 3

    def test_it_is_for_its_owner_and_nothing_else_is_left(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            self.keep(tmp_path, fail_at=3)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / ".new.0123abcd.part").touch()  # another training's, at work
        (tmp_path / ".old.0123abcd.part").touch()  # a killed one's
        os.utime(tmp_path / ".old.0123abcd.part", (0, 0))
        self.keep(tmp_path)
        (tmp_path / ".new.0123abcd.part").unlink()
        assert {path.suffix for path in tmp_path.iterdir()} == {".npy"}
        assert os.name != "posix" or {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}

    def test_two_trainings_at_once_do_not_write_into_one_file(self, tmp_path):
        inner, begun = [], []

        def rows():
            begun.append(1)
            yield 0, {"image": np.full((4, 4), 7, np.uint8)}
            if len(begun) == 1:  # the second one starts, and ends first
                inner.append(kept_arrays(tmp_path, "a", 2, {"image": (4, 4)}, rows))
            yield 1, {"image": np.full((4, 4), 9, np.uint8)}

        arrays, numbers = kept_arrays(tmp_path, "a", 2, {"image": (4, 4)}, rows)
        for kept in (arrays["image"], inner[0][0]["image"]):
            assert kept[:, 0, 0].tolist() == [7, 9]
        assert numbers.tolist() == [0, 1]
