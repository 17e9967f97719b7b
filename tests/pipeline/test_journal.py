"""Whole files, the lock, and a journal that survives being torn."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from cxr_pipeline.data.files import sweep, whole_file
from cxr_pipeline.data.files import write_bytes as write_whole
from cxr_pipeline.results import journal as module
from cxr_pipeline.results.journal import FolderLock, any_entry, key_of

Journal = partial(module.Journal, parse=any_entry)
JournalReader = partial(module.JournalReader, parse=any_entry)

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, b"before")

    def broken():
        with whole_file(path) as file:
            file.write(b"aft")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.txt"]
    with whole_file(path, durable=True) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"


def test_sweep_takes_leftovers_only(tmp_path):
    for name in (".a.png.part", "a.png", ".lock", "b.part"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.png", "b.part"]


def test_the_lock_keeps_others_out_until_it_is_released(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    hold = """if True:
        import sys, time
        from pathlib import Path
        from cxr_pipeline.results.journal import FolderLock
        lock = FolderLock(Path(sys.argv[1]))
        print(lock.acquire(), flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENV
    ) as other:
        assert other.stdout.readline() == "True\n"
        assert not FolderLock(tmp_path).acquire()
        other.kill()
    mine = FolderLock(tmp_path)
    assert mine.acquire()
    mine.release()


def test_the_newest_entry_counts_and_stands_last(tmp_path):
    journal = Journal(tmp_path / "j")
    for key, n in (("a", 1), ("b", 2), ("a", 3)):
        journal.append(key, {"n": n})
    assert journal.keys() == ["b", "a"]
    assert journal.get("a") == {"key": "a", "n": 3}
    assert journal.get("x") is None
    journal.rewrite(["a"])
    journal.append("c", {"n": 4})
    journal.close()
    again = Journal(tmp_path / "j")
    assert [entry["n"] for entry in again.entries(again.keys())] == [3, 4]
    assert (tmp_path / "j").read_text() == '{"key":"a","n":3}\n{"key":"c","n":4}\n'


@pytest.mark.parametrize("damage", [b'{"key":"c","n"', b"\0\0\0", b'["key"]', b'{"key":5}', b"\xff", b""])
def test_lines_that_are_none_are_dropped(tmp_path, damage):
    path = tmp_path / "j"
    lines = [b'{"key":"a","n":1}\n', b'{"key":"b","n":2}\n']
    path.write_bytes(lines[0] + damage + b"\n" + lines[1])
    journal = Journal(path)
    assert path.read_bytes() == b"".join(lines)
    journal.append("c", {"n": 3})
    assert [entry["n"] for entry in journal.entries(journal.keys())] == [1, 2, 3]
    journal.close()


def test_every_cut_of_a_journal_keeps_the_lines_before_it(tmp_path):
    path = tmp_path / "j"
    whole = b"".join(b'{"key":"%d","n":"\\u00e9"}\n' % n for n in range(4))
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = Journal(path)
        assert journal.keys() == [str(n) for n in range(whole[:length].count(b"\n"))]
        journal.close()


def test_threads_append_whole_lines(tmp_path):
    journal = Journal(tmp_path / "j")

    def work(thread):
        for n in range(50):
            journal.append(f"{thread}-{n}", {"text": "x" * n})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert len(Journal(tmp_path / "j")) == 200


def test_a_failed_append_leaves_no_half_line(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")
    journal.append("a", {})

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[:5])
            self.file.flush()
            raise OSError(28, "No space left on device")

    journal._file = Full(journal._file)
    with pytest.raises(OSError, match="No space"):
        journal.append("b", {})
    assert "b" not in journal
    journal.append("c", {})
    journal.close()
    assert Journal(tmp_path / "j").keys() == ["a", "c"]


def test_keys_are_of_the_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert key_of("x/../a.png") == key_of(tmp_path / "a.png")
    assert key_of("a.png") != key_of("b.png")
    assert len(key_of("\udcff.png")) == 16


def test_a_reader_sees_what_the_journal_sees_and_writes_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for key, value in (("a", 1), ("b", 2), ("c", 3), ("a", 4)):
        journal.append(key, {"value": value})
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"key":"d","value"')  # torn
    before = path.read_bytes()
    reader = JournalReader(path)
    assert len(reader) == 3
    assert [one["value"] for one in reader] == [one["value"] for one in reader] == [2, 3, 4]
    assert path.read_bytes() == before
    with pytest.raises(FileNotFoundError):
        JournalReader(tmp_path / "none")
