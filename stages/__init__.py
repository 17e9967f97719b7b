"""The stages by name, and chains of them. Importing this package loads none of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_pipeline.stages.registry import (
    BUILT_IN,
    LAST,
    UnknownStageError,
    before,
    belonging,
    covers,
    ends,
    filled,
    leading_to,
    names,
    ordered,
    stage_class,
)

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.stages.base import Stage

__all__ = [
    "BUILT_IN",
    "LAST",
    "UnknownStageError",
    "before",
    "belonging",
    "covers",
    "ends",
    "filled",
    "leading_to",
    "load_chain",
    "names",
    "names_for",
    "ordered",
    "stage_class",
    "stored_names",
]


def names_for(config: Config) -> list[str]:
    """The stages that a config's chain has, in order: without segmentation where the classifier sees whole films."""
    sections = {name: getattr(config, name) for name in BUILT_IN if hasattr(config, name)}
    return belonging({name: section.model_dump() for name, section in sections.items()})


def stored_names(chain: Path) -> list[str]:
    """The stages that a folder of weights has to have, by what its cards decide, and those that it has besides.

    Raises:
        models.store.WeightsError: a card is damaged.
    """
    from cxr_pipeline.models.store import CARD_FILE, read_card

    stored = [name for name in names() if (chain / name / CARD_FILE).is_file()]
    further = [name for name in stored if name not in BUILT_IN or not stage_class(name).has_weights]
    return ordered([*belonging({name: read_card(chain / name)["decisions"] for name in stored}), *further])


def load_chain(
    weights: str | Path,
    last_stage: str | None = None,
    runtime: str = "onnx",
    *,
    threads: int | None = None,
    also: Sequence[str] = (),
) -> list[Stage]:
    """The stages up to and including `last_stage`, from the weights of that name or in that folder, in order.

    Args:
        last_stage: by default all stages that the weights have.
        runtime, threads: see `models.store.open_network`.
        also: further stages, with what they build on.

    Raises:
        UnknownStageError: no stage has that name.
        models.store.WeightsError: the weights do not exist, lack a stage, are incomplete or damaged.
        stages.base.StageError: a stage needs what no stage of the chain fills in.
    """
    from cxr_pipeline.models.store import WeightsError, bundle_of, find

    folder = find(weights)
    stored = stored_names(folder)
    asked = [*([last_stage] if last_stage is not None else []), *also]
    for name in asked:
        if name not in stored and stage_class(name).has_weights:
            raise WeightsError(
                f"the weights {weights} have no stage {name!r}: they judge films without it. They have "
                f"{', '.join(stored)}"
            )
    among = [*stored, *asked]
    chosen = set(stored if last_stage is None else leading_to(last_stage, among))
    for name in also:
        chosen.update(leading_to(name, among))
    order = ordered(chosen)
    _check_needs(order, str(weights))
    return [
        stage_class(name).load(
            bundle_of(folder, name) if stage_class(name).has_weights else folder / name,
            runtime=runtime,
            threads=threads,
        )
        for name in order
    ]


def _check_needs(order: Sequence[str], weights: str) -> None:
    from cxr_pipeline.stages.base import StageError

    for place, name in enumerate(order):
        missing = [need for need in stage_class(name).needs if need not in filled(order[:place])]
        if missing:
            givers = [other for other in names() if missing[0] in stage_class(other).fills]
            raise StageError(
                f"the stage {name!r} needs {missing[0]}, which no stage of the weights {weights} fills in. Take "
                f"weights that have one of these: {', '.join(givers) or 'none of those installed'}"
            )
