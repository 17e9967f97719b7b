"""What a person runs: the command line, and `Pipeline` from Python. Importing this package loads neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr_pipeline.api import Pipeline, Results, open_results

__all__ = ["Pipeline", "Results", "open_results"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from cxr_pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
