"""Progress of long work, on stderr, so that results on stdout stay clean: a bar on a terminal, else a line now and
then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

FIRST, EVERY = 10.0, 30.0  # seconds to the first line, and between lines, where stderr is no terminal


class Lines:
    """Progress in lines, for a stderr that is a file or a pipe: a log of a job shows that it goes on, and how long yet.

    Args:
        write: takes a line. now: seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        write: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description, self._total, self._write, self._now = description, total, write, now
        self._due = now() + FIRST
        self._first: tuple[int, float] | None = None  # of this description: how far, and when

    def update(self, completed: int, description: str | None = None, total: int | None = None) -> None:
        """Say how far it is, where a line is due."""
        now = self._now()
        if description is not None and description != self._description:
            self._description, self._first = description, None
        self._total = total if total is not None else self._total
        if self._first is None or completed < self._first[0]:
            self._first = completed, now
        if now < self._due:
            return
        self._due = now + EVERY
        before, since = self._first
        left = ""
        if self._total is not None and completed > before:
            left = f", about {_clock((now - since) / (completed - before) * (self._total - completed))} left"
        self._write(f"{self._description}: {completed}{'' if self._total is None else f' of {self._total}'}{left}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Progress of one piece of work; yields ``update(completed, description=None, total=None)``."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(description, total, _line).update
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(description, total=total)

        def update(completed: int, description: str | None = None, total: int | None = None) -> None:
            if description is not None:
                bars.update(task, completed=completed, description=description)
            bars.update(task, completed=completed, total=total)

        yield update


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, one by one, with a bar that counts them."""
    with progress_bar(description, total) as update:
        for number, item in enumerate(items, 1):
            yield item
            update(number)
