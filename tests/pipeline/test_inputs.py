"""From what a person gives to a list of films with ids."""

from __future__ import annotations

import os
import tarfile
import unicodedata
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_pipeline.run.inputs import (
    REASONS,
    InputError,
    assign_ids,
    find_inputs,
    left_out_in_words,
    marked_equal,
    safe_name,
)
from tests.pipeline.fake_chain import write_film


def films(folder, *names):
    for number, name in enumerate(names):
        write_film(folder / name, number)


def ids(inputs, known=None):
    by_key = assign_ids(inputs, known)
    return [by_key[one.key] for one in inputs]


def paths(inputs, root):
    return [os.path.relpath(one.path, root) for one in inputs]


def test_a_folder_is_walked_in_order_without_what_is_no_film(tmp_path):
    films(tmp_path, "b.png", "a.JPG", "sub/deep/c.tif", ".hidden.png", ".cache/d.png")
    (tmp_path / "notes.txt").write_text("no film")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "1.2.840.99").write_bytes(bytes(128) + b"DICM")
    assert paths(find_inputs([tmp_path]), tmp_path) == ["1.2.840.99", "a.JPG", "b.png", "sub/deep/c.tif"]


def test_what_is_left_out_of_a_folder_is_told(tmp_path):
    films(tmp_path, "a.png", "sub/no suffix", ".hidden", "out/overlays/a.png")
    (tmp_path / "notes.txt").write_text("no film")
    (tmp_path / "sub" / "b.mov").write_bytes(b"\0\0\0\x14ftypqt  ")
    left_out = []
    found = find_inputs([tmp_path, tmp_path / "a.png"], out=tmp_path / "out", left_out=left_out)
    assert paths(found, tmp_path) == ["a.png", "sub/no suffix"]
    assert [(os.path.relpath(one.file, tmp_path), one.reason) for one in left_out] == [
        (".hidden", "hidden"),
        ("notes.txt", "no_image"),
        ("sub/b.mov", "no_image"),
    ]


def test_every_reason_to_leave_a_file_out(tmp_path):
    films(tmp_path, "a.png", "old/overlays/a.png")
    for name in ("run.json", "journal.jsonl"):
        (tmp_path / "old" / name).touch()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "../../a.png")
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    (tmp_path / "list.xlsx").write_bytes((tmp_path / "set.zip").read_bytes())  # packed, but nothing to unpack
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "broken").symlink_to("nowhere")
    left_out = []
    assert paths(find_inputs([tmp_path], left_out=left_out), tmp_path) == ["a.png"]
    assert {os.path.relpath(one.file, tmp_path): one.reason for one in left_out} == {
        "Thumbs.db": "index",
        "broken": "link",
        "itself": "link",
        "list.xlsx": "no_image",
        "old": "results",
        "set.tgz": "archive",
        "set.zip": "archive",
    }
    assert set(REASONS) == {one.reason for one in left_out} | {"hidden"}
    words = left_out_in_words(left_out)
    assert any("unpack them" in sentence and "set.tgz" in sentence for sentence in words)
    (named,) = find_inputs([tmp_path / "set.zip"])
    assert "Unpack it" in named.problem


