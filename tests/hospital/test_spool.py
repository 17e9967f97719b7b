"""The spool: what came in is there after any kill, and what is done is not."""

from __future__ import annotations

import errno
import os

import pytest

from cxr_pipeline.dicom.spool import Spool, name_of, sync


def taken(spool, most=10):
    return spool.take(most, 0.0)


def test_films_come_out_in_the_order_in_which_they_came(tmp_path):
    spool = Spool(tmp_path)
    for name in ("b", "a", "c"):
        spool.put(name, name.encode())
    assert [one.name for one in taken(spool, 2)] == ["b", "a"]
    assert [one.name for one in taken(spool)] == ["c"]
    assert len(spool) == 3


def test_a_film_waits_again_after_a_kill_until_it_is_settled(tmp_path):
    spool = Spool(tmp_path)
    spool.put("a", b"film")
    (one,) = taken(spool)
    assert one.path.read_bytes() == b"film"
    again = Spool(tmp_path)  # as after a kill
    (same,) = taken(again)
    assert same.path == one.path
    again.settle(same)
    assert len(Spool(tmp_path)) == len(again) == 0
    assert again.holds("a")


def test_a_film_that_comes_again_while_it_is_in_work_stays(tmp_path):
    spool = Spool(tmp_path)
    spool.put("a", b"first")
    (first,) = taken(spool)
    spool.put("a", b"second")
    assert first.path.read_bytes() == b"first"  # what is being judged does not change under the reader
    spool.settle(first)
    (second,) = taken(spool)
    assert second.path.read_bytes() == b"second"
    spool.settle(second)
    assert len(spool) == 0
    assert taken(spool) == []


def test_a_film_taken_twice_before_it_is_settled_is_settled_once(tmp_path):
    spool = Spool(tmp_path)
    spool.put("a", b"film")
    (first,) = taken(spool)
    spool.put("a", b"film")
    (second,) = taken(spool)
    spool.settle(first)
    assert (tmp_path / "new" / "a.dcm").exists()
    spool.settle(second)
    assert not (tmp_path / "new" / "a.dcm").exists()
    assert len(spool) == 0


def test_without_hard_links_films_are_copied(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    spool = Spool(tmp_path, keep=False)
    spool.put("a", b"film")
    (one,) = taken(spool)
    assert one.path.read_bytes() == b"film"
    spool.settle(one)
    assert not spool.holds("a")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    Spool(tmp_path)
    (tmp_path / "new" / ".a.dcm.0011.part").write_bytes(b"half")
    spool = Spool(tmp_path)
    assert len(spool) == 0
    assert list((tmp_path / "new").iterdir()) == []


def test_a_film_given_back_waits_again(tmp_path):
    spool = Spool(tmp_path)
    spool.put("a", b"film")
    (one,) = taken(spool)
    spool.give_back(one)
    assert [again.name for again in taken(spool)] == ["a"]


@pytest.mark.parametrize("uid", ["../../etc/passwd", "", "1.2.", "a" * 70, "1" * 65, "1.2\n"])
def test_names_are_safe_whatever_the_uid(uid):
    name = name_of(uid)
    assert name.startswith("uid-")
    assert name.removeprefix("uid-").isalnum()
    assert name_of("1.2.3") == "1.2.3"


def test_a_newer_version_in_work_is_not_deleted_with_the_older_one(tmp_path):
    spool = Spool(tmp_path, keep=False)
    spool.put("a", b"first")
    (first,) = taken(spool)
    spool.put("a", b"second")
    (second,) = taken(spool)
    spool.settle(first)
    assert second.path.read_bytes() == b"second"
    spool.settle(second)
    assert not spool.holds("a")


def test_a_film_that_is_left_waits_for_the_next_start_alone(tmp_path):
    spool = Spool(tmp_path, keep=False)
    spool.put("a", b"film")
    (one,) = taken(spool)
    spool.leave(one)
    assert len(spool) == 0
    assert taken(spool) == []
    assert [again.name for again in taken(Spool(tmp_path))] == ["a"]


@pytest.mark.parametrize(("number", "raises"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_a_disk_that_does_not_take_a_file_is_said(tmp_path, monkeypatch, number, raises):
    def fails(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    if raises:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync(tmp_path)
    else:
        sync(tmp_path)  # such as a network drive, which syncs no folders
    sync(tmp_path / "none")
