"""A run with nothing to do writes nothing and opens nothing; whatever differs, it takes its usual way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_pipeline.results.folder import rows, run_info
from cxr_pipeline.results.outputs import chosen
from cxr_pipeline.run import helper
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from tests.pipeline.fake_chain import chain, tree, write_film

pytestmark = pytest.mark.usefixtures("kept_decoders")

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def films(tmp_path):
    """Four films, one of which cannot be read."""
    for number in range(3):
        write_film(tmp_path / "films" / f"f{number}.png", number)
    (tmp_path / "films" / "text.png").write_text("no film")
    return tmp_path / "films"


def go(films, out, stages=None, **options):
    how = {"workers": 2} | {
        name: options.pop(name) for name in ("outputs", "verify", "ready", "mode") if name in options
    }
    return Runner(stages or chain(), out, **how).run(find_inputs([films]), **options)


def states(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_nothing_to_do_writes_nothing_and_opens_nothing(films, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = go(films, out)
    before = states(out)
    monkeypatch.setattr(helper.Process, "__init__", lambda *_: pytest.fail("a helper process was started"))
    seen = []
    again = go(films, out, ready=lambda: pytest.fail("networks were opened"), progress=seen.append)
    assert again.unchanged
    assert not first.unchanged
    assert states(out) == before
    assert seen == [4]
    assert (again.counts, again.problems, again.work) == (first.counts, first.problems, first.work)
    assert (again.already, again.others) == (4, 0)


def test_films_of_other_inputs_are_counted_as_others(films, tmp_path):
    out = tmp_path / "out"
    go(write_film(tmp_path / "more" / "z.png", 9), out)
    go(films, out)
    again = go(films, out)
    assert again.unchanged
    assert (again.already, again.others) == (4, 1)


def changed_film(films, out):
    write_film(films / "f1.png", 77)


def new_film(films, out):
    write_film(films / "f9.png", 77)


def fewer_films(films, out):
    (films / "f2.png").unlink()


def no_mask(films, out):
    (out / "masks" / "f0.png").unlink()


def cut_mask(films, out):
    (out / "masks" / "f0.png").write_bytes(b"")


def edited_table(films, out):
    with (out / "results.csv").open("a") as file:
        file.write("mine\n")


def no_regions(films, out):
    (out / "regions.json").unlink()


def no_worklist(films, out):
    (out / "worklist.csv").unlink()


def stale_worklist(films, out):
    os.utime(out / "worklist.csv", ns=(0, 0))  # a run was killed between run.json and the worklist


def torn_journal(films, out):
    with (out / "journal.jsonl").open("ab") as file:
        file.write(b'{"key": ')


def unfinished(films, out):
    facts = json.loads((out / "run.json").read_text()) | {"finished": False}
    (out / "run.json").write_text(json.dumps(facts))


def older(films, out):
    facts = json.loads((out / "run.json").read_text())
    del facts["tables"]  # as a version of before, or `pipeline merge`, leaves it
    (out / "run.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    "change",
    [
        *(changed_film, new_film, no_mask, cut_mask, edited_table, no_regions, no_worklist, stale_worklist),
        *(torn_journal, unfinished, older, fewer_films),
    ],
)
def test_whatever_differs_is_mended(films, tmp_path, change):
    out = tmp_path / "out"
    go(films, out)
    change(films, out)
    again = go(films, out)
    assert not again.unchanged
    assert run_info(out)["finished"]
    go(films, tmp_path / "fresh")
    ours, fresh = tree(out), tree(tmp_path / "fresh")
    if change is not fewer_films:  # the film that is gone keeps its row
        assert ours == fresh
    assert len(list(rows(out))) == (5 if change is new_film else 4)
    assert go(films, out).unchanged


@pytest.mark.parametrize(
    "options", [{"outputs": chosen("all")}, {"mode": 0o640}, {"overwrite": True}, {"stages": chain("classify")}]
)
def test_another_call_is_no_repetition(films, tmp_path, options):
    go(films, tmp_path / "out")
    again = go(films, tmp_path / "out", **options)
    assert again.unchanged == ("stages" in options)  # a shorter chain asks for nothing that is not there


def test_a_changed_pixel_is_found_where_all_is_verified(films, tmp_path):
    out = tmp_path / "out"
    go(films, out)
    path = out / "masks" / "f0.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert not go(films, out, verify=True).unchanged


def test_the_command_imports_no_runtime_and_keeps_its_report(tmp_path):
    """The shipped weights, as a process: no runtime is imported, and report.html stays the file that it is."""
    call = ["run", str(write_film(tmp_path / "a.png")), "--out", str(tmp_path / "out"), "--no-refuse"]
    subprocess.run([sys.executable, "-m", "cxr_pipeline.cli.main", *call], env=ENV, check=True, capture_output=True)
    before = states(tmp_path / "out")
    code = f"import sys; from cxr_pipeline.cli import main; main._call({call!r}); print('|', *sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True)
    assert "done already" in answer.stdout
    assert "report.html" in answer.stdout
    heavy = {"onnxruntime", "pandas", "openpyxl", "scipy", "skimage", "sklearn", "pydicom", "matplotlib"}
    assert not set(answer.stdout.rpartition("|")[2].split()) & heavy
    assert states(tmp_path / "out") == before


def test_a_run_without_a_report_gets_one_and_with_no_report_loses_it(tmp_path):
    from cxr_pipeline.cli import main

    call = ["run", str(write_film(tmp_path / "a.png")), "--out", str(tmp_path / "out"), "--no-refuse"]
    report = tmp_path / "out" / "report.html"
    assert main._call([*call, "--no-report"]) == 0
    before = (tmp_path / "out" / "run.json").stat().st_mtime_ns
    for more, there in (([], True), (["--no-report"], False)):
        assert main._call([*call, *more]) == 0
        assert report.exists() == there
    assert (tmp_path / "out" / "run.json").stat().st_mtime_ns == before
