"""The commands that make weights and judge them: train and evaluate. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_pipeline.cli.commands import (
    DONE,
    INTERRUPTED,
    STAGES,
    command,
    data_option,
    log_to_stderr,
    mask_labels_option,
    print_figures,
    runtime_option,
    site_option,
    weights_option,
)

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config


@command
@click.option("--stage", type=click.Choice(STAGES), help="Train only this stage.  [default: all stages, in order]")
@data_option
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the weights.")
@click.option("--config", default="tb", show_default=True, metavar="FILE", help="YAML file or preset.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting; see `pipeline info`. Repeatable."
)
@click.option(
    "--overwrite", is_flag=True, help="Train again, even if --out holds a training with other settings or data."
)
@mask_labels_option
@click.pass_context
def train(
    context: click.Context,
    stage: str | None,
    data: Path,
    out: Path,
    config: str,
    overrides: tuple[str, ...],
    overwrite: bool,
    mask_labels: list[str] | None,
) -> int:
    """Train the chain, or one stage of it, on labelled films.

    Use the folder given by --out with `pipeline run --weights`. If a training is stopped or killed, the same command
    goes on from the last finished epoch.

    \b
    Example:
      pipeline train --data manifest.csv --out my-weights --set classify.fit.epochs=20
    """
    from cxr_pipeline.configs.extras import require
    from cxr_pipeline.configs.schema import load_config

    require("train", "pipeline train")
    settings = load_config(config, overrides)
    log_to_stderr()
    settings = _for_own_data(settings, data, config, overrides, stage, context)
    from cxr_pipeline.train.training import train as train_chain

    labels = {"mask_labels": mask_labels} if mask_labels else {}
    try:
        train_chain(data, settings, out, stage, overwrite=overwrite, **labels)
    except KeyboardInterrupt:
        click.echo("\nStopped. The same command goes on from the last finished epoch.", err=True)
        return INTERRUPTED
    click.echo(f"Weights in {out}. Use them: pipeline run INPUT --weights {out} --out DIR")
    click.echo(f"How the training went, on a page: pipeline report {out}")
    return DONE


def _for_own_data(
    settings: Config, data: Path, config: str, overrides: tuple[str, ...], stage: str | None, context: click.Context
) -> Config:
    """The settings with what follows from a manifest of one's own, and a message that says so."""
    from cxr_pipeline.configs.schema import load_config
    from cxr_pipeline.data.manifest import ManifestError, read_manifest
    from cxr_pipeline.data.names import printable
    from cxr_pipeline.manifests.owndata import settings_of

    chosen = context.get_parameter_source("config") is not click.core.ParameterSource.DEFAULT
    try:
        manifest = read_manifest(data, check_files=False, faults_into=[])
    except ManifestError:  # the training says what is wrong with it
        return settings
    follows = settings_of(manifest, settings, given=overrides, own_config=chosen, stage=stage)
    for message in follows.messages:
        click.echo(printable(f"note: {message}"), err=True)
    return load_config(config, (*follows.overrides, *overrides)) if follows.overrides else settings


@command
@click.option(
    "--stage", required=True, type=click.Choice(STAGES), help="Stage to judge; the stages before it run, too."
)
@data_option
@click.option(
    "--split", default="test", show_default=True, metavar="NAME", help="Films of this split; 'all' for every one."
)
@click.option("--source", metavar="NAME", help="Films of this source only.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the figures.")
@weights_option
@runtime_option
@site_option
@click.option("--no-refuse", is_flag=True, help="Also judge films that the chain would refuse.")
@mask_labels_option
def evaluate(
    stage: str,
    data: Path,
    split: str,
    source: str | None,
    out: Path,
    weights: str,
    runtime: str,
    site: Path | None,
    no_refuse: bool,
    mask_labels: list[str] | None,
) -> int:
    """Measure one stage on labelled films: metrics.json and plots.

    Every figure comes with its 95 % interval, by bootstrap over patients. Films that the chain refuses count in no
    figure. Published figures are usually of all films: give --no-refuse to compare with them.
    """
    from cxr_pipeline.configs.extras import require

    require("figures", "pipeline evaluate")
    from cxr_pipeline.train.evaluation import evaluate as judge

    log_to_stderr()
    chosen = None if split == "all" else split
    options: dict[str, Any] = {"weights": weights, "runtime": runtime, "site": site, "refuse": not no_refuse}
    if mask_labels:
        options["mask_labels"] = mask_labels
    metrics = judge(stage, data, out, split=chosen, source=source, **options)
    print_figures(metrics)
    click.echo(f"All figures: {out / 'metrics.json'}")
    return DONE
