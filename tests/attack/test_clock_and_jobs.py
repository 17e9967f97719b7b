"""The clock is set while the program runs, and jobs are asked for by those who do not know their names."""

from __future__ import annotations

import os
import time

import pytest

pytest.importorskip("fastapi", reason="the extra [web] is not installed")

from cxr_pipeline.data import locks
from cxr_pipeline.run.inputs import find_inputs
from cxr_pipeline.run.runner import Runner
from tests.pipeline.fake_chain import chain, tree, write_film
from tests.pipeline.web_server import done, one, png, serving

DAY = 86_400.0


@pytest.fixture(params=[-400 * DAY, 400 * DAY], ids=["back", "forward"])
def moved(request, monkeypatch):
    """The wall clock, more than a year away; the monotonic one goes on."""
    real = time.time
    return lambda: monkeypatch.setattr(time, "time", lambda: real() + request.param)


def test_a_folder_in_use_outlives_a_clock_that_is_set(moved, tmp_path, monkeypatch):
    monkeypatch.setattr(locks.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(locks.tempfile, "tempdir", str(tmp_path))
    with locks.temporary_folder("clock") as mine:
        moved()
        locks.sweep_temporary()
        assert mine.is_dir()
    left = tmp_path / f"{locks.TEMPORARY}clock-dead"
    left.mkdir()
    (left / ".lock").touch()
    locks.sweep_temporary()
    assert not left.exists()


def test_a_job_is_not_forgotten_by_a_clock_that_is_set(moved):
    with serving(forget_after=5) as client:
        job = client.post("/v1/jobs", files=one(png())).json()["id"]
        moved()
        assert done(client, job)["films"]


def test_a_run_goes_on_over_a_clock_that_is_set(moved, tmp_path):
    for number in range(4):
        write_film(tmp_path / "films" / f"f{number}.png", number, lungs=0.1 * number)
    inputs = find_inputs([tmp_path / "films"])
    Runner(chain(), tmp_path / "whole", workers=1).run(inputs)
    Runner(chain(), tmp_path / "out", workers=1).run(inputs[:2])
    moved()
    for film in (tmp_path / "films").iterdir():
        os.utime(film, (time.time(), film.stat().st_mtime))
    summary = Runner(chain(), tmp_path / "out", workers=1).run(inputs)
    assert summary.already == 2
    skipped = ("journal.jsonl", "run.json")
    one_, other = ({k: v for k, v in tree(tmp_path / name).items() if k not in skipped} for name in ("out", "whole"))
    assert one_ == other


def test_a_job_is_found_by_its_whole_name_alone():
    with serving() as client:
        job = client.post("/v1/jobs", files=one(png())).json()["id"]
        done(client, job)
        assert len(job) == 32
        others = [
            job[:-1] + ("0" if job[-1] != "0" else "1"),
            job[:31],
            job.upper() + "x",
            "0" * 32,
            f"{job}%2f..",
            "*",
        ]
        answers = [client.get(f"/v1/jobs/{name}") for name in others]
        assert {answer.status_code for answer in answers} <= {404, 422}
        assert not any(job in answer.text for answer in answers[:1] + answers[3:4])
        assert client.get("/v1/jobs").status_code in (404, 405), "no list of jobs"
