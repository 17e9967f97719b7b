"""The command `pipeline`. It parses, then calls; imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

STAGES = ("segment", "classify", "localize")  # stages.NAMES, which a test holds this to: nothing is imported here
RUNTIMES = ("onnx", "openvino", "keras")
DONE, SOME_FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

# Errors whose text is written for the person who called, by module: each says what to do. Looked up when one occurs.
_FOR_THE_USER = {
    "configs.schema": ("ConfigError",),
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

_debug = bool(os.environ.get("CXR_DEBUG"))


def _set_debug(_context: click.Context, _option: click.Parameter, value: bool) -> None:
    global _debug
    _debug = _debug or value


def _show_version(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        from pipeline.about import PROGRAM, version

        click.echo(f"{PROGRAM} {version()}")
        context.exit()


def _parsed_shard(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    number, slash, count = value.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"it reads I/N with I from 1 to N, such as 2/4. Received: {value!r}")
    return int(number), int(count)


def _command(function: Callable[..., Any], group: click.Group | None = None) -> click.Command:
    """A subcommand, with the option that all of them have."""
    option = click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        help="Show the traceback of an error. CXR_DEBUG=1 in the environment does the same.",
    )
    return (group or cli).command(context_settings={"max_content_width": 100})(option(function))


def _command_of(group: click.Group) -> Callable[[Callable[..., Any]], click.Command]:
    return lambda function: _command(function, group)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all done; 1 done, but some inputs were refused or failed; 2 not done, and the message says "
    "why; 130 interrupted.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it, end."
)
def cli() -> None:
    """Chest X-rays in; lung masks, a TB score and regions to look at out.

    Research use only. Not a medical device.
    """


@_command
@click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True), metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--stage", type=click.Choice(STAGES), help="Run the chain up to this stage.  [default: all of it]")
@click.option("--config", metavar="FILE", help="YAML file or preset; of it, a run obeys the thresholds.")
@click.option(
    "--weights", default="tb", show_default=True, metavar="NAME|PATH", help="Shipped weights, or trained ones."
)
@click.option("--site", type=click.Path(path_type=Path), metavar="FILE", help="Site file of `pipeline calibrate`.")
@click.option("--workers", type=click.IntRange(1), help="Threads that read, and that write.  [default: one a core]")
@click.option("--batch-size", type=click.IntRange(1, 512), default=8, show_default=True, help="Films at once.")
@click.option(
    "--runtime", type=click.Choice(RUNTIMES), default="onnx", show_default=True, help="What runs the networks."
)
@click.option(
    "--shard", metavar="I/N", callback=_parsed_shard, help="Judge the I-th of N parts, each into its own --out."
)
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
        "overwrite": overwrite,
    }
    chain = open_chain(weights, upto, runtime=runtime, config=config, site=site, arguments=arguments)
    found = find_inputs(inputs, out=out)
    for name, settings in chain.settings.items():
        said = ", ".join(f"{key} {value}" for key, value in settings.items())
        given = " and ".join(str(file) for file in (config, site) if file is not None)
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


@_command
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


@_command
@click.option("--stage", type=click.Choice(STAGES), help="Train this stage alone.  [default: all, one after the other]")
@click.option(
    "--data", required=True, type=click.Path(exists=True, path_type=Path), help="Manifest, or a folder a class."
)
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

    _log_to_stderr()
    try:
        train_chain(data, settings, out, stage)
    except KeyboardInterrupt:
        click.echo("\nStopped. The same command goes on from the last finished epoch.", err=True)
        return INTERRUPTED
    click.echo(f"Weights in {out}. Use them: pipeline run INPUT --weights {out} --out DIR")
    return DONE


@_command
@click.option("--stage", required=True, type=click.Choice(STAGES), help="Stage to judge; those before it run too.")
@click.option(
    "--data", required=True, type=click.Path(exists=True, path_type=Path), help="Manifest, or a folder a class."
)
@click.option(
    "--split", default="test", show_default=True, metavar="NAME", help="Films of this split; 'all' for every one."
)
@click.option("--source", metavar="NAME", help="Films of this source only.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the figures.")
@click.option(
    "--weights", default="tb", show_default=True, metavar="NAME|PATH", help="Shipped weights, or trained ones."
)
@click.option(
    "--runtime", type=click.Choice(RUNTIMES), default="onnx", show_default=True, help="What runs the networks."
)
@click.option("--site", type=click.Path(path_type=Path), metavar="FILE", help="Site file of `pipeline calibrate`.")
def evaluate(
    stage: str, data: Path, split: str, source: str | None, out: Path, weights: str, runtime: str, site: Path | None
) -> int:
    """Measure one stage on labelled films: metrics.json and plots.

    Every figure comes with its 95 % interval, by bootstrap over patients.
    """
    from pipeline.evaluation import evaluate as judge

    _log_to_stderr()
    chosen = None if split == "all" else split
    metrics = judge(stage, data, out, split=chosen, source=source, weights=weights, runtime=runtime, site=site)
    _print_figures(metrics)
    click.echo(f"All figures: {out / 'metrics.json'}")
    return DONE


@_command
@click.option(
    "--data", required=True, type=click.Path(exists=True, path_type=Path), help="Manifest, or a folder a class."
)
@click.option(
    "--target-sensitivity", type=click.FloatRange(0.5, 0.999), default=0.9, show_default=True, help="Where to operate."
)
@click.option("--site", metavar="NAME", help="What to call the site.  [default: the file's name]")
@click.option("--split", metavar="NAME", help="Films of this split only.")
@click.option("--source", metavar="NAME", help="Films of this source only.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [default: NAME.yaml]")
@click.option(
    "--weights", default="tb", show_default=True, metavar="NAME|PATH", help="Shipped weights, or trained ones."
)
def calibrate(
    data: Path,
    target_sensitivity: float,
    site: str | None,
    split: str | None,
    source: str | None,
    out: Path | None,
    weights: str,
) -> int:
    """Fit the scores to a site, from labelled films of its own.

    Makes a small file for `pipeline run --site`: probabilities that are right for the site's films, and the threshold
    that reaches the sensitivity asked for. Take films as they come, of all classes, 100 or more; never those that the
    result is to be measured on.

    \b
    Example:
      pipeline calibrate --data ours.csv --target-sensitivity 0.9 --site ours
      pipeline run films/ --out results --site ours.yaml
    """
    from pipeline.calibration import MANY
    from pipeline.calibration import calibrate as fit_site

    _log_to_stderr()
    path = out or Path(f"{site or 'site'}.yaml")
    said = fit_site(
        data, path, target_sensitivity=target_sensitivity, site=site, split=split, source=source, weights=weights
    )
    low, high = said["threshold_ci95"]
    click.echo(f"threshold {said['threshold']:.3f} (95 % interval {low:.3f} to {high:.3f}), n {said['films']['n']}")
    click.echo("On films that the fit did not see (five folds by patient):")
    _print_figures(said["figures"])
    if said["films"]["n"] < MANY:
        click.echo(
            f"Only {said['films']['n']} films: the intervals are wide. With {MANY} or more they narrow.", err=True
        )
    click.echo(f"Use it: pipeline run INPUT --out DIR --site {path}")
    return DONE


@cli.group()
def data() -> None:
    """Look manifests over before a training believes them."""


@_command_of(data)
@click.argument("manifest", type=click.Path(exists=True, path_type=Path))
@click.option("--images/--no-images", default=True, show_default=True, help="Read the films, to find near-duplicates.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="CSV for all pairs that look alike.")
def check(manifest: Path, images: bool, out: Path | None) -> int:
    """Find faults, patients in two splits, damaged films, and near-duplicates across sources and splits.

    Exit code 0 where a training may be believed, 1 where a film or patient is on two sides of a split.
    """
    from pipeline.datacheck import as_text, write_pairs
    from pipeline.datacheck import check as look

    findings = look(manifest, images=images)
    click.echo(as_text(findings))
    if out is not None:
        write_pairs(findings, out)
        click.echo(f"All pairs: {out}")
    return DONE if findings.clean else SOME_FAILED


@_command
@click.argument("inputs", nargs=-1, type=click.Path(exists=True), metavar="[INPUT]...")
@click.option("--runtime", "runtimes", multiple=True, type=click.Choice(RUNTIMES), help="Measure this one. Repeatable.")
@click.option("--workers", type=click.IntRange(1), help="Threads that read, and that write.  [default: one a core]")
@click.option(
    "--weights", default="tb", show_default=True, metavar="NAME|PATH", help="Shipped weights, or trained ones."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def benchmark(
    inputs: tuple[str, ...], runtimes: tuple[str, ...], workers: int | None, weights: str, as_json: bool
) -> int:
    """Measure what a run costs here: films a second, seconds in each part, memory, for each runtime installed.

    On synthetic films of 512 px where no INPUT is given.
    """
    from pipeline.benchmark import as_text
    from pipeline.benchmark import benchmark as measure

    said = measure(inputs, runtimes=runtimes, weights=weights, workers=workers)
    click.echo(json.dumps(said, indent=2) if as_json else as_text(said))
    return DONE


@_command
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(as_json: bool) -> int:
    """Show versions, runtimes, shipped weights with their figures, presets and settings."""
    from pipeline.about import as_text
    from pipeline.about import info as facts

    click.echo(json.dumps(facts(), indent=2, ensure_ascii=False) if as_json else as_text(facts()))
    return DONE


@_command
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
@click.option("-n", "count", type=click.IntRange(1), default=6, show_default=True, help="How many films.")
@click.option("--seed", type=int, default=0, show_default=True, help="Other numbers give other films.")
def samples(folder: Path, count: int, seed: int) -> int:
    """Write synthetic X-rays to try things on: drawn by rules, of no patient.

    With a manifest, true lung masks, labels and boxes.
    """
    from data.synthetic import write_samples

    write_samples(folder, count, seed=seed)
    click.echo(f"{count} synthetic films in {folder / 'images'}. Try: pipeline run {folder / 'images'} --out results")
    return DONE


def _print_figures(figures: dict[str, Any]) -> None:
    """Those that have an interval, a line each."""
    for name, figure in figures.items():
        if isinstance(figure, dict) and "ci95" in figure:
            low, high = figure["ci95"]
            value = "none" if figure["value"] is None else f"{figure['value']:.3f}"
            bounds = "" if low is None or high is None else f"  {low:.3f} to {high:.3f}"
            click.echo(f"{name:32}{value}{bounds}  n {figure['n']}")


def _log_to_stderr() -> None:
    """Show what training and evaluation say of their progress."""
    log = logging.getLogger("cxr")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)


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
        if _debug:
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
