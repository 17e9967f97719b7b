"""The runner on a fake chain: every film done or named, nothing lost, whatever is killed."""

from __future__ import annotations

import errno
import json
import os
import threading
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_pipeline.data.radiograph import Radiograph, RadiographError, read
from cxr_pipeline.results import filmfiles
from cxr_pipeline.results.folder import ResultsError, rows, run_info
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.reading import file_hash
from cxr_pipeline.run.runner import RunError, Runner
from tests.pipeline.fake_chain import FakeLocalize, chain, tree, write_film

pytestmark = pytest.mark.usefixtures("kept_decoders")


@pytest.fixture
def films(tmp_path):
    """Ten films: two of one name, one without lungs, and two that cannot be read."""
    folder = tmp_path / "films"
    for number in range(6):
        write_film(folder / f"f{number}.png", number, lungs=0.05 * number)
    write_film(folder / "x" / "f0.png", 10, size=(90, 70))
    write_film(folder / "whiteout.png", 11, lungs=0.7)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no film")
    return folder


def go(given, out, stages=None, **options):
    overwrite, progress = options.pop("overwrite", False), options.pop("progress", None)
    runner = Runner(stages or chain(), out, **({"workers": 2, "batch_size": 4} | options))
    return runner.run(find_inputs([given]), overwrite=overwrite, progress=progress)


def table(out):
    return {row["id"]: row for row in rows(out)}


def test_every_film_is_done_or_named(films, tmp_path):
    seen = []
    summary = go(films, tmp_path / "out", progress=seen.append)
    found = table(tmp_path / "out")
    assert summary.counts == {"ok": 7, "refused": 1, "failed": 2}
    assert summary.exit_code == 1
    assert seen == list(range(1, 11))
    assert {name: row["status"] for name, row in found.items() if row["status"] != "ok"} == {
        "whiteout": "refused",
        "empty": "failed",
        "text": "failed",
    }
    assert "empty" in found["empty"]["error"]
    assert (found["whiteout"]["width"], found["whiteout"]["height"]) == ("96", "72")
    assert (found["whiteout"]["p_TB"], found["whiteout"]["label"]) == ("", "")
    assert found["f1"]["sha256"] == file_hash(films / "f1.png")
    assert found["x_f0"]["image"] == str(films / "x" / "f0.png")
    assert [Path(row["image"]).relative_to(films).as_posix() for row in rows(tmp_path / "out")] == [
        "empty.png",
        *(f"f{number}.png" for number in range(6)),
        "text.png",
        "whiteout.png",
        "x/f0.png",
    ]
    assert {(status, Path(image).name) for status, image, _ in summary.problems} == {
        ("refused", "whiteout.png"),
        ("failed", "empty.png"),
        ("failed", "text.png"),
    }


def test_all_good_films_end_with_0(films, tmp_path):
    summary = go(films / "x", tmp_path / "out")
    assert (summary.exit_code, summary.problems) == (0, [])
    info = run_info(tmp_path / "out")
    assert info["finished"]
    assert info["counts"] == {"total": 1, "ok": 1, "refused": 0, "failed": 0}
    assert set(info["seconds"]) == {"read", "segment", "classify", "localize", "write", "total"}


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("workers", [1, 4])
def test_results_do_not_depend_on_batches_or_threads(films, tmp_path, batch_size, workers):
    go(films, tmp_path / "one", batch_size=2, workers=2)
    go(films, tmp_path / "two", batch_size=batch_size, workers=workers)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("judges", [2, 5])
def test_several_threads_that_judge_change_nothing(films, tmp_path, batch_size, judges):
    one, many, seen = chain(delay=0.002), chain(delay=0.002), []
    go(films, tmp_path / "one", one, batch_size=batch_size)
    summary = go(films, tmp_path / "many", many, batch_size=batch_size, judges=judges, progress=seen.append)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
    assert sorted(many[0].batches) == sorted(one[0].batches)
    assert summary.counts == {"ok": 7, "refused": 1, "failed": 2}
    assert seen == list(range(1, 11))


