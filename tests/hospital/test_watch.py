"""The watched folder: films are taken when they are whole, once, whatever is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxr_pipeline.dicom.watch import Watcher
from cxr_pipeline.results.reader import rows
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.inputs import InputError, find_inputs
from cxr_pipeline.run.runner import Runner, identity_of
from tests.hospital.parts import as_bytes, dicom_film, until
from tests.pipeline import fake_chain
from tests.pipeline.fake_chain import film, write_film

SETTLE = 0.3


def opened(stages):
    return Chain(stages, identity_of(stages), {})


@contextmanager
def watching(folder, out, stages=None, settle=SETTLE):
    folder.mkdir(exist_ok=True)
    with Watcher(opened(stages or fake_chain.chain()), folder, out, settle=settle, workers=2) as watcher:
        thread = threading.Thread(target=watcher.run)
        thread.start()
        try:
            yield watcher
        finally:
            watcher.stop()
            thread.join(60)
            assert not thread.is_alive()


def ids(out):
    return sorted(row["id"] for row in rows(out))


def test_films_are_judged_as_they_come_with_all_tables(tmp_path, isolated):
    folder, out = tmp_path / "in", tmp_path / "out"
    with watching(folder, out) as one:
        write_film(folder / "a.png", 1)
        until(lambda: one.counts["ok"] == 1)
        write_film(folder / "below" / "b.png", 2)
        (folder / "c.dcm").write_bytes(as_bytes(dicom_film(3)))
        (folder / "notes.txt").write_text("no film")
        until(lambda: one.counts["ok"] == 3)
        until(lambda: (out / "worklist.csv").exists() and (out / "worklist.csv").read_text().count("\n") == 4)
        assert ids(out) == ["a", "b", "c"]
        assert (out / "overlays" / "b.jpg").is_file()
        assert '"c"' in (out / "regions.json").read_text() or "c.dcm" in (out / "regions.json").read_text()
    assert ids(out) == ["a", "b", "c"]


def test_a_film_that_is_being_written_waits_until_it_is_whole(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    whole = write_film(tmp_path / "whole.png", 1).read_bytes()
    stages = fake_chain.chain()
    with watching(folder, out, stages, settle=1.0) as one:
        with open(folder / "slow.png", "wb") as file:
            for at in range(0, len(whole), len(whole) // 6 + 1):
                file.write(whole[at : at + len(whole) // 6 + 1])
                file.flush()
                time.sleep(0.4)
        until(lambda: sum(one.counts.values()) == 1)
    assert [row["status"] for row in rows(out)] == ["ok"]
    assert stages[0].batches == [["slow"]]


def test_a_name_of_a_file_that_is_being_written_waits_for_its_renaming(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    with watching(folder, out) as one:
        write_film(folder / "film.png.part", 1)
        write_film(folder / ".hidden.png", 2)
        write_film(folder / "other.png", 3)
        until(lambda: one.counts["ok"] == 1)
        time.sleep(3 * SETTLE)
        assert ids(out) == ["other"]
        os.rename(folder / "film.png.part", folder / "film.png")
        until(lambda: one.counts["ok"] == 2)
    assert ids(out) == ["film", "other"]


def test_a_film_that_changes_is_judged_again_in_the_same_row(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    with watching(folder, out) as one:
        write_film(folder / "a.png", 1)
        until(lambda: one.counts["ok"] == 1)
        write_film(folder / "a.png", 2)
        until(lambda: one.counts["ok"] == 2)
    assert ids(out) == ["a"]


def test_a_film_that_is_renamed_while_it_waits_is_judged_under_its_new_name_alone(tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    real = Watcher._judge

    def renamed_just_now(self, films):
        if films and not (folder / "new.png").exists():
            judge = self.station.judge

            def late(*arguments):
                os.rename(folder / "old.png", folder / "new.png")
                judge(*arguments)

            monkeypatch.setattr(self.station, "judge", late)
            real(self, films)
            monkeypatch.setattr(self.station, "judge", judge)
        else:
            real(self, films)

    monkeypatch.setattr(Watcher, "_judge", renamed_just_now)
    with watching(folder, out) as one:
        write_film(folder / "old.png", 1)
        until(lambda: one.counts["ok"] == 1)
    assert ids(out) == ["new"]


def test_a_bad_film_costs_itself_alone(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    with watching(folder, out) as one:
        (folder / "bad.png").write_bytes(write_film(tmp_path / "x.png", 1).read_bytes()[:100])
        write_film(folder / "good.png", 2)
        until(lambda: sum(one.counts.values()) == 2)
    assert {row["id"]: row["status"] for row in rows(out)} == {"bad": "failed", "good": "ok"}


def test_a_watcher_that_is_started_again_judges_nothing_twice_and_run_goes_on_too(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(3):
        write_film(folder / f"{number}.png", number)
    with watching(folder, out) as one:
        until(lambda: one.counts["ok"] == 3)
    write_film(folder / "3.png", 3)
    stages = fake_chain.chain()
    with Watcher(opened(stages), folder, out, settle=SETTLE) as again:
        again.run(until_empty=True)
    assert stages[0].batches == [["3"]]
    summary = Runner(fake_chain.chain(), out).run(find_inputs([folder]))
    assert summary.already == 4


def test_a_killed_watcher_goes_on(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for number in range(8):
        write_film(folder / f"{number:02}.png", number)
    command = [sys.executable, __file__, str(folder), str(out)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    until(lambda: (out / "journal.jsonl").exists() and (out / "journal.jsonl").read_bytes().count(b"\n") > 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "journal.jsonl").read_bytes().count(b"\n") < 8
    with Watcher(opened(fake_chain.chain()), folder, out, settle=SETTLE) as again:
        again.run(until_empty=True)
    assert ids(out) == [f"{number:02}" for number in range(8)]


def test_a_full_disk_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_pipeline.dicom.watch._PAUSE", 0.1)
    folder, out = tmp_path / "in", tmp_path / "out"
    with watching(folder, out) as one:
        append = type(one.station.folder.journal).append
        full = [True]

        def fails(self, key, entry):
            if full[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            append(self, key, entry)

        monkeypatch.setattr(type(one.station.folder.journal), "append", fails)
        write_film(folder / "a.png", 1)
        until(lambda: one.problem)
        full[0] = False
        until(lambda: one.counts["ok"] == 1)
    assert ids(out) == ["a"]


def test_tables_are_brought_up_to_date_while_films_keep_coming(tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_pipeline.dicom.watch._AT_ONCE", 1)
    monkeypatch.setattr("cxr_pipeline.dicom.watch._BUSY", 0.0)
    folder, out, seen = tmp_path / "in", tmp_path / "out", []
    for number in range(3):
        write_film(folder / f"{number}.png", number)
    with Watcher(opened(fake_chain.chain()), folder, out, settle=SETTLE) as one:
        judge = one.station.judge

        def looked(*arguments):
            seen.append((out / "worklist.csv").exists())
            judge(*arguments)

        monkeypatch.setattr(one.station, "judge", looked)
        one.run(until_empty=True)
    assert seen == [False, True, True]


def test_the_results_do_not_lie_where_films_are_looked_for(tmp_path):
    with pytest.raises(InputError, match="both"):
        Watcher(opened(fake_chain.chain()), tmp_path, tmp_path)
    write_film(tmp_path / "in" / "a.png", 1)
    with Watcher(opened(fake_chain.chain()), tmp_path / "in", tmp_path / "in" / "out", settle=SETTLE) as below:
        below.run(until_empty=True)
    assert ids(tmp_path / "in" / "out") == ["a"]
    assert film(1).shape == (72, 96)


if __name__ == "__main__":
    slow = fake_chain.chain(delay=0.1)
    with Watcher(opened(slow), Path(sys.argv[1]), Path(sys.argv[2]), settle=SETTLE, batch_size=2, workers=1) as killed:
        killed.run()
