"""The commands that films come in by: `pipeline listen` and `pipeline watch`. Imports nothing heavy."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import click

from cxr_pipeline.cli.commands import (
    DONE,
    command,
    log_to_stderr,
    parsed_mode,
    runtime_option,
    site_option,
    threshold_option,
    weights_option,
    workers_option,
)

if TYPE_CHECKING:
    from cxr_pipeline.run.chain import Chain
    from cxr_pipeline.run.inputs import Input

_out_option = click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for the results."
)
_batch_option = click.option(
    "--batch-size", type=click.IntRange(1, 512), default=8, show_default=True, help="Films at once."
)
_mode_option = click.option(
    "--mode", callback=parsed_mode, metavar="OCTAL", help="Permissions of the results.  [default: 600]"
)
_identifiers_option = click.option(
    "--identifiers", type=click.Choice(("pseudonym", "plain")), help="Columns that say whose a film is, as for run."
)
_EVERY = 10.0  # seconds between two lines of progress
_NAMES_NOBODY = frozenset(
    {
        *("StudyDate", "StudyTime", "SeriesDate", "PerformedProcedureStepStartDate", "Modality", "ModalitiesInStudy"),
        *("BodyPartExamined", "ViewPosition", "SOPClassUID", "limit", "offset", "fuzzymatching"),
    }
)
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def _opened(weights: str, runtime: str, site: Path | None, threshold: float | None, name: str) -> Chain:
    """The chain, with a note where it takes anything for a film."""
    from cxr_pipeline.run.spec import ChainSpec

    arguments = {name: True, "site": str(site) if site is not None else None, "threshold": threshold}
    chain = ChainSpec(weights, runtime=runtime, site=site, threshold=threshold).open(arguments)
    if chain.identity.about["unchecked"]:
        click.echo(f"note: {chain.identity.about['unchecked']}.", err=True)
    return chain


def _on_signals(stop: Callable[[], None]) -> None:
    """Have Ctrl-C and SIGTERM stop the work after the films in work; a second one stops it at once."""

    def once(number: int, _frame: Any) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, once)


def check_source(inputs: Sequence[str], source: str | None) -> None:
    """Refuse a run without films, and a source that cannot be asked, before any weights are loaded.

    Raises:
        click.UsageError: neither inputs nor a source were given.
        NodeError: the source is named wrongly, or what asks it is not installed.
    """
    if not inputs and source is None:
        raise click.UsageError("Missing argument 'INPUT...'. Give files, folders, a manifest, or --from.")
    if source is not None:
        from cxr_pipeline.dicom import check_installed

        check_installed("--from dicomweb:")
        from cxr_pipeline.dicom.dicomweb import Source

        Source.parsed(source)


def without_values(source: str) -> str:
    """A source as `run.json` keeps it: without a login, and of its query the keys, with those values that name nobody.

    The values of a query may be a patient's ID, name or number; dates, modality and part of the body are not.
    """
    parts = urlsplit(source.removeprefix("dicomweb:"))
    named = (
        f"{key}={value if key in _NAMES_NOBODY else '***'}"
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    query = "&".join(named)
    return f"dicomweb:{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" + (f"?{query}" if query else "")


def pulled(source: str, out: Path, mode: int) -> list[Input]:
    """The films of a PACS, fetched into the results folder; see `dicom.dicomweb.pull` for what it raises."""
    from cxr_pipeline.dicom.dicomweb import Source, pull

    begun = last = time.monotonic()

    def fetched(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _EVERY:
            last = time.monotonic()
            click.echo(f"{done} of {total} films fetched in {last - begun:.0f} s", err=True)

    films = pull(Source.parsed(source), out, mode=mode, progress=fetched)
    click.echo(f"{len(films)} films from {Source.parsed(source).url} lie in {out / 'pulled'}", err=True)
    return films


@command
@_out_option
@click.option("--ae-title", default="CXR", show_default=True, metavar="AET", help="What the node calls itself.")
@click.option("--port", type=click.IntRange(0, 65535), default=11112, show_default=True, help="0 takes a free one.")
@click.option("--bind", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Others need --allow.")
@click.option(
    "--allow",
    multiple=True,
    metavar="PEER",
    help="Who may call: AET, AET@host, or AET@host:port; `any` for everybody. Repeatable.  [default: this machine]",
)
@click.option("--tls-cert", type=_file, help="Certificate of the node, PEM: calls are encrypted then.")
@click.option("--tls-key", type=_file, help="Its key.  [default: in the same file]")
@click.option("--tls-ca", type=_file, help="Authorities: peers must show a certificate of theirs.")
@click.option(
    "--send-to",
    multiple=True,
    metavar="PEER|URL",
    help="Where answers go: AET@host:port, or the address of a DICOMweb service. Repeatable.",
)
@click.option("--send-tls", is_flag=True, help="Call the peers of --send-to encrypted, with the files of --tls-...")
@click.option("--refuse-others", is_flag=True, help="Answer what is no film with a refusal, not with success.")
@click.option("--forget-films", is_flag=True, help="Delete a film once its results are on the disk.")
@click.option("--http", type=click.IntRange(0, 65535), metavar="PORT", help="Show the queue, and /metrics, here.")
@click.option("--http-host", default="127.0.0.1", show_default=True, help="Others need an API key.")
@click.option("--api-key", envvar="CXR_API_KEY", show_envvar=True, metavar="KEY", help="For --http.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="For --http: answer to this name too. Repeatable.")
@click.option("--outputs", metavar="NAMES", help="As for run.  [default: masks,overlays,regions,dicom]")
@_identifiers_option
@weights_option
@runtime_option
@site_option
@threshold_option
@workers_option
@_batch_option
@_mode_option
def listen(
    out: Path,
    ae_title: str,
    port: int,
    bind: str,
    allow: tuple[str, ...],
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    send_to: tuple[str, ...],
    send_tls: bool,
    refuse_others: bool,
    forget_films: bool,
    http: int | None,
    http_host: str,
    api_key: str | None,
    allow_host: tuple[str, ...],
    outputs: str | None,
    identifiers: str | None,
    weights: str,
    runtime: str,
    site: Path | None,
    threshold: float | None,
    workers: int | None,
    batch_size: int,
    mode: int,
) -> int:
    """Be a DICOM node: judge the films that are sent to it, and send the answers back.

    A film is on the disk before its sender is told so. Killed or stopped, the node goes on where it was when the same
    command is given again. What is no chest film is answered and left alone (left_alone.csv). How to connect it to a
    PACS: docs/hospital.md.

    \b
    Examples:
      pipeline listen --out results
      pipeline listen --out results --bind 0.0.0.0 --allow PACS@10.0.0.5 --send-to PACS@10.0.0.5:104 --http 8080
    """
    from cxr_pipeline.dicom import NodeError, check_installed
    from cxr_pipeline.results.outputs.asked import asked

    check_installed("pipeline listen")
    from cxr_pipeline.dicom.destinations import destination
    from cxr_pipeline.dicom.listen import Listener, ListenSettings
    from cxr_pipeline.dicom.node import NodeSettings, tls_context
    from cxr_pipeline.dicom.peers import allowed, known_places
    from cxr_pipeline.dicom.send import OUTPUT

    peers = allowed(allow, bind)
    served = tls_context(tls_cert, tls_key, tls_ca, server=True)
    called = tls_context(tls_cert, tls_key, tls_ca, server=False) if send_tls else None
    node = NodeSettings(ae_title, bind, port, peers, refuse_others, tls=served)
    places = [destination(one, ae_title, tls=called, ca=tls_ca) for one in dict.fromkeys(send_to)]
    wanted = asked(outputs or "masks,overlays,regions,dicom", identifiers=identifiers)
    if send_to and not any(one.name == OUTPUT for one in wanted):
        raise NodeError("--send-to has nothing to send: add dicom to --outputs, or leave one of the two out")
    page = None
    if http is not None:
        from cxr_pipeline.web import check_installed as check_web

        check_web("pipeline listen --http")
        from cxr_pipeline.dicom.page import page_settings

        page = page_settings(http_host, http, api_key, allow_host)
    log_to_stderr()
    settings = ListenSettings(
        out, node, wanted, batch_size, workers, mode, not forget_films, known_places(peers, send_to)
    )
    listener = Listener(_opened(weights, runtime, site, threshold, "listen"), settings, places, called)
    _on_signals(listener.stop)
    if page is not None:
        from cxr_pipeline.dicom.page import serve

        click.echo(f"Queue     {serve(listener, page)}", err=True)
    _listening(listener, ae_title, bind)
    return DONE


def _listening(listener: Any, title: str, bind: str) -> None:
    from cxr_pipeline.about import NOTICE

    try:
        port = listener.start()
        click.echo(f"Listening {title}@{bind}:{port}  (Ctrl-C ends it). {NOTICE}", err=True)
        for sender in listener.senders:
            click.echo(f"Answers   go to {sender.name}", err=True)
        if len(listener.spool):
            click.echo(f"Films     {len(listener.spool)} wait from before", err=True)
    except BaseException:
        listener.close()
        raise
    listener.run()


@command
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER")
@_out_option
@click.option(
    "--settle",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    help="Seconds that a file must not have changed for.",
)
@click.option("--until-empty", is_flag=True, help="End when everything that lies there is judged.")
@click.option("--outputs", metavar="NAMES", help="As for run.")
@_identifiers_option
@weights_option
@runtime_option
@site_option
@threshold_option
@workers_option
@_batch_option
@_mode_option
def watch(
    folder: Path,
    out: Path,
    settle: float,
    until_empty: bool,
    outputs: str | None,
    identifiers: str | None,
    weights: str,
    runtime: str,
    site: Path | None,
    threshold: float | None,
    workers: int | None,
    batch_size: int,
    mode: int,
) -> int:
    """Judge the films that are put into a folder, as they come.

    A file is taken when it is whole: readable, and unchanged for --settle seconds; names that end in .part, .tmp and
    the like wait until they are renamed. A file that changes later is judged again. Stopped or killed, the same command
    goes on; `pipeline run FOLDER --out DIR` goes on in the same folder too.

    \b
    Example:
      pipeline watch export/ --out results
    """
    from cxr_pipeline.dicom.watch import Watcher
    from cxr_pipeline.results.outputs.asked import asked

    wanted = asked(outputs, identifiers=identifiers)
    log_to_stderr()
    chain = _opened(weights, runtime, site, threshold, "watch")
    options = {"outputs": wanted, "batch_size": batch_size, "workers": workers, "mode": mode}
    with Watcher(chain, folder, out, settle=settle, **options) as watcher:
        _on_signals(watcher.stop)
        click.echo(f"Watching {folder}  (Ctrl-C ends it)", err=True)
        watcher.run(until_empty=until_empty)
    return DONE
