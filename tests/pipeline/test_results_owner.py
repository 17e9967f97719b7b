"""Whose a results folder is: another run's, a killed one's, a person's."""

from __future__ import annotations

import re

import pytest

from cxr_pipeline.results.folder import ResultsError, ResultsFolder, rows
from cxr_pipeline.results.journal import FolderLock
from tests.pipeline.made_results import finish, identity, record, save


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment": "other"}, "stage segment"),
        ({"localize": "other"}, "stage localize"),
        ({"version": "2"}, "version (1; now 2)"),
        ({"runtime": "keras"}, "runtime (onnx; now keras)"),
    ],
)
def test_results_of_another_identity_are_not_mixed(tmp_path, change, message):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
        finish(folder, ["a"])
    with pytest.raises(ResultsError, match=re.escape(message)) as caught:
        ResultsFolder(tmp_path, identity(**change))
    assert "--overwrite" in str(caught.value)
    assert [row["id"] for row in rows(tmp_path)] == ["a"]
    with ResultsFolder(tmp_path, identity(**change), overwrite=True) as folder:
        assert folder.done("a", "abc") is None
        assert not list(tmp_path.glob("*/a.*"))
        save(folder, record("b"))
        finish(folder, ["b"])
    assert [row["id"] for row in rows(tmp_path)] == ["b"]


def test_a_killed_overwrite_goes_on_when_called_again_and_a_finished_one_starts_anew(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
        finish(folder, ["a"])
    with ResultsFolder(tmp_path, identity(), overwrite=True) as folder:
        save(folder, record("b"))  # and killed here
    with ResultsFolder(tmp_path, identity(), overwrite=True) as folder:
        assert folder.done("b", "abc") is not None
        finish(folder, ["b"])
    with ResultsFolder(tmp_path, identity(), overwrite=True) as folder:
        assert folder.done("b", "abc") is None


def test_a_clearing_that_was_killed_is_finished_first(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        save(folder, record("a"))
        finish(folder, ["a"])
    (tmp_path / "run.json").write_text('{"program": "cxr-pipeline", "clearing": true}')
    with ResultsFolder(tmp_path, identity(segment="other")) as folder:
        assert folder.done("a", "abc") is None


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["masks/1.png", "results.csv", "report.html", "run.json"])
def test_files_that_no_run_made_are_never_touched(tmp_path, name, overwrite):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(ResultsError, match="Choose another --out"):
        ResultsFolder(tmp_path, identity(), overwrite=overwrite)
    assert path.read_text() == "{}"


def test_overwrite_keeps_what_a_person_put_there(tmp_path):
    with ResultsFolder(tmp_path, identity()) as folder:
        finish(folder, [])
    (tmp_path / "masks" / "notes.txt").write_text("mine")
    (tmp_path / "more.csv").write_text("mine")
    ResultsFolder(tmp_path, identity(), overwrite=True).close()
    assert (tmp_path / "masks" / "notes.txt").read_text() == (tmp_path / "more.csv").read_text() == "mine"


def test_two_runs_do_not_share_a_folder(tmp_path):
    with ResultsFolder(tmp_path, identity()), pytest.raises(ResultsError, match="another run is working"):
        ResultsFolder(tmp_path, identity())
    ResultsFolder(tmp_path, identity()).close()
    lock = FolderLock(tmp_path)
    assert lock.acquire()
    lock.release()


def test_a_refused_folder_is_unlocked_again(tmp_path):
    ResultsFolder(tmp_path, identity()).close()
    with pytest.raises(ResultsError):
        ResultsFolder(tmp_path, identity(segment="other"))
    ResultsFolder(tmp_path, identity()).close()


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ResultsError, match="is a file"):
        ResultsFolder(tmp_path / "out", identity())
