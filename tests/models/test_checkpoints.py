"""Two checkpoints are kept, each whole or passed over; a full disk stops a training with a sentence."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cxr_pipeline.models.training.checkpoints import Checkpoint, Checkpoints
from cxr_pipeline.models.training.errors import TrainingError, full_disk_named
from tests.models.test_fit import make_training, run

# How steps are compiled is no matter here: `test_fit.py` holds trainings that go on to the same ends with it.
pytestmark = pytest.mark.usefixtures("eagerly")


def kept(folder):
    return sorted(path.name for path in folder.glob("epoch-*"))


def store(folder):
    one = Checkpoints(folder, "settings")
    one.open()
    return one


def test_the_two_newest_are_kept_and_come_back_as_they_were(tmp_path):
    draw = np.random.default_rng(0)
    one = store(tmp_path / "checkpoint")
    assert one.newest() is None
    for number in (9, 10, 11):
        arrays = {"weights": [draw.random((3, number)).astype(np.float32), np.array(number)], "none": []}
        one.keep(number, Checkpoint({"history": [{"epoch": number}], "best": None}, arrays))
    assert kept(one.folder) == ["epoch-0010.checkpoint", "epoch-0011.checkpoint"]
    back = store(tmp_path / "checkpoint").newest()
    assert back.state == {"history": [{"epoch": 11}], "best": None}
    assert back.arrays["none"] == []
    for wanted, found in zip(arrays["weights"], back.arrays["weights"], strict=True):
        np.testing.assert_array_equal(wanted, found)
        assert wanted.dtype == found.dtype


def test_what_a_kill_left_half_written_goes_when_the_training_goes_on(tmp_path):
    store(tmp_path).keep(1, Checkpoint({"n": 1}, {"weights": [np.zeros(4)]}))
    left = tmp_path / ".epoch-0002.checkpoint.0123abcd.part"
    left.write_bytes(b"half")
    assert store(tmp_path).newest().state == {"n": 1}
    assert not left.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda content: b"\x00" * len(content),
    ],
)
def test_a_damaged_one_falls_back_to_the_other(tmp_path, caplog, damage):
    one = store(tmp_path)
    for number in (1, 2):
        one.keep(number, Checkpoint({"n": number}, {"weights": [np.full(4, number)]}))
    newest = tmp_path / "epoch-0002.checkpoint"
    newest.write_bytes(damage(newest.read_bytes()))
    assert one.newest().state == {"n": 1}
    assert "epoch-0002.checkpoint is damaged" in caplog.text


@pytest.fixture(scope="module")
def undisturbed(eagerly, tmp_path_factory):
    """A training that nothing stops: its model and its history."""
    model, history, _ = run(tmp_path_factory.mktemp("whole"))
    return model, history


@pytest.fixture(scope="module")
def stopped(eagerly, tmp_path_factory):
    """Copies of a training that was stopped at a moment, by it."""
    made = {}

    def copied(out, *moment):
        if moment not in made:
            made[moment] = tmp_path_factory.mktemp("stopped") / "out"
            with pytest.raises(KeyboardInterrupt):
                run(made[moment], stop_at=moment)
        shutil.copytree(made[moment], out)

    return copied


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_training_goes_on_from_what_is_whole_and_ends_alike(tmp_path, damaged, undisturbed, stopped):
    whole, history = undisturbed
    stopped(tmp_path / "cut", "fine", 1, 2)
    paths = sorted((tmp_path / "cut" / "checkpoint").glob("epoch-*"))
    for path in paths[-damaged:]:
        path.write_bytes(path.read_bytes()[:-1])
    again, resumed, seen = run(tmp_path / "cut")
    assert seen[0] == [("fine", 0, 1), ("head", 0, 1)][damaged - 1]
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in history], abs=1e-5)
    for one, two in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_no_room_is_found_before_anything_is_written(tmp_path, monkeypatch, stopped):
    out = tmp_path / "out"
    stopped(out, "head", 1, 1)
    before = kept(out / "checkpoint")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    message = rf"the disk of {out}.*checkpoint is full: .* MB are to be written, and 0\.0 MB are free\. Make room.*same"
    with pytest.raises(TrainingError, match=message):
        run(out)
    assert kept(out / "checkpoint") == before
    monkeypatch.undo()
    _, resumed, seen = run(out)
    assert seen[0] == ("head", 1, 1)
    assert len(resumed) == 5


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_it_is_written_to_loses_nothing(tmp_path, monkeypatch, code, undisturbed, stopped):
    """A quota does not show in the free space: the write itself fails."""
    out = tmp_path / "out"
    stopped(out, "head", 1, 1)

    def full(_handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="is full: .*Make room"):
        run(out)
    monkeypatch.undo()
    assert not list(out.rglob("*.part"))
    whole, history = undisturbed
    again, resumed, _ = run(out)
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in history], abs=1e-5)
    for one, two in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), full_disk_named(tmp_path):
        raise PermissionError(errno.EACCES, "no")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.4 MB, where this machine lets a process mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    size = "size=1400k"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


CODE = """
import sys
from pathlib import Path
import tensorflow as tf
from tests.models.test_fit import run
from cxr_pipeline.models.training.errors import TrainingError
tf.config.run_functions_eagerly(True)
out = Path(sys.argv[1])
try:
    run(out)
except TrainingError as error:
    print(error)
else:
    sys.exit("the disk was not full")
(out.parent / "filler").unlink()
model, history, seen = run(out)
print(len(history), seen[0])
"""


def test_a_training_on_a_full_disk_ends_with_a_sentence_and_goes_on_after_room_is_made(small_disk):
    (small_disk / "filler").write_bytes(b"x" * 380_000)
    call = [sys.executable, "-c", CODE, str(small_disk / "out")]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(call, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said, trained = done.stdout.splitlines()
    assert "is full" in said
    assert "Make room" in said
    assert trained.startswith("5 ")


def test_settings_are_not_mixed_up(tmp_path):
    training, _ = make_training(tmp_path, settings="a")
    training.checkpoints.open()
    with pytest.raises(TrainingError, match="unfinished training with other settings"):
        make_training(tmp_path, settings="b")[0].run()
