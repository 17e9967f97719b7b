"""A results folder is input: cut, garbled, and made by somebody who means harm."""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_pipeline import open_results
from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import csv_rows
from cxr_pipeline.data.locks import FolderLock, LockError, end_with_parent, sweep_temporary, temporary_folder
from cxr_pipeline.report.report import write_report
from cxr_pipeline.results import filmfiles
from cxr_pipeline.results.folder import ResultsError, rows
from cxr_pipeline.results.merge import merge
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from tests.pipeline.fake_chain import chain, tree, write_film

pytestmark = pytest.mark.usefixtures("kept_decoders")


@pytest.fixture
def films(tmp_path):
    for number in range(6):
        write_film(tmp_path / "films" / f"f{number}.png", number, lungs=0.05 * number)
    return tmp_path / "films"


def go(films, out, shard=None, **options):
    return Runner(chain(), out, batch_size=4, workers=2, **options).run(find_inputs([films]), shard=shard)


@pytest.fixture
def out(films, tmp_path):
    go(films, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def parts(films, tmp_path):
    folders = [tmp_path / "part1", tmp_path / "part2"]
    for number, folder in enumerate(folders, 1):
        assert go(films, folder, (number, 2)).counts["ok"]
    return folders


def lines_of(folder):
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def change_entry(folder, change, number=0):
    """Change an entry of the journal, as somebody with an editor would."""
    lines = lines_of(folder)
    entry = json.loads(lines[number])
    change(entry)
    lines[number] = json.dumps(entry).encode() + b"\n"
    (folder / "journal.jsonl").write_bytes(b"".join(lines))


class TestMerge:
    def refuse(self, parts, tmp_path, message):
        with pytest.raises(ResultsError, match=message) as caught:
            merge(parts, tmp_path / "all")
        assert not (tmp_path / "all").exists()
        return str(caught.value)

    @pytest.mark.parametrize("name", ["shard.csv", "journal.jsonl"])
    def test_a_file_a_line_short(self, parts, tmp_path, name):
        path = parts[1] / name
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
        assert str(parts[1]) in self.refuse(parts, tmp_path, "does not hold what it promises")

    @pytest.mark.parametrize("kind", ["cut", "changed", "gone", "link"])
    def test_a_file_that_is_not_what_was_written(self, parts, tmp_path, kind):
        path = sorted((parts[0] / "masks").iterdir())[0]
        data = path.read_bytes()
        path.unlink()
        if kind == "cut":
            path.write_bytes(data[:-20])
        elif kind == "changed":
            path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        elif kind == "link":
            (tmp_path / "elsewhere.png").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere.png")
        assert f"masks/{path.name}" in self.refuse(parts, tmp_path, "does not hold what it promises")
        go(tmp_path / "films", parts[0], (1, 2), verify=True)  # what the message says
        assert merge(parts, tmp_path / "all")["ok"] == 6

    @pytest.mark.parametrize("name", ["run.json", "shard.csv", "journal.jsonl"])
    @pytest.mark.parametrize("seed", range(12))
    def test_garbled_parts_get_sentences(self, parts, tmp_path, name, seed):
        path, chance = parts[1] / name, random.Random(seed)
        data = bytearray(path.read_bytes())
        for _ in range(chance.choice([1, 3, 30])):
            place = chance.randrange(max(1, len(data)))
            if chance.random() < 0.5 and data:
                data[place] = chance.randrange(256)
            else:
                del data[place : place + chance.randrange(40)]
        path.write_bytes(bytes(data))
        try:
            merge(parts, tmp_path / "all")
        except CxrError as error:
            assert len(str(error).split()) > 5
        else:  # garbled where nothing depends on it, such as a date
            assert len(list(rows(tmp_path / "all"))) == 6

    @pytest.mark.parametrize("facts", [[], {}, {"program": "cxr-pipeline"}, {"program": "cxr-pipeline", "finished": 1}])
    def test_a_run_json_of_something_else(self, parts, tmp_path, facts):
        (parts[0] / "run.json").write_text(json.dumps(facts))
        self.refuse(parts, tmp_path, str(parts[0]))

    @pytest.mark.parametrize("gone", ["version", "fingerprints", "counts", "promised", "shard", "seconds"])
    def test_a_run_json_without_something(self, parts, tmp_path, gone):
        info = json.loads((parts[0] / "run.json").read_text())
        del info[gone]
        (parts[0] / "run.json").write_text(json.dumps(info))
        try:
            merge(parts, tmp_path / "all")
        except ResultsError as error:
            assert str(parts[0]) in str(error)

    def test_the_same_name_in_two_parts(self, parts, tmp_path):
        first = json.loads(lines_of(parts[0])[0])

        def as_first(entry):
            entry["row"]["id"] = first["row"]["id"]
            entry["files"] = {}

        change_entry(parts[1], as_first)
        self.refuse(parts, tmp_path, "has the name of another one")

    @pytest.mark.parametrize(
        "evil", ["../../victim", "/etc/passwd", "..", "a/b", "a\\b", ".hidden", "a\x00b", "x" * 300]
    )
    def test_ids_that_climb(self, parts, tmp_path, evil):
        (tmp_path / "victim.png").write_bytes(b"mine")

        def climb(entry):
            entry["row"]["id"] = evil
            entry["files"] = {f"masks/{evil}.png": next(iter(entry["files"].values()))}

        change_entry(parts[0], climb)
        self.refuse(parts, tmp_path, "does not hold what it promises")
        assert (tmp_path / "victim.png").read_bytes() == b"mine"
        assert os.stat(tmp_path / "victim.png").st_nlink == 1


class TestRunGoesOn:
    @pytest.mark.parametrize(
        "change",
        [
            lambda entry: entry.pop("row"),
            lambda entry: entry["row"].pop("id"),
            lambda entry: entry["row"].update(id="../f0"),
            lambda entry: entry["row"].update(tb_score="high"),
            lambda entry: entry["row"].update(width="-3"),
            lambda entry: entry["row"].update(p_TB="nan"),
            lambda entry: entry.update(files={"../x.png": {"size": 1, "sha256": "0" * 64}}),
            lambda entry: entry.update(files={"masks/f0.png": 12}),
            lambda entry: entry.update(regions=[{"bbox": [1, 2]}]),
            lambda entry: entry.update(stage=5),
            lambda entry: entry.update(retry="no"),
        ],
    )
    def test_a_bad_line_costs_its_film_and_is_named(self, films, out, tmp_path, change, caplog):
        whole = tree(out)
        change_entry(out, change, number=2)
        with caplog.at_level(logging.WARNING):
            summary = go(films, out)
        assert (summary.already, summary.counts["ok"]) == (5, 6)
        assert "damaged lines are left out" in caplog.text
        assert ": 3" in caplog.text
        assert tree(out) == whole

    def test_a_name_in_a_warning_is_no_command_for_the_console(self, films, out, caplog):
        lines = lines_of(out)
        lines[0] = b'{"key": 5, "row": {"id": "\x1b]0;owned\x07\x1b[2Jx"}}\n'
        (out / "journal.jsonl").write_bytes(b"".join(lines))
        with caplog.at_level(logging.WARNING):
            go(films, out)
        assert "\x1b" not in caplog.text
        assert "[2Jx)" in caplog.text

    def test_two_lines_for_one_name(self, films, out):
        change_entry(out, lambda entry: entry["row"].update(id="f0") or entry.update(files={}), number=3)
        assert go(films, out).counts["ok"] == 6
        assert len({row["id"] for row in rows(out)}) == 6

    def test_a_changed_file_is_found_by_verify(self, films, out, monkeypatch):
        monkeypatch.setattr(filmfiles, "SAMPLE", 0)
        path = out / "masks" / "f3.png"
        data = path.read_bytes()
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        assert go(films, out).already == 6  # sizes alone do not show it
        assert go(films, out, verify=True).already == 5
        assert path.read_bytes() == data

    def test_a_sample_of_the_files_is_read_by_default(self, films, out, monkeypatch):
        monkeypatch.setattr(filmfiles, "SAMPLE", 1)
        path = out / "masks" / "f3.png"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        assert go(films, out).already == 5

    def test_a_folder_that_is_a_link_is_refused(self, films, tmp_path):
        (tmp_path / "mine").mkdir()
        go(films, tmp_path / "out")
        shutil.rmtree(tmp_path / "out" / "masks")
        (tmp_path / "out" / "masks").symlink_to(tmp_path / "mine")
        with pytest.raises(ResultsError, match="is a link"):
            go(films, tmp_path / "out")
        assert list((tmp_path / "mine").iterdir()) == []


class TestReaders:
    def test_a_report_shows_no_file_that_was_changed(self, out, tmp_path):
        (out / "masks" / "f3.png").write_bytes(b"\x89PNG")
        assert write_report(out).is_file()
        assert open_results(out).picture("f2", "masks").shape == (72, 96)

    @pytest.mark.parametrize("name", ["run.json", "journal.jsonl", "results.csv"])
    def test_a_pipe_is_not_waited_for(self, out, name):
        (out / name).unlink()
        os.mkfifo(out / name)
        began = time.monotonic()
        with pytest.raises((CxrError, OSError)):
            list(open_results(out).rows) if name == "results.csv" else write_report(out)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "folder"])
