"""What decides a run's answers, and the error of a folder that a run cannot go on in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cxr_pipeline import stages
from cxr_pipeline.configs.errors import CxrError


class ResultsError(CxrError, ValueError):
    """A results folder that this run cannot go on in; says what to do."""


@dataclass(frozen=True)
class Identity:
    """What decides a run's answers. Results of different identities are never mixed in one folder.

    Attributes:
        version: of this program.
        runtime: what runs the networks.
        stages: fingerprint by name, in the order of the chain, settings of the run included.
        classes: of the classifier, in its order; empty where the chain has none.
        about: what else `run.json` says of them (not compared): weights, files and their hashes, decisions.
        columns: further columns of `results.csv` that the stages declare (not compared: they follow from the stages).
    """

    version: str
    runtime: str
    stages: dict[str, str]
    classes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @property
    def last(self) -> str:
        """What the chain goes up to, see `stages.ends`."""
        return stages.ends(list(self.stages))
