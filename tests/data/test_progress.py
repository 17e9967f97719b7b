"""Progress where stderr is no terminal: a line now and then, with the time that is left."""

from __future__ import annotations

import subprocess
import sys

from cxr_pipeline.data.progress import EVERY, FIRST, Lines


def test_a_line_comes_soon_and_then_every_half_minute_within_the_first_epoch():
    clock, lines = [0.0], []
    shown = Lines("classify", None, lines.append, lambda: clock[0])
    for batch in range(1, 101):  # two seconds each
        clock[0] = 2.0 * batch
        shown.update(batch, "classify fine epoch 1/4", 100)
    assert lines[0] == "classify fine epoch 1/4: 5 of 100, about 3:10 left"
    assert lines[1] == "classify fine epoch 1/4: 20 of 100, about 2:40 left"
    assert len(lines) == 1 + int((200 - FIRST) // EVERY)


def test_a_new_epoch_has_a_pace_of_its_own():
    clock, lines = [0.0], []
    shown = Lines("x", 10, lines.append, lambda: clock[0])
    for step, (done, name) in enumerate([(1, "a"), (2, "a"), (1, "b"), (2, "b")]):
        clock[0] = 100.0 * step + (3500.0 if name == "b" else 0.0)
        shown.update(done, name)
    assert lines == ["a: 2 of 10, about 13:20 left", "b: 1 of 10", "b: 2 of 10, about 13:20 left"]


def test_quick_work_says_nothing():
    code = """
from cxr_pipeline.data.progress import track
print(sum(track(range(5), 'five')))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("10\n", "")
