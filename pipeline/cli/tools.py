"""The commands beside the chain, from calibrate to samples. Imports nothing heavy."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from cxr_pipeline.cli.commands import (
    DONE,
    RUNTIME,
    SOME_FAILED,
    cli,
    command,
    data_option,
    log_to_stderr,
    mask_labels_option,
    print_figures,
    weights_option,
    workers_option,
)


@command
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="Labelled films: a manifest, or a folder with one folder per class.",
)
@click.option(
    "--unlabelled",
    multiple=True,
    type=click.Path(exists=True),
    metavar="INPUT",
    help="Films without labels, as for `pipeline run`, or a finished results folder. Repeatable.",
)
@click.argument("films", nargs=-1, type=click.Path(exists=True), metavar="[INPUT]...")
@click.option(
    "--target-sensitivity",
    type=click.FloatRange(0.5, 0.999),
    default=0.9,
    show_default=True,
    help="Sensitivity of the threshold to find.",
)
@click.option("--site", metavar="NAME", help="What to call the site.  [default: the file's name]")
@click.option("--split", metavar="NAME", help="Films of this split only.")
@click.option("--source", metavar="NAME", help="Films of this source only.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [default: NAME.yaml]")
@weights_option
def calibrate(
    data: Path | None,
    unlabelled: tuple[str, ...],
    films: tuple[str, ...],
    target_sensitivity: float,
    site: str | None,
    split: str | None,
    source: str | None,
    out: Path | None,
    weights: str,
) -> int:
    """Fit the scores to a site, from films of its own, with labels or without.

    Makes a small file for `pipeline run --site`: it calibrates the probabilities to the site's films, and holds the
    threshold that reaches the sensitivity asked for. Take 100 films or more, of all classes, as they come, and never
    films that you will measure the result on. Films without labels (100 to 300) show how the site's scores differ from
    those of other hospitals; the file says what that assumes and how sure it is. Films with labels are better.

    \b
    Example:
      pipeline calibrate --data ours.csv --target-sensitivity 0.9 --site ours
      pipeline calibrate --unlabelled films/ --site ours
      pipeline run films/ --out results --site ours.yaml
    """
    from cxr_pipeline.configs.extras import require

    require("figures", "pipeline calibrate")
    from cxr_pipeline.train.calibration import MANY
    from cxr_pipeline.train.calibration import calibrate as fit_site

    if films and not unlabelled:
        raise click.UsageError(f"{films[0]}: films without labels follow --unlabelled; labelled ones --data")
    log_to_stderr()
    path = out or Path(f"{site or 'site'}.yaml")
    if unlabelled:
        from cxr_pipeline.train.without_labels import calibrate_unlabelled

        if split is not None or source is not None:
            raise click.UsageError("--split and --source choose films of --data alone. Leave them out")
        made = calibrate_unlabelled(
            [*unlabelled, *films],
            path,
            data=data,
            target_sensitivity=target_sensitivity,
            site=site,
            weights=weights,
        )
        _print_unlabelled(made, path)
        return DONE
    if data is None:
        raise click.UsageError("give --data MANIFEST (films with labels), or --unlabelled INPUT..., or both")
    fitted = fit_site(
        data, path, target_sensitivity=target_sensitivity, site=site, split=split, source=source, weights=weights
    )
    low, high = fitted["threshold_ci95"]
    click.echo(f"threshold {fitted['threshold']:.3f} (95 % interval {low:.3f} to {high:.3f}), n {fitted['films']['n']}")
    click.echo("On films that the fit did not see (five folds by patient):")
    print_figures(fitted["figures"])
    if fitted["films"]["n"] < MANY:
        click.echo(
            f"Only {fitted['films']['n']} films: the intervals are wide. With {MANY} or more they narrow.", err=True
        )
    click.echo(f"Use it: pipeline run INPUT --out DIR --site {path}, or pipeline screen DIR --site {path}")
    return DONE


def _print_unlabelled(fitted: dict[str, Any], path: Path) -> None:
    low, high = fitted["threshold_ci95"]
    click.echo(f"threshold {fitted['threshold']:.3f} (95 % interval {low:.3f} to {high:.3f}), n {fitted['films']['n']}")
    for name, share in fitted["unlabelled"]["shares"].items():
        low, high = fitted["unlabelled"]["shares_ci95"][name]
        click.echo(f"films of {name:6} about {100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)")
    click.echo(f"It assumes that {fitted['unlabelled']['assumes']}.")
    click.echo("The intervals are of chance alone: where that does not hold, they say nothing.")
    click.echo(f"Use it: pipeline run INPUT --out DIR --site {path}, or pipeline screen DIR --site {path}")


_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@command
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="RESULTS")
@data_option
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, True, True),
    default=0.02,
    show_default=True,
    help="Share of the people screened who have the disease.",
)
@click.option(
    "--test-cost", type=click.FloatRange(0), default=10.0, show_default=True, help="Cost of a confirming test."
)
@click.option("--film-cost", type=click.FloatRange(0), default=2.0, show_default=True, help="Cost of a film.")
@click.option(
    "--target-sensitivity",
    type=click.FloatRange(0.5, 0.999),
    default=0.9,
    show_default=True,
    help="Choose the threshold that reaches this sensitivity.",
)
@click.option(
    "--threshold", type=click.IntRange(0, 100), metavar="SCORE", help="Choose this score instead of a sensitivity."
)
@click.option(
    "--width",
    type=click.FloatRange(0, 1, True, True),
    default=0.1,
    show_default=True,
    help="Compute how many films a study needs for intervals of this width.",
)
@click.option("--site", metavar="NAME", help="Write the chosen threshold into the site file NAME.yaml.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the tables and the page.  [default: RESULTS/plan]",
)
def plan(
    results: Path,
    data: Path,
    prevalence: float,
    test_cost: float,
    film_cost: float,
    target_sensitivity: float,
    threshold: int | None,
    width: float,
    site: str | None,
    out: Path | None,
) -> int:
    """Show what each threshold would find and cost in a programme, from results and the labels of their films.

    For every score it gives true and false positives per 1,000 people screened, tests and cost per case found, and
    predictive values, each with its 95 % interval; for all films, and by age and sex if the manifest has these columns.
    Leaves plan.csv, plan.png and plan.html, a page with a slider.

    \b
    Example:
      pipeline plan results --data read.csv --prevalence 0.01 --test-cost 12 --film-cost 1.5 --site ours
      pipeline screen results --site ours.yaml
    """
    from cxr_pipeline.configs.extras import require

    require("figures", "pipeline plan")
    from cxr_pipeline.report.plan import Costs, write_site
    from cxr_pipeline.report.plan import plan as make_plan
    from cxr_pipeline.report.plan_files import summary_lines, write_plan

    costs = Costs(prevalence, film_cost, test_cost)
    made = make_plan(
        results, data, costs=costs, target_sensitivity=target_sensitivity, threshold=threshold, width=width
    )
    click.echo("\n".join(summary_lines(made)))
    click.echo(f"Tables    {write_plan(made, out or results / 'plan')[-1]}")
    if site is not None:
        write_site(made, results, Path(f"{site}.yaml"))
        click.echo(f"Use it: pipeline screen {results} --site {site}.yaml, or pipeline run INPUT --site {site}.yaml")
    return DONE


@command
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--split", default="test", show_default=True, metavar="NAME", help="Use the evaluation on this split.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Folder for tables and curves."
)
def compare(runs: tuple[str, ...], split: str, out: Path | None) -> int:
    """Put trained runs side by side: figures, curves, cost, and whether they differ by more than chance.

    RUN is a folder that `pipeline train --out` made (its classifier is compared), one stage's folder in it, such as
    my-weights/segment, a folder of `pipeline evaluate --out`, or the name of shipped weights. Speed is measured now.

    \b
    Leaves in the folder given by --out:
      compare.md     the table and the paired tests, as printed
      compare.csv    one row per run
      pairs.csv      one row per pair: DeLong's test of AUROC, McNemar's of accuracy, on the films that both judged
      compare.png    loss and accuracy on val by epoch

    \b
    Example:
      pipeline compare weights-a weights-b --out compared
    """
    from cxr_pipeline.configs.extras import require

    require("train", "pipeline compare")
    from cxr_pipeline.compare.compare import compare as put_together
    from cxr_pipeline.compare.report import as_text, write

    comparison = put_together(runs, split=split)
    click.echo(as_text(comparison))
    if out is not None:
        write(comparison, out)
        click.echo(f"\nWritten: {out / 'compare.md'}")
    return DONE


@cli.group()
def data() -> None:
    """Make manifests of public data sets, count them, and check them before you train on them."""


@partial(command, group=data)
@click.argument("manifest", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Folder for a CSV and a picture."
)
def summary(manifest: Path, out: Path | None) -> int:
    """Count the films of a manifest by source, class and split, and by finding."""
    from cxr_pipeline.data.manifest import read_manifest
    from cxr_pipeline.manifests.summary import as_text, missing, write

    faults: list[str] = []
    read = read_manifest(manifest, check_files=False, faults_into=faults)
    click.echo(as_text(read))
    if faults:
        click.echo(f"{len(faults)} fault(s) in the table; see: pipeline data check {manifest}", err=True)
    gone = missing(read)
    if gone:
        click.echo(f"{gone} of these {len(read)} films are missing; see: pipeline data check {manifest}", err=True)
    if out is not None:
        click.echo("\n".join(f"Written: {path}" for path in write(read, out)))
    return DONE


@partial(command, group=data)
@click.argument("manifest", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--images/--no-images", default=True, show_default=True, help="Also read the films, to find near-duplicates."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write all pairs that look alike into this CSV."
)
@mask_labels_option
def check(manifest: Path, images: bool, out: Path | None, mask_labels: list[str] | None) -> int:
    """Find faults, patients in two splits, damaged films, wrong masks and boxes, and near-duplicates.

    Exit code 0: you can train on it. Exit code 1: you should not, for example because a patient is in two splits.
    """
    from cxr_pipeline.manifests.check import as_text, write_pairs
    from cxr_pipeline.manifests.check import check as look

    log_to_stderr()
    findings = look(manifest, images=images, mask_labels=mask_labels)
    click.echo(as_text(findings))
    if out is not None:
        write_pairs(findings, out)
        click.echo(f"All pairs: {out}")
    return DONE if findings.clean else SOME_FAILED


@command
@click.argument("inputs", nargs=-1, type=click.Path(exists=True), metavar="[INPUT]...")
@click.option("--runtime", "runtimes", multiple=True, type=RUNTIME, help="Measure this runtime. Repeatable.")
@workers_option
@weights_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def benchmark(
    inputs: tuple[str, ...], runtimes: tuple[str, ...], workers: int | None, weights: str, as_json: bool
) -> int:
    """Measure what a run costs here: films per second, seconds of each part, and memory, for each runtime.

    Without INPUT it takes synthetic films of 512 px.
    """
    from cxr_pipeline.benchmark import as_text, not_ok
    from cxr_pipeline.benchmark import benchmark as measure

    figures = measure(inputs, runtimes=runtimes, weights=weights, workers=workers)
    click.echo(json.dumps(figures, indent=2) if as_json else as_text(figures))
    return SOME_FAILED if not_ok(figures) else DONE


@cli.group()
def config() -> None:
    """Settings: what they are, and where each came from."""


@partial(command, group=config)
@click.option("--config", "source", default="tb", show_default=True, metavar="FILE", help="YAML file or preset.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting. Repeatable.")
@click.option("--changed", is_flag=True, help="Show only what differs from the defaults.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def show(source: str, overrides: tuple[str, ...], changed: bool, as_json: bool) -> int:
    """Show every setting of a config, its value, and where the value came from."""
    from cxr_pipeline.configs.schema import explain

    rows = [row for row in explain(source, overrides) if not changed or row[2] != "default"]
    if as_json:
        click.echo(json.dumps([dict(zip(("setting", "value", "from"), row, strict=True)) for row in rows], indent=2))
        return DONE
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, value, origin in rows:
        click.echo(f"{name:{width}}  {json.dumps(value)}  ({origin})")
    return DONE


@command
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def info(as_json: bool) -> int:
    """Show versions, runtimes, shipped weights with their figures, presets and settings."""
    from cxr_pipeline.about import as_text
    from cxr_pipeline.about import info as facts

    click.echo(json.dumps(facts(), indent=2, ensure_ascii=False) if as_json else as_text(facts()))
    return DONE


@command
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
@click.option("-n", "count", type=click.IntRange(1), default=6, show_default=True, help="Number of films.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another number draws other films.")
def samples(folder: Path, count: int, seed: int) -> int:
    """Write synthetic X-rays to try things out: they are drawn by rules, and of no patient.

    They come with a manifest, true lung masks, labels and boxes.
    """
    from cxr_pipeline.data.synthetic import write_samples

    write_samples(folder, count, seed=seed)
    click.echo(f"{count} synthetic films in {folder / 'images'}. Try: pipeline run {folder / 'images'} --out results")
    return DONE
