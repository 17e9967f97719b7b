"""The run in threads of this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cxr_pipeline.data.files import PRIVATE
from cxr_pipeline.run import runner
from cxr_pipeline.run.engines.base import Engine

if TYPE_CHECKING:
    from cxr_pipeline.results.outputs import Output
    from cxr_pipeline.run.chain import Chain
    from cxr_pipeline.run.spec import ChainSpec


class LocalEngine(Engine):
    """Threads of this process read and write; one thread judges."""

    name: ClassVar[str] = "local"
    summary: ClassVar[str] = "threads of this process"

    @classmethod
    def runner(
        cls,
        chain: Chain,
        spec: ChainSpec,
        out: Path,
        *,
        batch_size: int = 8,
        workers: int | None = None,
        outputs: Sequence[Output] | None = None,
        mode: int = PRIVATE,
        verify: bool = False,
        **options: Any,
    ) -> runner.Runner:
        """See `Engine.runner`."""
        del spec, options  # the chain is in this process already; there are no options
        return runner.Runner(
            chain.stages,
            out,
            identity=chain.identity,
            batch_size=batch_size,
            workers=workers,
            outputs=outputs,
            mode=mode,
            verify=verify,
        )