def test_a_lock_that_is_none_is_neither_waited_for_nor_followed(films, tmp_path, kind):
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    if kind == "pipe":
        os.mkfifo(out / ".lock")
    elif kind == "folder":
        (out / ".lock").mkdir()
    else:
        if kind == "link":
            target.write_text("mine")
        (out / ".lock").symlink_to(target)
    began = time.monotonic()
    with pytest.raises(LockError, match="Remove it"):
        FolderLock(out).acquire()
    with pytest.raises(ResultsError, match="Remove it"):
        go(films, out)
    assert time.monotonic() - began < 5
    assert target.exists() == (kind == "link")


class TestNames:
    NASTY = (
        "=1+1",
        "+cmd",
        "-2+3",
        "@SUM(A1)",
        "\tx",
        "a\rb",
        'q"uote',
        "new\nline",
        "'=quoted",
        "'plain",
        "\uff1dwide",
    )

    def test_no_cell_is_a_formula_and_every_one_comes_back(self, tmp_path, monkeypatch):
        given = tmp_path / "films"
        given.mkdir()
        for number, name in enumerate(self.NASTY):
            write_film(given / f"{name}.png", number)
        (given / "=bad.png").write_text("no film")
        monkeypatch.chdir(given)
        go(".", tmp_path / "out")
        with open(tmp_path / "out" / "results.csv", newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in "=+@\t\r-" and cell[:1]]
        assert {Path(row["image"]).name for row in rows(tmp_path / "out")} == {
            *(f"{name}.png" for name in self.NASTY),
            "=bad.png",
        }

    def test_names_given_alone_are_safe_too(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for number, name in enumerate(("=1+1.png", "-x.png", "@a.png")):
            write_film(tmp_path / name, number)
        Runner(chain(), tmp_path / "out").run(find_inputs(["=1+1.png", "-x.png", "@a.png"]))
        text = (tmp_path / "out" / "results.csv").read_text()
        assert "\n'=1+1.png," in text
        assert [row["image"] for row in rows(tmp_path / "out")] == ["=1+1.png", "-x.png", "@a.png"]
        assert open_results(tmp_path / "out").table["image"].tolist() == ["=1+1.png", "-x.png", "@a.png"]


class TestModes:
    def modes(self, folder):
        return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}, {
            stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*")) if path.is_dir()
        }

    @pytest.mark.parametrize(
        ("umask", "mode", "files", "folders"),
        [(0o022, 0o600, 0o600, 0o700), (0o022, 0o640, 0o640, 0o750), (0o077, 0o644, 0o600, 0o700)],
    )
    def test_results_are_for_their_owner_unless_asked(self, films, tmp_path, umask, mode, files, folders):
        before = os.umask(umask)
        try:
            go(films, tmp_path / "out", mode=mode)
        finally:
            os.umask(before)
        assert self.modes(tmp_path / "out") == ({files}, {folders})

    @pytest.mark.parametrize("mode", [0o600, 0o640])
    def test_a_report_is_for_those_of_the_results(self, films, tmp_path, mode):
        go(films, tmp_path / "out", mode=mode)
        assert stat.S_IMODE(write_report(tmp_path / "out").stat().st_mode) == mode