def test_as_many_batches_are_judged_at_once_as_there_are_judges(films, tmp_path):
    """Three films meet in the first stage: with fewer threads the wait for each other would never end well."""
    stages, meeting = chain(), threading.Barrier(3)
    judge = stages[0].run

    def meet(records):
        if records[0].radiograph.id in ("f1", "f2", "f3"):
            meeting.wait(timeout=60)
        return judge(records)

    stages[0].run = meet
    assert go(films, tmp_path / "out", stages, batch_size=1, judges=3).counts["ok"] == 7


def test_batches_hold_only_films_that_can_be_judged(films, tmp_path):
    stages = chain()
    go(films, tmp_path / "out", stages, batch_size=4)
    assert [len(batch) for batch in stages[0].batches] == [
        1,
        4,
        3,
    ]  # the first film alone, so that a person soon sees a result
    assert sum(len(batch) for batch in stages[1].batches) == 7


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("judges", [1, 2])
def test_a_film_that_breaks_a_stage_costs_only_itself(films, tmp_path, stage, judges):
    stages = chain()
    stages[stage].raises_on = ("f3",)
    summary = go(films, tmp_path / "out", stages, judges=judges)
    found = table(tmp_path / "out")
    assert summary.counts == {"ok": 6, "refused": 1, "failed": 3}
    name = stages[stage].name
    assert found["f3"]["error"] == f"{name}: ZeroDivisionError: {name} cannot do f3. The traceback is in run.log"
    assert (found["f3"]["lung_fraction"] != "") == (stage > 0)
    assert not list((tmp_path / "out").glob("*/f3.*"))
    log = (tmp_path / "out" / "run.log").read_text()
    assert log.count("Traceback") == 1
    assert "f3.png" in log
    clean = chain()  # what nobody foresaw is tried again
    assert go(films, tmp_path / "out", clean).counts["ok"] == 7
    assert clean[0].batches == [["f3"]]
    assert not (tmp_path / "out" / "run.log").exists()


def test_a_stage_that_loses_films_is_found_out(films, tmp_path):
    class Loses(FakeLocalize):
        def run(self, records):
            return super().run(records)[1:]

    summary = go(films, tmp_path / "out", [*chain("classify"), Loses()])
    assert summary.counts["failed"] == 9
    assert "returned 0 records for 1" in table(tmp_path / "out")["f1"]["error"]


def test_a_reader_that_fails_in_its_own_way_costs_only_its_film(films, tmp_path):
    def reader(path, id):
        if "f2" in str(path):
            raise MemoryError
        if "f3" in str(path):
            raise RadiographError(path, "a hand. Give a chest", "not_chest", refused=True)
        return read(path, id=id)

    summary = go(films, tmp_path / "out", reader=reader)
    found = table(tmp_path / "out")
    assert summary.counts == {"ok": 5, "refused": 2, "failed": 3}
    assert found["f2"]["error"].startswith("reading: MemoryError")
    assert found["f3"]["status"] == "refused"


def test_paths_that_are_no_files_are_named(films, tmp_path):
    os.mkfifo(films / "pipe.png")
    (films / "link.png").symlink_to(films / "nowhere.png")
    (films / "manifest.csv").write_text("image\nf1.png\ngone.png\npipe.png\nlink.png\nx\n")
    summary = go(films, tmp_path / "out")
    errors = {name: row["error"] for name, row in table(tmp_path / "out").items() if row["status"] == "failed"}
    assert summary.counts == {"ok": 1, "refused": 0, "failed": 4}
    assert "pipe" in errors["pipe"]
    assert "no such file" in errors["gone"]
    assert "no such file" in errors["link"]
    assert "folder" in errors["x"]


def test_a_second_call_does_nothing_again(films, tmp_path):
    go(films, tmp_path / "out")
    before = tree(tmp_path / "out")
    stages = chain()
    summary = go(films, tmp_path / "out", stages)
    assert stages[0].batches == []
    assert (summary.already, summary.exit_code) == (10, 1)
    assert tree(tmp_path / "out") == before


