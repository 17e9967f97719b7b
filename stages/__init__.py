"""The three stages by name. Importing this package loads none of them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.base import Stage

NAMES = ("segment", "classify", "localize")  # in the order of the chain


def stage_class(name: str) -> type[Stage]:
    """The class of a stage.

    Raises:
        ValueError: no stage has that name.
    """
    if name not in NAMES:
        raise ValueError(f"stage must be one of {', '.join(NAMES)}. Received: {name!r}")
    return getattr(import_module(f"stages.{name}"), name.capitalize())


def load_chain(
    weights: str | Path, upto: str = NAMES[-1], runtime: str = "onnx", *, threads: int | None = None
) -> list[Stage]:
    """The stages up to and including `upto`, from the weights of that name or in that folder.

    `runtime`, `threads`: see `models.weights.open_network`.

    Raises:
        models.weights.WeightsError: the weights do not exist, are incomplete or damaged.
    """
    from models.weights import bundle_of, find

    chain = find(weights)
    names = NAMES[: NAMES.index(stage_class(upto).name) + 1]
    return [stage_class(name).load(bundle_of(chain, name), runtime=runtime, threads=threads) for name in names]