def test_what_killed_processes_left_is_swept_at_the_next_start(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hold = "import sys, time\nfrom cxr_pipeline.data.locks import temporary_folder\n"
    hold += "with temporary_folder('test') as f:\n print(f, flush=True)\n time.sleep(600)\n"
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, env=env) as process:
        left = Path(process.stdout.readline().strip())
        sweep_temporary()
        assert left.is_dir()  # its process lives
        assert stat.S_IMODE(left.stat().st_mode) == 0o700
        process.kill()
    (tmp_path / "cxr-link-1").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    with temporary_folder("test") as mine:
        assert not left.exists()
        assert mine.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cxr-link-1", "other"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal at a parent's death is Linux's")
def test_a_helper_ends_with_its_parent():
    helper = "import os, time\nfrom cxr_pipeline.data.locks import end_with_parent\n"
    helper += "end_with_parent(os.getppid())\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    parent = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {helper!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        number = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{number}").exists() and time.monotonic() < until:
        if "Z" in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[:1]:
            break  # ended, and nobody has asked for its code yet
        time.sleep(0.02)
    assert time.monotonic() < until


def test_a_parent_that_is_gone_already_is_seen():
    code = "import os\nfrom cxr_pipeline.data.locks import end_with_parent\nend_with_parent(1 << 22)\nos._exit(7)"
    answer = subprocess.run([sys.executable, "-c", code], check=False)
    assert answer.returncode == (1 if sys.platform.startswith("linux") else 7)
    assert end_with_parent.__doc__


def test_a_table_without_some_cells_is_read():
    assert list(csv_rows(["a,b\n", "1\n", "2,3,4\n"])) == [{"a": "1", "b": ""}, {"a": "2", "b": "3"}]
