"""The command `pipeline read`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import click

from cxr_pipeline.cli.commands import DONE, command, language_option


@command
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="RESULTS")
@click.option("--reader", default="reader", show_default=True, metavar="NAME", help="Who reads; each reads apart.")
@click.option(
    "--films",
    type=click.IntRange(1),
    metavar="N",
    help="How many to draw.  [default: 200, or those of before]",
)
@click.option(
    "--blind/--not-blind", default=True, show_default=True, help="Whether score, answer, heat and boxes are hidden."
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="Another draws other films.  [default: 0, or that of before]",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the page, on this machine.  [default: free]")
@click.option("--labels", is_flag=True, help="Only write the labels of what was read, and how far readers agree.")
@language_option
def read(
    results: Path,
    reader: str,
    films: int | None,
    blind: bool,
    seed: int | None,
    port: int,
    labels: bool,
    language: str | None,
) -> int:
    """Read films of a run on a page, one key for each answer, and end with labels that calibrate.

    The films are drawn so that few teach much: near the threshold, spread over the scores, and some of any kind, each
    with its weight. Every click is on the disk at once; the same command goes on. Readers of one folder get the same
    films in the same order, each apart from the others.

    \b
    Leaves in RESULTS/reading:
      labels.csv       a manifest with weights, for calibrate, plan and train
      NAME.jsonl       what each reader clicked
      agreement.json   Cohen's kappa of each two readers

    \b
    Example:
      pipeline read results --reader asha
      pipeline calibrate --data results/reading/labels.csv --site ours
      pipeline screen results --site ours.yaml
    """
    from cxr_pipeline.reading.labels import agreement, agreement_said
    from cxr_pipeline.reading.session import Session

    session = Session(results, reader, count=films, blind=blind, seed=seed)
    if not labels:
        from cxr_pipeline.web import check_installed

        check_installed()
        from cxr_pipeline.reading.server import serve

        click.echo(f"{len(session.sample)} films, {len(session.clicks.answers)} of them read by {reader}.")
        if session.gone:
            first = next(film["image"] for film in session.sample if film["id"] in session.gone)
            click.echo(f"{len(session.gone)} of them are not where they were and are skipped, such as {first}.")
        serve(session, port=port, language=language or "en", tell=lambda page: click.echo(f"Page      {page}"))
    path = session.write()
    click.echo(f"{len(session.clicks.answers)} of {len(session.sample)} films read by {reader}.")
    for line in agreement_said(agreement(session.everyone())):
        click.echo(line)
    click.echo(f"Labels    {path}")
    click.echo(f"Use them: pipeline calibrate --data {path} --site NAME, pipeline plan {results} --data {path}")
    return DONE
