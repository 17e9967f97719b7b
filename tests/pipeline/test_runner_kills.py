"""A run that is killed, cut off or interrupted, anywhere: nothing is lost, and the same call goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_pipeline.data.radiograph import read
from cxr_pipeline.results.folder import ResultsError, rows
from tests.pipeline.fake_chain import chain, hears_ctrl_c, tree, write_film
from tests.pipeline.test_runner import go

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def script(films, out, delay, judges=1, **options):
    command = [sys.executable, "-m", "tests.pipeline.fake_chain", str(films), str(out), str(delay), str(judges)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=ENV, preexec_fn=hears_ctrl_c, **pipes, **options)


def wait_for_lines(path, count, process):
    while process.poll() is None and not (path.is_file() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.002)


KILLS = int(os.environ.get("CXR_KILLS", "12"))  # 20 before a release: each may take as long as a start


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_like_an_undisturbed_run(tmp_path):
    folder = tmp_path / "films"
    for number in range(40):
        write_film(folder / "ab"[number % 2] / f"{number // 2}.png", number, lungs=0.015 * (number % 20))
    write_film(folder / "poison.png", 50)
    write_film(folder / "white.png", 51, lungs=0.7)
    (folder / "empty.png").touch()
    with script(folder, tmp_path / "whole", 0) as process:
        assert process.wait() == 0, process.stdout.read()
    chance, out, kills = random.Random(0), tmp_path / "out", 0
    for attempt in range(KILLS + 48):
        with script(folder, out, 0.01, judges=1 + attempt % 2) as process:
            lines = (out / "journal.jsonl").read_bytes().count(b"\n") if (out / "journal.jsonl").is_file() else 0
            if attempt < KILLS:  # somewhere in the next few films, or while the folder is opened
                wait_for_lines(out / "journal.jsonl", lines + chance.choice([0, 1, 2, 5]), process)
                time.sleep(chance.uniform(0, 0.03))
                process.kill()
                process.wait()
                kills += process.returncode == -signal.SIGKILL
            else:
                assert process.wait() == 0, process.stdout.read()
                break
    assert kills >= 2 * KILLS // 3
    assert tree(out) == tree(tmp_path / "whole")
    assert not list(out.rglob("*.part"))


class _Killed(BaseException):
    """Ends everything, like a kill."""


def test_cut_off_at_every_rename_it_ends_like_an_undisturbed_run(tmp_path, monkeypatch):
    folder = tmp_path / "films"
    for number in range(3):
        write_film(folder / f"{number}.png", number, lungs=0.1 + 0.1 * number)
    (folder / "empty.png").touch()
    alone = {"workers": 1, "reader": read}  # no helpers, of which each call would start one: they rename nothing
    go(folder, tmp_path / "whole", **alone)
    whole = tree(tmp_path / "whole")
    rename, calls, last = os.replace, [], []

    def cut(source, target):
        calls.append(target)
        if len(calls) == last[-1]:
            raise _Killed
        rename(source, target)

    for number in range(1, 100):
        out = tmp_path / f"out{number}"
        last.append(number)
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", cut)
            try:
                go(folder, out, **alone)
            except _Killed:
                pass
            else:
                break
        go(folder, out, **alone)
        assert tree(out) == whole, calls[-1]
    assert number > 10


@pytest.mark.slow
@pytest.mark.parametrize("judges", [1, 2])
def test_interrupted_it_stops_soon_and_goes_on(tmp_path, judges):
    folder = tmp_path / "films"
    for number in range(30):
        write_film(folder / f"{number}.png", number)
    with script(folder, tmp_path / "out", 0.05, judges) as process:
        wait_for_lines(tmp_path / "out" / "journal.jsonl", 3, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    assert process.returncode != 0
    assert "KeyboardInterrupt" in output  # the command turns it into words and a code
    done = len(list(rows(tmp_path / "out")))
    assert 3 <= done < 30
    stages = chain(raises_on=("poison",))
    assert go(folder, tmp_path / "out", stages).already == done
    go(folder, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_only_one_run_works_in_a_folder(tmp_path):
    folder = tmp_path / "films"
    for number in range(20):
        write_film(folder / f"{number}.png", number)
    with script(folder, tmp_path / "out", 0.2) as process:
        wait_for_lines(tmp_path / "out" / "journal.jsonl", 1, process)
        with pytest.raises(ResultsError, match="another run is working"):
            go(folder, tmp_path / "out")
        process.kill()
    assert go(folder, tmp_path / "out").counts["ok"] == 20
