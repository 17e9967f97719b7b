"""A Ray cluster for a run: found or started, quiet, and left as it was."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from cxr_pipeline.about import cores
from cxr_pipeline.run.engines.base import EngineError

_STORE = 512 << 20  # bytes of shared memory for a cluster of our own; paths and entries pass through it, no pixels
_ANSWER = 10.0  # seconds for a cluster to answer at its address
_QUIET = ("ray", "ray.data")


def room_for(nodes: Sequence[dict[str, Any]], cpus: float, gpus: float) -> int:
    """How many workers fit on the nodes of a cluster, as `ray.nodes()` gives them.

    Raises:
        EngineError: none does.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
    # By ten-thousandths, which is what Ray counts in: 1 / 0.1 is 10, not 9.
    rooms = [min(round(1e4 * node.get(name, 0)) // round(1e4 * n) for name, n in wanted.items()) for node in alive]
    if sum(rooms):
        return sum(rooms)
    room = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in alive) or "no machine"
    raise EngineError(
        f"a worker of {cpus:g} CPUs and {gpus:g} GPUs fits nowhere in the cluster, which has: {room}. "
        "Lower --cpus-per-worker or --gpus-per-worker; or give --workers, where machines join when there is work"
    )


def import_ray() -> ModuleType:
    """Ray with Ray Data, told to send no usage statistics.

    Raises:
        EngineError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its core, which else writes among our lines
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns that this will be its default
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise EngineError(
            f"--engine ray needs Ray, which is not installed ({error}). "
            "Install it: pip install 'cxr-pipeline[ray]'; or leave the option out"
        ) from error
    return ray


@contextmanager
def connected(address: str | None = None) -> Iterator[tuple[ModuleType, bool]]:
    """Ray, connected, and whether to a cluster of this call's own, which ends with it.

    Args:
        address: of a cluster; by default that in RAY_ADDRESS, or else a new one of this machine alone. Where this
            process is connected already, that stays as it is.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot be reached.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray, False
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    own = {"num_cpus": cores(), "object_store_memory": _STORE, "include_dashboard": False}
    try:
        _knock(address)
        with _without_stderr():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **(own if address == "local" else {}))
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        if address == "local":  # nobody named a cluster
            raise EngineError(
                f"Ray did not start on this machine ({why}). A machine that is very busy keeps its parts waiting too "
                "long for each other: run the same command again, or leave out --engine ray"
            ) from error
        raise EngineError(
            f"no Ray cluster at {address} ({why}). Start one with `ray start --head`, "
            "correct --address or RAY_ADDRESS, or leave both out for one of this machine alone"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's ends with code 1, which here means something else
    try:
        yield ray, address == "local"
    finally:
        ray.shutdown()  # ends the workers too


def _knock(address: str) -> None:
    """OSError where nobody listens at HOST:PORT; Ray itself would go on trying for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what is written to file descriptor 2, where Ray's core writes before it can be told not to."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def quiet(ray: ModuleType) -> Iterator[None]:
    """Ray Data quiet, and willing to go on after a block whose workers all died; as before at the end."""
    context = ray.data.DataContext.get_current()
    ours = {"enable_progress_bars": False, "print_on_execution_start": False, "max_errored_blocks": -1}
    before = {name: getattr(context, name) for name in ours}
    levels = {name: logging.getLogger(name).level for name in _QUIET}
    try:
        for name, value in ours.items():
            setattr(context, name, value)
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
