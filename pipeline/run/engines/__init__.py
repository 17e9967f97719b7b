"""What films are judged on: this process, or the workers of a Ray cluster. Importing this package loads no engine.

An engine is one file, and one line in `ENGINES`; `tests/pipeline/test_engines.py` tests each of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cxr_pipeline.run.engines.base import Engine

ENGINES = {
    "local": "cxr_pipeline.run.engines.local:LocalEngine",
    "ray": "cxr_pipeline.run.engines.ray:RayEngine",
}


def names() -> tuple[str, ...]:
    """Names of all engines, the usual one first."""
    return tuple(ENGINES)


def engine_class(name: str) -> type[Engine]:
    """The class of an engine.

    Raises:
        EngineError: no engine has that name.
    """
    if name not in ENGINES:
        from cxr_pipeline.run.engines.base import EngineError

        raise EngineError(f"--engine must be one of {', '.join(ENGINES)}. Received: {name!r}")
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)


def owner_of(option: str) -> str | None:
    """The engine that an option of `pipeline run` is for; None where none has it."""
    return next((name for name in ENGINES if option in engine_class(name).options), None)
