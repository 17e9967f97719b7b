"""The command `pipeline`. It parses, then calls; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_pipeline.cli import (  # noqa: F401  (their commands join the group)
    deidentify,
    export,
    folders,
    hospital,
    imports,
    read,
    tools,
    training,
    web,
)
from cxr_pipeline.cli.commands import (
    DONE,
    INTERRUPTED,
    STAGES,
    WRONG,
    cli,
    command,
    debugging,
    engine_options,
    explained,
    language_option,
    parsed_mode,
    runtime_option,
    site_option,
    threshold_option,
    weights_option,
    workers_option,
)
from cxr_pipeline.cli.folders import report_at_end
from cxr_pipeline.cli.hospital import check_source, pulled, without_values

if TYPE_CHECKING:
    from cxr_pipeline.run.engines.base import RunnerOptions


def _parsed_shard(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    number, slash, count = value.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"it reads I/N with I from 1 to N, such as 2/4. Received: {value!r}")
    return int(number), int(count)


@command
@click.argument("inputs", nargs=-1, type=click.Path(exists=True), metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option(
    "--from",
    "source",
    metavar="dicomweb:URL?QUERY",
    help="Fetch films of a PACS first, into DIR/pulled: docs/hospital.md.",
)
@click.option(
    "--stage", type=click.Choice(STAGES), help="Run the chain up to this stage.  [default: all that the weights have]"
)
@click.option(
    "--also", multiple=True, type=click.Choice(STAGES), help="Run this stage too, such as measure. Repeatable."
)
@click.option("--config", metavar="FILE", help="YAML file or preset; a run takes only its thresholds.")
@weights_option
@site_option
@threshold_option
@click.option("--label", metavar="NAME", help="Heat map and regions of this class.  [default: the predicted one]")
@workers_option
@click.option(
    "--batch-size",
    type=click.IntRange(1, 512),
    default=8,
    show_default=True,
    help="Films that the networks see at once.",
)
@runtime_option
@click.option(
    "--shard", metavar="I/N", callback=_parsed_shard, help="Judge the I-th of N parts, each into its own --out."
)
@click.option(
    "--no-refuse", is_flag=True, help="Also process films that would be refused; the reason goes into `warnings`."
)
@click.option(
    "--outputs",
    metavar="NAMES",
    help="What is written, with commas between: masks, overlays, heatmaps, crops, regions (and those of installed "
    "packages), or all; dicom and fhir only where they are named.  "
    "[default: masks,overlays,regions; results.csv always is]",
)
@click.option("--native-heatmaps", is_flag=True, help="Also write heat maps, at the films' own size.")
@click.option(
    "--dicom-header",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="TABLE",
    help="Patient and study of films that are no DICOM: a table with image, PatientID and other DICOM keywords.",
)
@click.option(
    "--identifiers",
    type=click.Choice(("pseudonym", "plain")),
    is_flag=False,
    flag_value="pseudonym",
    help="Columns that say whose a film is: as pseudonyms of the site, or plain.  [default: none; alone: pseudonym]",
)
@click.option("--mode", callback=parsed_mode, metavar="OCTAL", help="Permissions of the results.  [default: 600]")
@click.option(
    "--fast-decode/--full-decode",
    default=None,
    help="Decode of all large JPEG and JPEG 2000 films only what is needed, or of none.  [default: of those whose "
    "scores stay the same to half a point]",
)
@click.option("--verify", is_flag=True, help="Check every file that an earlier call left, not only a sample.")
@click.option("--overwrite", is_flag=True, help="Discard what another run left in the folder.")
@click.option(
    "--report/--no-report",
    default=None,
    help="Write report.html at the end.  [default: up to 2000 films in the folder]",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A run setting. Repeatable.")
@language_option
@engine_options
def run(
    inputs: tuple[str, ...],
    out: Path,
    source: str | None,
    stage: str | None,
    also: tuple[str, ...],
    config: str | None,
    weights: str,
    site: Path | None,
    threshold: float | None,
    label: str | None,
    workers: int | None,
    batch_size: int,
    runtime: str,
    shard: tuple[int, int] | None,
    no_refuse: bool,
    outputs: str | None,
    native_heatmaps: bool,
    dicom_header: Path | None,
    identifiers: str | None,
    mode: int,
    fast_decode: bool | None,
    verify: bool,
    overwrite: bool,
    report: bool | None,
    overrides: tuple[str, ...],
    language: str | None,
    engine: str,
    **cluster: Any,
) -> int:
    """Judge X-rays: files, folders (with those below) or a manifest.

    \b
    Leaves in the folder given by --out:
      results.csv    one row per input, also for those that failed
      worklist.csv   what to read first, and why (worklist.xlsx too, with openpyxl)
      masks/ overlays/    PNG and JPEG, named after the id in results.csv (more: --outputs)
      regions.json   boxes in COCO format, in pixels of the original films
      run.json       versions, weights, config, counts
      report.html    one page to look at all of it, with small copies of the films: treat it like them

    If a run is stopped or killed, the same command goes on where it stopped. Later films can join the same folder, and
    so can a later stage: what is done already is used.

    \b
    Examples:
      pipeline run films/ --out results
      pipeline run a.png b.dcm --out results --stage segment
      pipeline run films/ --out part1 --shard 1/2       (and 2/2 elsewhere; then: pipeline merge)
      pipeline run films/ --out results --engine ray    (see docs/cluster.md)
      pipeline run --from 'dicomweb:https://pacs.example.org/dicom-web?StudyDate=20240131' --out results
    """
    from cxr_pipeline.results.quick import REPORT, finished, has_report
    from cxr_pipeline.run.helper import start_early, stop_early

    fresh = not finished(out)  # else there may be nothing to do
    if fresh and engine == "local":
        start_early()  # it imports what it needs while we do
        click.get_current_context().call_on_close(stop_early)
    from cxr_pipeline.cli.console import print_summary, run_progress
    from cxr_pipeline.report.pictures import EMBEDDED, Pictures
    from cxr_pipeline.results.outputs.asked import asked, for_films
    from cxr_pipeline.run.engines import engine_class, owner_of
    from cxr_pipeline.run.inputs import LeftOut, find_inputs, marked_equal
    from cxr_pipeline.run.listing import about_inputs, tell_of_inputs, write_left_out
    from cxr_pipeline.run.spec import ChainSpec

    check_source(inputs, source)
    whose: dict[str, Any] = {"dicom_header": dicom_header, "identifiers": identifiers}
    wanted = asked(outputs, native_heatmaps=native_heatmaps, **whose)
    cluster = {name: value for name, value in cluster.items() if value is not None}
    made_by = engine_class(engine)
    foreign = [name for name in cluster if name not in made_by.options]
    if foreign:
        options = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise click.UsageError(f"{options}: for --engine {owner_of(foreign[0])} only. Add it, or leave the option out")
    made_by.check(runtime, **cluster)
    arguments = {
        "inputs": list(inputs),
        "stage": stage,
        "config": config,
        "site": str(site) if site is not None else None,
        "threshold": threshold,
        "label": label,
        "workers": workers,
        "batch_size": batch_size,
        "no_refuse": no_refuse,
        "outputs": outputs,
        "native_heatmaps": native_heatmaps,
        "overwrite": overwrite,
        "engine": engine,
        **({"also": list(also)} if also else {}),
        **({"set": list(overrides)} if overrides else {}),
        **({"language": language} if language else {}),
        **{name: str(value) for name, value in whose.items() if value is not None},
        **({"from": source if identifiers == "plain" else without_values(source)} if source else {}),
        **({} if fast_decode is None else {"fast_decode": fast_decode}),
        **cluster,
    }
    spec = ChainSpec(
        weights,
        stage,
        also,
        runtime=runtime,
        config=config,
        site=site,
        label=label,
        refuse=not no_refuse,
        threshold=threshold,
        language=language or "en",
        overrides=overrides,
    )
    chain = spec.open(arguments, late=True, side_by_side=True)
    if fresh:
        chain.networks.start()
    if chain.identity.about["unchecked"]:
        click.echo(f"note: {chain.identity.about['unchecked']}.", err=True)
    left_out: list[LeftOut] = []
    films = find_inputs(inputs, out=out, left_out=left_out) if inputs else []
    found = marked_equal([*films, *(pulled(source, out, mode) if source else ())])
    for_films(wanted, (one.path for one in found))
    for sentence in tell_of_inputs(found, left_out, out):
        click.echo(sentence, err=True)
    chain.identity.about.update(about_inputs(found, left_out))
    for name, settings in chain.settings.items():
        changes = ", ".join(f"{key} {value}" for key, value in settings.items())
        given = [str(file) for file in (config, site) if file is not None]
        given += (
            ["--set"] * bool(overrides)
            + ["--threshold"] * (threshold is not None)
            + ["--label"] * (label is not None)
            + ["--no-refuse"] * no_refuse
        )
        click.echo(f"from {' and '.join(given)}, in place of what the weights decide: {name} {changes}", err=True)
    chosen_options: RunnerOptions = {
        "batch_size": batch_size,
        "workers": workers,
        "outputs": wanted,
        "mode": mode,
        "verify": verify,
        "fast_decode": fast_decode,
    }
    runner = made_by.runner(chain, spec, out, chosen_options, **cluster)
    pictures = Pictures()
    if report or (report is None and len(found) <= EMBEDDED * (shard[1] if shard else 1)):
        runner.saved = pictures.keep
    try:
        with run_progress(len(found)) as progress:
            summary = runner.run(found, overwrite=overwrite, shard=shard, progress=progress)
        if not summary.unchanged:
            write_left_out(out, left_out)
    except KeyboardInterrupt:
        click.echo(f"\nStopped. What is finished is kept in {out}; the same command goes on from there.", err=True)
        return INTERRUPTED
    print_summary(summary)
    if summary.unchanged and report is False:
        (out / REPORT).unlink(missing_ok=True)
    elif summary.unchanged and has_report(out):
        click.echo(f"Report    {out / REPORT}")
    else:
        report_at_end(out, sum(summary.counts.values()) + summary.others, report, pictures)
    return summary.exit_code


def main(arguments: list[str] | None = None) -> None:
    """Run the command and end the process with its exit code."""
    code = _call(arguments)
    hanging = any(thread.name.startswith("cxr-read") and thread.is_alive() for thread in threading.enumerate())
    if code == INTERRUPTED or hanging:  # a thread that hangs in a decoder must not keep the process alive
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _call(arguments: list[str] | None) -> int:
    try:
        return cli.main(arguments, prog_name="pipeline", standalone_mode=False) or DONE
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt) as stop:
        if isinstance(stop.__cause__, EOFError):  # click takes a damaged file for a person who closed the input
            return _failed(stop.__cause__)
        click.echo("\nStopped.", err=True)
        return INTERRUPTED
    except click.ClickException as error:  # how the command was called
        error.show()
        return WRONG
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    if debugging():
        traceback.print_exception(error)
    click.echo(f"Error: {explained(error)}", err=True)
    return WRONG


if __name__ == "__main__":
    main()
