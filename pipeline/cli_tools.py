"""The commands beside the chain: calibrate, data check, benchmark, info, samples. Imports nothing heavy."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from pipeline.commands import (
    DONE,
    RUNTIME,
    SOME_FAILED,
    cli,
    command,
    data_option,
    log_to_stderr,
    print_figures,
    weights_option,
    workers_option,
)


@command
@data_option
@click.option(
    "--target-sensitivity", type=click.FloatRange(0.5, 0.999), default=0.9, show_default=True, help="Where to operate."
)
@click.option("--site", metavar="NAME", help="What to call the site.  [default: the file's name]")
@click.option("--split", metavar="NAME", help="Films of this split only.")
@click.option("--source", metavar="NAME", help="Films of this source only.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [default: NAME.yaml]")
@weights_option
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

    log_to_stderr()
    path = out or Path(f"{site or 'site'}.yaml")
    said = fit_site(
        data, path, target_sensitivity=target_sensitivity, site=site, split=split, source=source, weights=weights
    )
    low, high = said["threshold_ci95"]
    click.echo(f"threshold {said['threshold']:.3f} (95 % interval {low:.3f} to {high:.3f}), n {said['films']['n']}")
    click.echo("On films that the fit did not see (five folds by patient):")
    print_figures(said["figures"])
    if said["films"]["n"] < MANY:
        click.echo(
            f"Only {said['films']['n']} films: the intervals are wide. With {MANY} or more they narrow.", err=True
        )
    click.echo(f"Use it: pipeline run INPUT --out DIR --site {path}")
    return DONE


@cli.group()
def data() -> None:
    """Look manifests over before a training believes them."""


@partial(command, group=data)
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


@command
@click.argument("inputs", nargs=-1, type=click.Path(exists=True), metavar="[INPUT]...")
@click.option("--runtime", "runtimes", multiple=True, type=RUNTIME, help="Measure this one. Repeatable.")
@workers_option
@weights_option
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


@command
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(as_json: bool) -> int:
    """Show versions, runtimes, shipped weights with their figures, presets and settings."""
    from pipeline.about import as_text
    from pipeline.about import info as facts

    click.echo(json.dumps(facts(), indent=2, ensure_ascii=False) if as_json else as_text(facts()))
    return DONE


@command
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
