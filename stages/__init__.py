"""The three stages by name. Importing this package loads none of them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.stages.base import Stage

NAMES = ("segment", "classify", "localize")  # in the order of the chain


def stage_class(name: str) -> type[Stage]:
    """The class of a stage.

    Raises:
        ValueError: no stage has that name.
    """
    if name not in NAMES:
        raise ValueError(f"stage must be one of {', '.join(NAMES)}. Received: {name!r}")
    return getattr(import_module(f"cxr_pipeline.stages.{name}"), name.capitalize())


def names_for(config: Config) -> list[str]:
    """The stages that a config's chain has: without segmentation where the classifier sees whole films."""
    return [name for name in NAMES if name != "segment" or config.classify.lungs != "none"]


def stored_names(chain: Path) -> list[str]:
    """The stages that a folder of weights has: the same, as told by the classifier's card where there is one."""
    from cxr_pipeline.models.store import CARD_FILE, read_card

    if (chain / "classify" / CARD_FILE).is_file() and read_card(chain / "classify")["decisions"].get("lungs") == "none":
        return [name for name in NAMES if name != "segment"]
    return list(NAMES)


def load_chain(
    weights: str | Path, upto: str = NAMES[-1], runtime: str = "onnx", *, threads: int | None = None
) -> list[Stage]:
    """The stages up to and including `upto`, from the weights of that name or in that folder.

    `runtime`, `threads`: see `models.store.open_network`.

    Raises:
        models.store.WeightsError: the weights do not exist, are incomplete or damaged.
    """
    from cxr_pipeline.models.store import WeightsError, bundle_of, find

    chain = find(weights)
    stored = stored_names(chain)
    if stage_class(upto).name not in stored:
        raise WeightsError(
            f"the weights {weights} have no stage {upto!r}: their classifier sees whole films. They have "
            f"{', '.join(stored)}"
        )
    names = [name for name in stored if NAMES.index(name) <= NAMES.index(stage_class(upto).name)]
    return [stage_class(name).load(bundle_of(chain, name), runtime=runtime, threads=threads) for name in names]
