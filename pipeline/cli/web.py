"""The command `pipeline serve`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import click

from cxr_pipeline.cli.commands import (
    DONE,
    command,
    language_option,
    log_to_stderr,
    runtime_option,
    site_option,
    weights_option,
)


@command
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. Any other one needs an API key."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--api-key", envvar="CXR_API_KEY", show_envvar=True, metavar="KEY", help="Key that callers must send.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Also answer to this host name. Repeatable.")
@click.option("--root-path", default="", metavar="/PATH", help="Where a reverse proxy puts the server.")
@click.option("--allow-origin", multiple=True, metavar="URL", help="Web site that may use the API. Repeatable.")
@click.option(
    "--per-address",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Connections that one other machine may open.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the results of all jobs in this folder.",
)
@click.option("--max-upload-mb", type=click.FloatRange(0.1), default=64, show_default=True, help="Largest film, in MB.")
@click.option(
    "--max-job-mb", type=click.FloatRange(0.1), default=1024, show_default=True, help="Largest request, in MB."
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(0.1, 200),
    default=50,
    show_default=True,
    help="Largest film, in megapixels.",
)
@click.option("--queue", type=click.IntRange(1), default=256, show_default=True, help="Films that may wait.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=120, show_default=True, help="Seconds until an answer is given up."
)
@click.option(
    "--forget-after",
    type=click.FloatRange(0.1),
    default=15,
    show_default=True,
    help="Minutes that a finished job is kept.",
)
@weights_option
@runtime_option
@site_option
@language_option
def serve(
    host: str,
    port: int,
    api_key: str | None,
    allow_host: tuple[str, ...],
    root_path: str,
    allow_origin: tuple[str, ...],
    per_address: int,
    keep: Path | None,
    max_upload_mb: float,
    max_job_mb: float,
    max_megapixels: float,
    queue: int,
    timeout: float,
    forget_after: float,
    weights: str,
    runtime: str,
    site: Path | None,
    language: str | None,
) -> int:
    """Serve a page to drop films on, and a JSON API.

    For this machine alone unless told otherwise. Nothing is kept: films and results are deleted when nobody asks for
    them any more. Docker, keys, limits, examples: docs/web.md.

    \b
    Example:
      pipeline serve
      CXR_API_KEY=... pipeline serve --host 0.0.0.0 --keep kept/
    """
    from cxr_pipeline.web import check_installed

    check_installed()
    from cxr_pipeline.web.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        api_key=api_key,
        allow_hosts=allow_host,
        root_path=root_path,
        allow_origins=allow_origin,
        per_address=per_address,
        keep=keep,
        max_upload_mb=max_upload_mb,
        max_job_mb=max_job_mb,
        max_megapixels=max_megapixels,
        queue=queue,
        timeout=timeout,
        forget_after=forget_after,
        language=language,
    )
    settings.check()
    from cxr_pipeline.run.spec import ChainSpec
    from cxr_pipeline.web.server import serve as listen

    log_to_stderr()
    arguments = {"serve": True, "site": str(site) if site is not None else None}
    listen(settings, ChainSpec(weights, runtime=runtime, site=site, language=language or "en").open(arguments))
    return DONE
