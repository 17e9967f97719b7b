"""The command `pipeline`. It parses, then calls; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

import click

from pipeline import cli_tools  # noqa: F401  (whose commands join the group)
from pipeline.commands import (
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    STAGES,
    WRONG,
    cli,
    command,
    data_option,
    debugging,
    log_to_stderr,
    print_figures,
    runtime_option,
    site_option,
    weights_option,
    workers_option,
)

# Errors whose text is written for the person who called, by module: each says what to do. Looked up when one occurs.
_FOR_THE_USER = {
    "configs.schema": ("ConfigError",),
    "data.layouts.base": ("LayoutError",),
    "data.manifest": ("ManifestError",),
    "data.radiograph": ("RadiographError",),
    "models.weights": ("WeightsError",),
    "models.fit": ("TrainingError",),
    "pipeline.benchmark": ("BenchmarkError",),
    "pipeline.calibration": ("CalibrationError",),
    "pipeline.evaluation": ("EvaluationError",),
    "pipeline.inputs": ("InputError",),
    "pipeline.results": ("ResultsError",),
    "pipeline.runner": ("RunError",),
}


def _parsed_shard(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    number, slash, count = value.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"it reads I/N with I from 1 to N, such as 2/4. Received: {value!r}")
    return int(number), int(count)


@command
@click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True), metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--stage", type=click.Choice(STAGES), help="Run the chain up to this stage.  [default: all of it]")
@click.option("--config", metavar="FILE", help="YAML file or preset; of it, a run obeys the thresholds.")
@weights_option
@site_option
@workers_option
@click.option("--batch-size", type=click.IntRange(1, 512), default=8, show_default=True, help="Films at once.")
@runtime_option
@click.option(
    "--shard", metavar="I/N", callback=_parsed_shard, help="Judge the I-th of N parts, each into its own --out."
)
@click.option("--no-refuse", is_flag=True, help="Judge films too that should not be; why not, stands in `warnings`.")
@click.option("--overwrite", is_flag=True, help="Discard what another run left in the folder.")
def run(
    inputs: tuple[str, ...],
    out: Path,
    stage: str | None,
    config: str | None,
    weights: str,
    site: Path | None,
    workers: int | None,
    batch_size: int,
    runtime: str,
    shard: tuple[int, int] | None,
    no_refuse: bool,
    overwrite: bool,
) -> int:
    """Judge X-rays: files, folders (with those below) or a manifest.

    \b
    Leaves in the folder given by --out:
      results.csv    a row for every input, those that failed too
      masks/ crops/ heatmaps/ overlays/    PNG, named after the id in results.csv
      regions.json   boxes in COCO format, in pixels of the original films
      run.json       versions, weights, config, counts

    Stopped or killed, it goes on where it was when the same command is given again. Films that come later may join the
    same folder, and so may a later stage: what is there already is used.

    \b
    Examples:
      pipeline run films/ --out results
      pipeline run a.png b.dcm --out results --stage segment
      pipeline run films/ --out part1 --shard 1/2       (and 2/2 elsewhere; then: pipeline merge)
    """
    from pipeline.chain import open_chain
    from pipeline.console import print_summary, run_progress
    from pipeline.inputs import find_inputs
    from pipeline.runner import Runner

    upto = stage or STAGES[-1]
    arguments = {
        "inputs": list(inputs),
        "stage": stage,
        "config": config,
        "site": str(site) if site is not None else None,
        "workers": workers,
        "batch_size": batch_size,
        "no_refuse": no_refuse,
        "overwrite": overwrite,
    }
    chain = open_chain(
        weights, upto, runtime=runtime, config=config, site=site, refuse=not no_refuse, arguments=arguments
    )
    found = find_inputs(inputs, out=out)
    for name, settings in chain.settings.items():
        said = ", ".join(f"{key} {value}" for key, value in settings.items())
        given = " and ".join(str(file) for file in (config, site, "--no-refuse" if no_refuse else None) if file)
        click.echo(f"from {given}, in place of what the weights decide: {name} {said}", err=True)
    runner = Runner(chain.stages, out, identity=chain.identity, batch_size=batch_size, workers=workers)
    try:
        with run_progress(len(found)) as progress:
            summary = runner.run(found, overwrite=overwrite, shard=shard, progress=progress)
    except KeyboardInterrupt:
        click.echo(f"\nStopped. What is finished is kept in {out}; the same command goes on from there.", err=True)
        return INTERRUPTED
    print_summary(summary, upto)
    return summary.exit_code


@command
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="DIR...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for all results.")
def merge(folders: tuple[Path, ...], out: Path) -> int:
    """Join the folders of all shards of a run: as if one run had judged all inputs.

    \b
    Example:
      pipeline merge part1 part2 --out results
    """
    from pipeline.merge import merge as join

    counts = join(folders, out)
    click.echo(f"{sum(counts.values())} films in {out}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    return SOME_FAILED if counts["refused"] or counts["failed"] else DONE


@command
@click.option("--stage", type=click.Choice(STAGES), help="Train this stage alone.  [default: all, one after the other]")
@data_option
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the weights.")
@click.option("--config", default="tb", show_default=True, metavar="FILE", help="YAML file or preset.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting; see `pipeline info`. Repeatable."
)
def train(stage: str | None, data: Path, out: Path, config: str, overrides: tuple[str, ...]) -> int:
    """Train the chain, or one stage of it, on labelled films.

    The folder given by --out then serves as `pipeline run --weights`. Stopped or killed, training goes on from its last
    finished epoch when the same command is given again.

    \b
    Example:
      pipeline train --data manifest.csv --out my-weights --set classify.fit.epochs=20
    """
    from configs.schema import load_config

    settings = load_config(config, overrides)
    from pipeline.training import train as train_chain

    log_to_stderr()
    try:
        train_chain(data, settings, out, stage)
    except KeyboardInterrupt:
        click.echo("\nStopped. The same command goes on from the last finished epoch.", err=True)
        return INTERRUPTED
    click.echo(f"Weights in {out}. Use them: pipeline run INPUT --weights {out} --out DIR")
    return DONE


@command
@click.option("--stage", required=True, type=click.Choice(STAGES), help="Stage to judge; those before it run too.")
@data_option
@click.option(
    "--split", default="test", show_default=True, metavar="NAME", help="Films of this split; 'all' for every one."
)
@click.option("--source", metavar="NAME", help="Films of this source only.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the figures.")
@weights_option
@runtime_option
@site_option
def evaluate(
    stage: str, data: Path, split: str, source: str | None, out: Path, weights: str, runtime: str, site: Path | None
) -> int:
    """Measure one stage on labelled films: metrics.json and plots.

    Every figure comes with its 95 % interval, by bootstrap over patients.
    """
    from pipeline.evaluation import evaluate as judge

    log_to_stderr()
    chosen = None if split == "all" else split
    metrics = judge(stage, data, out, split=chosen, source=source, weights=weights, runtime=runtime, site=site)
    print_figures(metrics)
    click.echo(f"All figures: {out / 'metrics.json'}")
    return DONE


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
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nStopped.", err=True)
        return INTERRUPTED
    except click.ClickException as error:  # how the command was called
        error.show()
        return WRONG
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if debugging():
            traceback.print_exc()
        click.echo(f"Error: {_explained(error)}", err=True)
        return WRONG


def _explained(error: Exception) -> str:
    for module, names in _FOR_THE_USER.items():
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(error, tuple(getattr(loaded, name) for name in names)):
            return str(error)
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, OSError):
        return f"{text}. Run again with --debug for the traceback"
    return f"unexpected {type(error).__name__}: {text}. Run again with --debug for the traceback, and report it"


if __name__ == "__main__":
    main()
