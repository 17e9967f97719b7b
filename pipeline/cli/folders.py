"""The commands on the folder of a finished run: screen, merge and report. Imports nothing heavy."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cxr_pipeline.cli.commands import (
    DONE,
    SOME_FAILED,
    command,
    debugging,
    explained,
    language_option,
    parsed_mode,
    threshold_option,
    workers_option,
)

if TYPE_CHECKING:
    from cxr_pipeline.report.pictures import Pictures


def report_at_end(out: Path, films: int, wanted: bool | None, pictures: Pictures | None = None) -> None:
    """The report that ends a run. It is made from the results, which are there whatever becomes of it.

    `pictures` are of films that the run has just judged.
    """
    from cxr_pipeline.data.progress import progress_bar
    from cxr_pipeline.report.report import EMBEDDED, write_report

    again = f"pipeline report {out}"
    if wanted is None and films > EMBEDDED:
        click.echo(f"No report.html by default for more than {EMBEDDED} films. Make it: {again}", err=True)
    elif wanted is not False:
        try:
            with progress_bar("report", films) as progress:
                path = write_report(out, progress=progress, pictures=pictures)
        except KeyboardInterrupt:
            click.echo(f"\nStopped. The results are complete, without report.html. Make it: {again}", err=True)
        except Exception as error:
            if debugging():
                traceback.print_exc()
            message = f"The results are complete, but report.html could not be written ({explained(error)})."
            click.echo(f"{message} Try again: {again}", err=True)
        else:
            click.echo(f"Report    {path}")  # outside: a pipe that is closed is no fault of the report


@command
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@threshold_option
@click.option(
    "--site",
    type=click.Path(),
    metavar="FILE",
    help="Site file of `pipeline calibrate`; none: back to the weights' own decisions.",
)
@click.option(
    "--report/--no-report",
    default=None,
    help="Write report.html at the end.  [default: up to 2000 films in the folder]",
)
def screen(folder: Path, threshold: float | None, site: str | None, report: bool | None) -> int:
    """Decide the films of a finished folder again, in seconds: no network runs, and no film is read.

    Labels, screening answers, scores, warnings of doubt, the worklist and the overlays' captions are made anew. Masks,
    heat maps and boxes stay as the run drew them.

    \b
    Examples:
      pipeline screen results --threshold 40        positive from a score of 40 on
      pipeline screen results --site ours.yaml      as the site file of `pipeline calibrate` decides
      pipeline screen results --site none           back to what the weights decide
    """
    from cxr_pipeline.run.screen import screen as decide
    from cxr_pipeline.run.screen import summary

    given: Path | Literal["none"] | None = "none" if site == "none" else Path(site) if site is not None else None
    screened = decide(folder, threshold=threshold, site=given)
    click.echo(summary(screened, folder))
    report_at_end(folder, screened.films, report)
    return DONE


@command
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="DIR...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for all results.")
@click.option("--mode", callback=parsed_mode, metavar="OCTAL", help="Permissions of the results.  [default: 600]")
def merge(folders: tuple[Path, ...], out: Path, mode: int) -> int:
    """Join the folders of all shards of a run, as if one run had judged all inputs.

    Every part is checked first: its list of films, and the checksums of its files. If anything is missing, nothing is
    written.

    \b
    Example:
      pipeline merge part1 part2 --out results
    """
    from cxr_pipeline.results.merge import merge as join

    counts = join(folders, out, mode=mode)
    click.echo(f"{sum(counts.values())} films in {out}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    return SOME_FAILED if counts["refused"] or counts["failed"] else DONE


@command
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR")
@workers_option
@language_option
def report(folder: Path, workers: int | None, language: str | None) -> int:
    """Make report.html of a folder that `run`, `merge` or `train` left: one page, which needs no other file.

    \b
    For a run:       counts, scores, reasons, a table to sort and filter, every film with its lungs, heat map and boxes.
    For a training:  curves, figures with intervals, confusion matrix, ROC, reliability, worst cases, settings.

    A run's page holds small copies of the films, so treat it like the films themselves. With more than 2000 films, the
    page holds those with the highest scores, about 20 KB each, and links to the overlays of the others.

    \b
    Example:
      pipeline report results
    """
    from cxr_pipeline.data.progress import progress_bar
    from cxr_pipeline.report.report import write_report
    from cxr_pipeline.report.training import is_training, write_training_report

    if is_training(folder):
        path = write_training_report(folder)
    else:
        with progress_bar("report", None) as progress:
            path = write_report(folder, workers=workers, progress=progress, language=language)
    click.echo(f"Report    {path}")
    return DONE
