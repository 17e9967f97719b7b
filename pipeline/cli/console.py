"""What a run says while it works and at its end: a bar on a terminal, sparse plain lines elsewhere, then a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cxr_pipeline.about import NOTICE

if TYPE_CHECKING:
    from cxr_pipeline.run.runner import Summary

_EVERY = 30.0  # seconds between plain lines
_SETTLED = 5.0  # seconds after which the pace so far tells when it will end


@contextmanager
def run_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of films finished; shows it on stderr."""
    if sys.stderr.isatty():
        from cxr_pipeline.data.progress import progress_bar

        with progress_bar("films", total) as update:
            yield update
    else:
        yield _PlainProgress(total)


class _PlainProgress:
    """A line for the first film, then one in half a minute."""

    def __init__(self, total: int) -> None:
        self._total, self._begun, self._last = total, time.monotonic(), float("-inf")

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last < _EVERY or done == self._total:
            return
        self._last = now
        left = (self._total - done) * (now - self._begun) / done
        left_text = f", about {left / 60:.0f} min left" if left >= 120 else f", about {left:.0f} s left"
        click.echo(f"{done} of {self._total} films done{left_text if now - self._begun > _SETTLED else ''}", err=True)


def print_summary(summary: Summary) -> None:
    """Counts, what was not judged and why, where everything is, and what it is for; on stdout."""
    from cxr_pipeline.data.names import printable
    from cxr_pipeline.results.folder import run_info

    click.echo()
    if summary.work is not None:
        click.echo(summary.work.summary())
    else:
        click.echo(", ".join(f"{count} {status}" for status, count in summary.counts.items()))
    if summary.already:
        click.echo(f"{summary.already} of them were done already and were left as they are.")
    if summary.others:
        click.echo(f"{summary.others} of them were not asked for: the folder holds them of earlier runs.")
    click.echo()
    for status, image, error in summary.problems:
        click.echo(printable(f"{status}: {image}: {error}"))
    more = summary.counts["refused"] + summary.counts["failed"] - len(summary.problems)
    if more > 0:
        click.echo(f"and {more} more, all in results.csv")
    if summary.problems:
        click.echo()
    out = summary.out
    if summary.work is not None and run_info(out).get("classes"):  # without a classifier nothing says what to read
        if summary.work.excel_missing:
            click.echo("No worklist.xlsx: it needs openpyxl (pip install 'cxr-pipeline[excel]').")
        click.echo(f"Worklist  {out / 'worklist.csv'}")
    click.echo(f"Table     {out / 'results.csv'}")
    for name in ("overlays", "masks", "heatmaps", "crops", "regions.json"):
        if (out / name).exists():
            click.echo(f"{name.removesuffix('.json').capitalize():10}{out / name}")
    total = summary.seconds["total"]
    films = sum(summary.counts.values())
    click.echo(f"{films} {'film' if films == 1 else 'films'} in {total:.1f} s. {NOTICE}")