def test_the_same_file_under_two_names_is_noted(tmp_path):
    films(tmp_path, "a.png", "b.png", "c.png", "d.png")
    for name in ("b2.png", "sub/b3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "b.png").read_bytes())
    almost = bytearray((tmp_path / "b.png").read_bytes())
    almost[-1] ^= 1  # beginning and middle agree
    (tmp_path / "z.png").write_bytes(almost)
    (tmp_path / "empty.png").touch()
    (tmp_path / "empty2.png").touch()
    marked = marked_equal(find_inputs([tmp_path]))
    notes = {os.path.relpath(one.path, tmp_path): one.note for one in marked if one.note}
    assert notes == {name: f"same file as {tmp_path / 'b.png'}" for name in ("b2.png", "sub/b3.png")}


def test_a_folder_cannot_be_its_own_results(tmp_path):
    films(tmp_path, "o3/a.png", "more/b.png")
    (tmp_path / "link").symlink_to("o3")
    for given_ in (["o3"], ["more", "o3"], ["link"]):
        with pytest.raises(InputError, match="both the input and --out"):
            find_inputs([tmp_path / name for name in given_], out=tmp_path / "o3")
    for name in ("run.json", "journal.jsonl"):  # results of an earlier call, such as `pipeline run * --out o3` gives
        (tmp_path / "o3" / name).touch()
    assert paths(find_inputs([tmp_path / "more", tmp_path / "o3"], out=tmp_path / "o3"), tmp_path) == ["more/b.png"]


def test_results_folders_inside_are_left_out(tmp_path):
    films(tmp_path, "a.png", "out/overlays/a.png", "earlier/overlays/a.png")
    for name in ("run.json", "journal.jsonl"):
        (tmp_path / "earlier" / name).touch()
    assert paths(find_inputs([tmp_path], out=tmp_path / "out"), tmp_path) == ["a.png"]


def test_a_named_file_is_always_taken_and_counts_once(tmp_path):
    films(tmp_path, "a.png")
    (tmp_path / "film.xyz").write_bytes(b"?")
    found = find_inputs([tmp_path / "film.xyz", tmp_path, tmp_path / "a.png"])
    assert paths(found, tmp_path) == ["film.xyz", "a.png"]


def test_links_are_followed_but_no_circle(tmp_path):
    films(tmp_path, "far/a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "in")
    assert paths(find_inputs([tmp_path / "in"]), tmp_path) == ["in/link/a.png"]


@pytest.mark.parametrize(
    "text", ["image,label\nx/a.png,TB\ngone.png,nonsense\n", "\ufefflabel; image\n;x/a.png\n;gone.png\n"]
)
def test_a_manifest_lists_films_that_need_not_exist(tmp_path, text):
    films(tmp_path, "x/a.png", "masks/a.png")
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    for given_ in (tmp_path, tmp_path / "manifest.csv"):
        assert paths(find_inputs([given_]), tmp_path) == ["x/a.png", "gone.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("table.csv", b"file,label\na.png,TB\n", "no column `image`"),
        ("table.csv", "image\né.png\n".encode("latin-1"), "not UTF-8"),
        ("empty/readme.txt", b"", r"no films in .*1 file\(s\), such as .*readme\.txt"),
    ],
)
def test_what_gives_no_films_is_an_error(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_inputs([path if path.suffix == ".csv" else path.parent])


def test_what_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        find_inputs([tmp_path / "nowhere"])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may list everything")
def test_a_folder_without_permission_is_a_problem_of_its_own(tmp_path):
    films(tmp_path, "a.png", "locked/b.png")
    (tmp_path / "locked").chmod(0)
    try:
        found = find_inputs([tmp_path])
    finally:
        (tmp_path / "locked").chmod(0o700)
    assert [bool(one.problem) for one in found] == [False, True]


def test_ids_are_stems_or_say_their_folder_or_end_in_a_hash(tmp_path):
    films(tmp_path, "a.png", "TB/b.png", "NORM/b.png", "x/c.png", "x/c.jpg")
    found = find_inputs([tmp_path])
    named = dict(zip(paths(found, tmp_path), ids(found), strict=True))
    assert named["a.png"] == "a"
    assert (named["TB/b.png"], named["NORM/b.png"]) == ("TB_b", "NORM_b")
    assert named["x/c.png"].startswith("x_c_")
    assert named["x/c.png"] != named["x/c.jpg"]


def test_files_of_one_name_given_by_themselves_take_their_folders_names(tmp_path):
    films(tmp_path, "one/a.png", "two/a.png")
    assert ids(find_inputs([tmp_path / "one" / "a.png", tmp_path / "two"])) == ["one_a", "two_a"]


def test_ids_differ_where_case_does_not_count(tmp_path):
    films(tmp_path, "x/Film.png", "y/film.png", "z/FILM.png")
    found = ids(find_inputs([tmp_path]))
    assert len({name.casefold() for name in found}) == 3


def test_ids_do_not_depend_on_order_nor_on_what_is_done(tmp_path):
    films(tmp_path, "a.png", "x/a.png", "y/a.png", "x_a.png", "b.png")
    found = find_inputs([tmp_path])
    whole = assign_ids(found)
    assert assign_ids(found[::-1]) == whole
    for count in range(len(found)):
        assert assign_ids(found, {one.key: whole[one.key] for one in found[:count]}) == whole


def test_films_of_earlier_runs_keep_their_ids(tmp_path):
    films(tmp_path, "x/a.png")
    known = assign_ids(find_inputs([tmp_path / "x"]))
    assert list(known.values()) == ["a"]
    films(tmp_path, "x/a.png", "y/a.png")
    both = find_inputs([tmp_path])
    assert ids(both, known) == ["a", "y_a"]
    other = find_inputs([tmp_path / "y"])  # alone it would be "a" too
    (second,) = ids(other, known)
    assert second.startswith("a_")
    assert second != "a"


@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=8))
def test_any_name_becomes_safe(names):
    for name in names:
        safe = safe_name(name)
        assert 1 <= len(safe.encode()) <= 100
        assert not set('/\\:*?"<>|\n\r\t\0 ') & set(safe)
        assert not safe.startswith((".", "-"))
        assert not safe.endswith(".")
        assert safe_name(safe) == safe
        assert safe == unicodedata.normalize("NFC", safe)


@pytest.mark.parametrize(
    ("name", "safe"), [("CON", "_CON"), ("nul.1", "_nul.1"), ("Lunge ß", "Lunge_ß"), ("..", "film")]
)
def test_names_that_systems_keep_for_themselves(name, safe):
    assert safe_name(name) == safe


def test_long_names_that_differ_at_their_end_stay_apart(tmp_path):
    long = "ü" * 100
    assert safe_name(long + "1") != safe_name(long + "2")
