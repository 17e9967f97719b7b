"""Chains that the workers of a Ray cluster open in tests: what a cluster has to live through.

Run as a script it is a driver to kill: ``python -m tests.pipeline.ray_chains INPUT OUT DELAY``.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path

from cxr_pipeline.results import filmfiles
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.run.runner import identity_of
from cxr_pipeline.run.spec import ChainSpec
from tests.pipeline import fake_chain


def fake(threads=None, **options):
    """The fake chain; `options` as in `fake_chain.chain`."""
    stages = fake_chain.chain(**options)
    return Chain(stages, identity_of(stages), {})


def killed_once(film, marker, threads=None):
    """The shipped chain; the first worker that comes to a film is killed there, in the middle of its block."""
    opened = ChainSpec(threads=threads).open()
    segment = opened.stages[0]
    run = segment.run

    def judged(records):
        if any(record.radiograph.id == film for record in records) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run(records)

    segment.run = judged
    return opened


def deadly(film, threads=None):
    """The fake chain, in which one film ends the process that judges it, as a crash in a library would."""
    opened = fake()
    judge = fake_chain.FakeSegment.judge

    def judged(record):
        if record.radiograph.id == film:
            os.kill(os.getpid(), signal.SIGKILL)
        judge(opened.stages[0], record)

    opened.stages[0].judge = judged
    return opened


def full(threads=None):
    """The fake chain on a machine whose disk takes nothing."""

    def write(path, data, **_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    filmfiles.write_whole = write
    return fake()


if __name__ == "__main__":
    from cxr_pipeline.run.engines.ray import RayRunner
    from cxr_pipeline.run.inputs import find_inputs

    source, target, pause = sys.argv[1:4]
    opening = partial(fake, delay=float(pause))
    RayRunner(opening().stages, Path(target), opening=opening, batch_size=1, workers=2).run(find_inputs([source]))
