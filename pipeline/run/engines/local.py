"""The run in threads of this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cxr_pipeline.run import runner
from cxr_pipeline.run.engines.base import Engine, RunnerOptions

if TYPE_CHECKING:
    from cxr_pipeline.run.chain import Chain
    from cxr_pipeline.run.spec import ChainSpec


class LocalEngine(Engine):
    """Threads of this process read, judge and write."""

    name: ClassVar[str] = "local"
    summary: ClassVar[str] = "threads of this process"

    @classmethod
    def runner(cls, chain: Chain, spec: ChainSpec, out: Path, options: RunnerOptions, **own: Any) -> runner.Runner:
        """See `Engine.runner`."""
        del spec, own  # the chain is in this process already; there are no further options
        judges, ready = chain.judges, chain.networks.wait
        return runner.Runner(chain.stages, out, identity=chain.identity, ready=ready, judges=judges, **options)
