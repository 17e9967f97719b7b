"""`pipeline deidentify`: films that may leave the house."""

from __future__ import annotations

from pathlib import Path

import click

from cxr_pipeline.cli.commands import DONE, SOME_FAILED, command


@command
@click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder for the films.")
@click.option(
    "--text",
    type=click.Choice(("blank", "flag", "keep")),
    default="blank",
    show_default=True,
    help="Text burnt into the border: fill it, put the film aside, or do not look.",
)
@click.option("--keep-intervals", is_flag=True, help="Move the dates of a patient by one number of days; else they go.")
def deidentify(inputs: tuple[Path, ...], out: Path, text: str, keep_intervals: bool) -> int:
    """Remove from films what says whose they are: DICOM headers by PS3.15, metadata of PNG and JPEG, burnt-in text.

    Patients, studies and films get pseudonyms of the site (see CXR_SITE_SECRET), so that they still belong together.
    OUT/report.csv tells what was done with each film; OUT-key.csv beside it says which file it was, and must stay here.

    No program finds all text, and faces or rare findings may identify too: look at the films before they leave.

    \b
    Example:
      pipeline deidentify films/ --out shareable
    """
    from cxr_pipeline.dicom.deidentify import FLAGGED, key_file, rules
    from cxr_pipeline.dicom.deidentify import deidentify as write
    from cxr_pipeline.dicom.pseudonyms import site_secret

    how = rules(site_secret(), text, keep_intervals=keep_intervals)
    counts = write(inputs, out, how)
    click.echo(f"{counts.ok} films in {out}, {counts.flagged} in {out / FLAGGED}, {counts.left_out} left out")
    click.echo(f"What was done: {out / 'report.csv'}. Which file is which, to keep here: {key_file(out)}")
    click.echo("No program finds all text: look at the films before they leave.", err=True)
    return SOME_FAILED if counts.left_out else DONE