def test_changed_and_new_films_are_done(films, tmp_path):
    go(films, tmp_path / "out")
    before = os.stat(films / "f1.png")
    write_film(films / "f1.png", 99)
    os.utime(films / "f1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    write_film(films / "new.png", 100)
    stages = chain()
    summary = go(films, tmp_path / "out", stages)
    assert stages[0].batches == [["f1"], ["new"]]
    assert (summary.already, sum(summary.counts.values()), summary.others) == (9, 11, 0)
    go(films, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_films_of_another_call_join_the_folder(films, tmp_path):
    go(films / "f1.png", tmp_path / "out")
    summary = go(films / "x", tmp_path / "out")
    assert (summary.counts["ok"], summary.others) == (1, 1)
    assert list(table(tmp_path / "out")) == ["f1", "f0"]


def test_a_film_is_the_same_from_another_working_folder(films, tmp_path, monkeypatch):
    monkeypatch.chdir(films)
    go("f1.png", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert go("films/f1.png", tmp_path / "out").already == 1


def test_later_stages_take_over_the_masks(films, tmp_path):
    go(films, tmp_path / "out", chain("segment"))
    stages = chain()
    summary = go(films, tmp_path / "out", stages)
    assert stages[0].batches == []
    assert sum(map(len, stages[1].batches)) == 7
    assert summary.already == 3
    go(films, tmp_path / "fresh")
    assert [dict(row) for row in rows(tmp_path / "out")] == [dict(row) for row in rows(tmp_path / "fresh")]
    for name in ("masks", "overlays"):
        assert tree(tmp_path / "out" / name) == tree(tmp_path / "fresh" / name)
    assert (tmp_path / "out" / "regions.json").read_bytes() == (tmp_path / "fresh" / "regions.json").read_bytes()


def test_other_weights_are_refused(films, tmp_path):
    go(films, tmp_path / "out")
    with pytest.raises(ResultsError, match="--overwrite"):
        go(films, tmp_path / "out", chain(fingerprint="other"))
    assert go(films, tmp_path / "out", chain(fingerprint="other"), overwrite=True).already == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_no_more_stops_the_run_and_keeps_the_rest(films, tmp_path, monkeypatch, number):
    write, calls = filmfiles.write_whole, []

    def full(path, data, **more):
        calls.append(path)
        if len(calls) > 12:
            raise OSError(number, os.strerror(number), str(path))
        write(path, data, **more)

    monkeypatch.setattr(filmfiles, "write_whole", full)
    with pytest.raises(RunError, match=os.strerror(number)) as caught:
        go(films, tmp_path / "out", batch_size=1)
    assert "goes on where it stopped" in str(caught.value)
    monkeypatch.undo()
    assert run_info(tmp_path / "out")["finished"] is False
    assert go(films, tmp_path / "out").already >= 1
    go(films, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_folder_that_cannot_be_made_is_one_clear_error(films, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="Not a directory"):
        go(films, tmp_path / "file" / "out")


def test_opencv_gets_its_threads_back(films, tmp_path):
    before = cv2.getNumThreads()
    go(films, tmp_path / "out")
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize("judges", [1, 2])
def test_memory_stays_flat(tmp_path, judges):
    """Ten times the films take no more memory: nothing but their places is kept."""
    for number in range(200):
        (tmp_path / "films").mkdir(exist_ok=True)
        (tmp_path / "films" / f"{number}.png").write_bytes(b"%d" % number)

    def reader(path, id):
        pixels = np.full((256, 256), 0.7, np.float32)
        pixels[40:200, 40:200] = 0.2 + int(id) / 1e4
        return Radiograph(pixels, id, str(path), pixels.shape)

    def peak(count):
        inputs = find_inputs([tmp_path / "films"])[:count]
        tracemalloc.start()
        Runner(chain(), tmp_path / str(count), reader=reader, workers=2, batch_size=4, judges=judges).run(inputs)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(20)  # imports
    # A busy machine lets some films more wait; 160 that were kept would add four times as much as is allowed here.
    assert peak(200) < peak(40) + 160 * 256 * 256 * 4 / 4


def test_the_journal_is_what_counts_and_may_be_torn(films, tmp_path):
    go(films, tmp_path / "out")
    whole = tree(tmp_path / "out")
    path = tmp_path / "out" / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    (tmp_path / "out" / "results.csv").write_text("torn")
    assert go(films, tmp_path / "out").already == 9
    assert tree(tmp_path / "out") == whole
    assert all(json.loads(line) for line in path.read_text().splitlines())
