"""Films through a chain: the one place that calls stages on records, and that catches what a film breaks."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from cxr_pipeline.stages.base import FAILED, Crash, Record, Stage


def apply(
    chain: Sequence[Stage],
    records: Sequence[Record],
    *,
    masks: Sequence[np.ndarray | None] | None = None,
    timed: Callable[[str], AbstractContextManager[object]] | None = None,
) -> list[Record]:
    """Put films through the stages of a chain, in batches; a film that makes a stage raise fails alone.

    Where a stage raises on a batch, its films are tried one by one. The one to blame keeps what earlier stages filled
    in, gets the status "failed", and a `crash` that says where and why; later stages pass it over.

    Args:
        chain: loaded stages, in order.
        records: films; those that are not ok pass untouched.
        masks: (H, W) uint8 0/1 of each film, which an earlier run found, for the first stage to take over; None where
            it has to find them.
        timed: called with each stage's name, gives a context that counts the seconds of a block.

    Returns:
        The records, in the same order.
    """
    out = list(records)
    known = list(masks) if masks is not None else [None] * len(out)
    for number, stage in enumerate(chain):
        with timed(stage.name) if timed is not None else nullcontext():
            todo = [place for place, record in enumerate(out) if record.ok]
            if number == 0 and stage.restorable:
                for place in todo:
                    if (mask := known[place]) is not None:
                        _try(stage.name, out, [place], _restoring(stage, mask))
                todo = [place for place in todo if known[place] is None]
            if todo and not _try(stage.name, out, todo, stage.run):
                for place in todo:
                    _try(stage.name, out, [place], stage.run)
    return out


def _restoring(stage: Stage, mask: np.ndarray) -> Callable[[list[Record]], list[Record]]:
    return lambda films: [stage.restore(films[0], mask)]


def _try(name: str, out: list[Record], places: list[int], step: Callable[[list[Record]], list[Record]]) -> bool:
    """Put films through a step. Where it raises, they stay as they were, and a single one becomes failed."""
    before = [replace(out[place], extra=dict(out[place].extra)) for place in places]
    try:
        after = step([out[place] for place in places])
        if len(after) != len(places):
            raise RuntimeError(f"it returned {len(after)} records for {len(places)}")
    except Exception as error:  # of whatever kind: it costs the film that it is about, and nothing else
        for place, record in zip(places, before, strict=True):
            out[place] = record
        if len(places) == 1:
            out[places[0]] = crashed(before[0], name, error)
        return len(places) == 1
    for place, record in zip(places, after, strict=True):
        out[place] = record
    return True


def crashed(record: Record, step: str, error: BaseException) -> Record:
    """The record as failed by an exception that nobody foresaw, raised in `step`: a stage, or such as "reading"."""
    message = " ".join(str(error).split()) or "no message"
    kind = type(error).__name__
    crash = Crash(step, kind, message, where(error), "".join(traceback.format_exception(error)))
    return replace(record, status=FAILED, error=f"{step}: {kind}: {message[:300]}", crash=crash)


def where(error: BaseException) -> str:
    """The type of an error and the line that raised it. Not its text: that may quote a film's header."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"
