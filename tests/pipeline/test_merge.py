"""Shards, merged, are one run."""

from __future__ import annotations

import shutil

import pytest

from cxr_pipeline.cli.main import _call
from cxr_pipeline.results.folder import ResultsError
from cxr_pipeline.results.merge import merge
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from tests.pipeline.fake_chain import chain, tree, write_film

pytestmark = pytest.mark.usefixtures("kept_decoders")


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    for number in range(14):
        write_film(folder / "ab"[number % 2] / f"{number // 2}.png", number, lungs=0.015 * number)
    (folder / "broken.png").write_text("no image")
    return folder


def go(films, out, shard=None, **options):
    return Runner(chain(**options), out, batch_size=4, workers=2).run(find_inputs([films]), shard=shard)


@pytest.fixture
def parts(films, tmp_path):
    folders = [tmp_path / f"part{number}" for number in (1, 2, 3)]
    counts = [sum(go(films, folder, (number, 3)).counts.values()) for number, folder in enumerate(folders, 1)]
    assert sum(counts) == 15
    assert all(counts)
    return folders


def test_merged_they_equal_one_run(films, parts, tmp_path):
    assert merge(parts[::-1], tmp_path / "merged") == {"ok": 14, "refused": 0, "failed": 1}
    go(films, tmp_path / "one")
    assert tree(tmp_path / "merged") == tree(tmp_path / "one")


def test_killed_while_merging_it_goes_on(films, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_pipeline.results.folder.ResultsFolder.finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge(parts, tmp_path / "merged")
    monkeypatch.undo()
    merge(parts, tmp_path / "merged")
    go(films, tmp_path / "one")
    assert tree(tmp_path / "merged") == tree(tmp_path / "one")


def test_where_files_cannot_be_linked_they_are_copied(films, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_, **__: (_ for _ in ()).throw(OSError("no links here")))
    merge(parts, tmp_path / "merged")
    for part in parts:
        shutil.rmtree(part)
    go(films, tmp_path / "one")
    assert tree(tmp_path / "merged") == tree(tmp_path / "one")


def test_shards_do_not_depend_on_where_the_films_lie(films, tmp_path):
    elsewhere = tmp_path / "mounted" / "films"
    shutil.copytree(films, elsewhere)
    first, second = ([(one.names[1], one.shard(4)) for one in find_inputs([where])] for where in (films, elsewhere))
    assert first == second


def test_what_cannot_be_merged_is_refused(films, parts, tmp_path):
    with pytest.raises(ResultsError, match=r"shard\(s\) 2 of 3 are missing"):
        merge([parts[0], parts[2]], tmp_path / "m")
    with pytest.raises(ResultsError, match="there twice"):
        merge([*parts, shutil.copytree(parts[0], tmp_path / "again")], tmp_path / "m")
    go(films, tmp_path / "other", (2, 3), fingerprint="another")
    with pytest.raises(ResultsError, match="different fingerprints"):
        merge([parts[0], tmp_path / "other", parts[2]], tmp_path / "m")
    go(films, tmp_path / "one")
    with pytest.raises(ResultsError, match="not made with --shard"):
        merge([tmp_path / "one"], tmp_path / "m")
    with pytest.raises(ResultsError, match=r"no run\.json"):
        merge([films], tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_part_is_not_the_whole_nor_another_part(parts, tmp_path):
    before = tree(parts[0])
    with pytest.raises(ResultsError, match="--out .*part1 is one of the parts"):
        merge(parts, tmp_path / "part2" / ".." / "part1")
    with pytest.raises(ResultsError, match="part2 is given twice"):
        merge([*parts, parts[1]], tmp_path / "m")
    assert tree(parts[0]) == before


def test_another_shard_is_not_mixed_in(films, parts):
    with pytest.raises(ResultsError, match="another shard"):
        go(films, parts[0], (2, 3))
    with pytest.raises(ResultsError, match="another shard"):
        go(films, parts[0])


@pytest.mark.parametrize("wrong", ["3/2", "0/2", "2", "a/b"])
def test_a_wrong_shard_is_explained(wrong, films, tmp_path, capsys):
    assert _call(["run", str(films), "--out", str(tmp_path / "out"), "--shard", wrong]) == 2
    assert "I from 1 to N" in capsys.readouterr().err
