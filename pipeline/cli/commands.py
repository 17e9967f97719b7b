"""What all commands share: the group, the options that several have, and what they print."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cxr_pipeline.about import PROGRAM, RUNTIMES, version
from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.run import engines
from cxr_pipeline.stages import registry

STAGES = registry.names()
ENGINES = engines.names()
DONE, SOME_FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

_debug = bool(os.environ.get("CXR_DEBUG"))


def _set_debug(_context: click.Context, _option: click.Parameter, value: bool) -> None:
    global _debug
    _debug = _debug or value


def _show_version(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{PROGRAM} {version()}")
        context.exit()


def command(function: Callable[..., Any], group: click.Group | None = None, **settings: Any) -> click.Command:
    """A subcommand, with the option that all of them have; `settings` go to click, such as `name` and `epilog`."""
    option = click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        help="Show the traceback of an error. CXR_DEBUG=1 in the environment does the same.",
    )
    return (group or cli).command(context_settings={"max_content_width": 100}, **settings)(option(function))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all done; 1 done, but some inputs were refused or failed; 2 not done, and the message says "
    "why; 130 interrupted.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Chest X-rays in; lung masks, a TB score and regions to look at out.

    Research use only. Not a medical device.
    """


def debugging() -> bool:
    """Whether tracebacks were asked for."""
    return _debug


RUNTIME = click.Choice(RUNTIMES)

data_option = click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Manifest, or a folder with one folder per class.",
)
weights_option = click.option(
    "--weights", default="tb", show_default=True, metavar="NAME|PATH", help="Shipped weights, or trained ones."
)
runtime_option = click.option(
    "--runtime", type=RUNTIME, default="onnx", show_default=True, help="What runs the networks."
)


def _parsed_site(_context: click.Context, _option: click.Parameter, value: str | None) -> Path | None:
    """The site file; `none` is no site, as without the option, so that a script may always give it."""
    return None if value is None or value == "none" else Path(value)


site_option = click.option(
    "--site",
    type=click.Path(),
    callback=_parsed_site,
    metavar="FILE",
    help="Site file of `pipeline calibrate`; none: the weights' own decisions.  [default: none]",
)
threshold_option = click.option(
    "--threshold",
    type=click.FloatRange(0, 100),
    metavar="SCORE",
    help="A film is screen positive from this score on.  [default: 50, the threshold of weights or site]",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads that read, and threads that write; with --engine ray: actors.  [default: one per core]",
)

language_option = click.option(
    "--language",
    type=click.Choice(("en", "fr", "es", "pt", "hi", "ru")),
    help="Of overlays, report and page.  [default: English; report: that of the run]",
)


def parsed_mode(_context: click.Context, _option: click.Parameter, value: str | None) -> int:
    """The permissions that an option --mode names."""
    try:
        mode = int(value or "600", 8)
    except ValueError:
        mode = -1
    if mode & ~0o666 or mode & 0o600 != 0o600:
        raise click.BadParameter(f"it is three digits such as 600, 640 or 644, the first a 6. Received: {value!r}")
    return mode


def _listed(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str] | None:
    return [part.strip() for part in value.split(",") if part.strip()] if value else None


mask_labels_option = click.option(
    "--mask-labels",
    metavar="VALUES",
    callback=_listed,
    help="Values that mean lung in the masks, such as 1,2 or #800000.  [default: the obvious ones]",
)

_ENGINE_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="local",
        show_default=True,
        help="What spreads the work: threads of this process, or workers of a Ray cluster.",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="With --engine ray: the cluster.  [default: RAY_ADDRESS, or one for this run]",
    ),
    click.option(
        "--cpus-per-worker",
        type=click.FloatRange(0, min_open=True),
        help="With --engine ray: cores of each worker.  [default: 1]",
    ),
    click.option(
        "--gpus-per-worker",
        type=click.FloatRange(0),
        help="With --engine ray: GPUs of each worker, such as 0.25; needs a --runtime that uses them.  [default: 0]",
    ),
)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where a run works."""
    for option in reversed(_ENGINE_OPTIONS):
        function = option(function)
    return function


def print_figures(figures: dict[str, Any]) -> None:
    """Those that have an interval, a line each."""
    for name, figure in figures.items():
        if isinstance(figure, dict) and "ci95" in figure:
            low, high = figure["ci95"]
            value = "none" if figure["value"] is None else f"{figure['value']:.3f}"
            bounds = "" if low is None or high is None else f"  {low:.3f} to {high:.3f}"
            click.echo(f"{name:32}{value}{bounds}  n {figure['n']}")


class _Printable(logging.Formatter):
    """Messages without terminal codes: a film's name may hold any."""

    def format(self, record: logging.LogRecord) -> str:
        from cxr_pipeline.data.names import printable

        return printable(super().format(record))


def log_to_stderr() -> None:
    """Show what training and evaluation say of their progress."""
    log = logging.getLogger("cxr")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)


def explained(error: Exception) -> str:
    """An error as the user is to read it: our own as it is, others with what to do next."""
    from cxr_pipeline.data.names import printable

    if isinstance(error, ModuleNotFoundError):
        from cxr_pipeline.configs.extras import explained as missing

        error = missing(error) or error
    if isinstance(error, CxrError):
        return printable(str(error))
    text = printable(" ".join(str(error).split())) or "no message"
    if isinstance(error, OSError):
        return f"{text}. Run again with --debug for the traceback"
    return f"unexpected {type(error).__name__}: {text}. Run again with --debug for the traceback, and report it"
