"""Progress bars for long work: on a terminal only, on stderr, so that results on stdout stay clean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar; yields ``update(completed, description=None, total=None)``. Shows nothing when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        task = bars.add_task(description, total=total)

        def update(completed: int, description: str | None = None, total: int | None = None) -> None:
            changes = {"description": description, "total": total}
            bars.update(task, completed=completed, **{k: v for k, v in changes.items() if v is not None})

        yield update


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, one by one, with a bar that counts them."""
    with progress_bar(description, total) as update:
        for number, item in enumerate(items, 1):
            yield item
            update(number)
