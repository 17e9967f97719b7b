"""The contract of an engine: what spreads the work of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import TypedDict

from cxr_pipeline.configs.errors import CxrError

if TYPE_CHECKING:
    from cxr_pipeline.results.outputs import Output
    from cxr_pipeline.run.chain import Chain
    from cxr_pipeline.run.runner import Runner
    from cxr_pipeline.run.spec import ChainSpec


class EngineError(CxrError, RuntimeError):
    """An engine that does not exist, is not installed, cannot be reached, or has no room for a worker."""


class RunnerOptions(TypedDict, total=False):
    """What a run may choose whatever the engine; defaults are those of `Runner`.

    `batch_size` films that the networks see at once; `workers` that work side by side, None leaves it to the engine;
    `outputs`, `mode`, `verify` and `fast_decode` as in `Runner`.
    """

    batch_size: int
    workers: int | None
    outputs: Sequence[Output] | None
    mode: int
    verify: bool
    fast_decode: bool | None


class Engine(ABC):
    """Makes the runner of a run. Whatever the engine, the same films leave the same bytes.

    Attributes:
        name: in `--engine`.
        summary: one line for lists of engines.
        options: names of the options of `pipeline run` that are for this engine alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def check(cls, runtime: str, **options: Any) -> None:
        """Refuse a call that cannot work, before any weights are loaded.

        Args:
            runtime: what shall run the networks.
            options: of `options`, those that were given.

        Raises:
            EngineError: what the engine runs on is not installed, or two options exclude each other.
        """
        del runtime, options

    @classmethod
    @abstractmethod
    def runner(cls, chain: Chain, spec: ChainSpec, out: Path, options: RunnerOptions, **own: Any) -> Runner:
        """A runner that judges films into the folder `out`.

        Args:
            chain: the loaded chain that `spec` describes.
            spec: for processes that open a chain of their own.
            options: of the runner, those that were given.
            own: of `Engine.options`, those that were given.
        """
