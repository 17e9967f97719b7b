"""The stages by name: those of this package, and those that other packages bring.

A stage is one file, and one line in `BUILT_IN`; in a package of its own, one entry point of the group
`cxr_pipeline.stages`::

    [project.entry-points."cxr_pipeline.stages"]
    bones = "mypackage.bones:Bones"

Importing this module imports no stage, so that the command line can name them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from cxr_pipeline.configs.errors import CxrError

if TYPE_CHECKING:
    from cxr_pipeline.stages.base import Stage

GROUP = "cxr_pipeline.stages"
LAST = "localize"  # what a run ends with where no stage is named: the regions

BUILT_IN = {
    "segment": "cxr_pipeline.stages.segment:Segment",
    "classify": "cxr_pipeline.stages.classify:Classify",
    "localize": "cxr_pipeline.stages.localize:Localize",
    "measure": "cxr_pipeline.stages.measure:Measure",
}


class UnknownStageError(CxrError, ValueError):
    """No stage has that name, or the one that has it cannot be loaded."""


def names() -> tuple[str, ...]:
    """Names of all stages: those of this package, then those of others in the order of the alphabet."""
    return (*BUILT_IN, *sorted(name for name in _foreign() if name not in BUILT_IN))


def stage_class(name: str) -> type[Stage]:
    """The class of a stage.

    Raises:
        UnknownStageError: no stage has that name, or the package that brings it cannot be loaded.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    point = _foreign().get(name)
    if point is None:
        raise UnknownStageError(f"stage must be one of {', '.join(names())}. Received: {name!r}")
    from cxr_pipeline.stages.base import Stage

    try:
        found = point.load()
    except Exception as error:  # of a package that this project knows nothing of
        raise UnknownStageError(
            f"the stage {name!r} of {point.value} cannot be loaded ({type(error).__name__}: {error}). Mend or "
            "uninstall the package that brings it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Stage)) or getattr(found, "name", None) != name:
        raise UnknownStageError(
            f"the entry point {name} = {point.value} must name a subclass of cxr_pipeline.stages.base.Stage whose "
            f"`name` is {name!r}. Received: {found!r}"
        )
    return found


def ordered(chosen: Iterable[str]) -> list[str]:
    """Stages in the order that their needs ask for; where these leave it open, in the order of `names`.

    Raises:
        UnknownStageError: one of them does not exist, or two wait for each other.
    """
    left = sorted(set(chosen), key=_place)
    out: list[str] = []
    while left:
        ready = next((name for name in left if not any(_feeds(other, name) for other in left)), None)
        if ready is None:
            raise UnknownStageError(
                f"the stages {', '.join(left)} wait for each other: check their `needs`, `uses` and `fills`"
            )
        out.append(ready)
        left.remove(ready)
    return out


def leading_to(last: str, among: Iterable[str] | None = None) -> list[str]:
    """The stage `last` with all that come before it because it, or one of them, takes what they fill in.

    Args:
        among: the stages to choose from; None for all.
    """
    candidates = set(names() if among is None else among) | {last}
    wanted, waiting = {last}, [last]
    while waiting:
        name = waiting.pop()
        feeding = {other for other in candidates - wanted if _feeds(other, name)}
        wanted |= feeding
        waiting += feeding
    return ordered(wanted)


def before(name: str, among: Sequence[str]) -> list[str]:
    """The stages that `name` builds on, in order."""
    return [other for other in leading_to(name, among) if other != name]


def ends(chain: Sequence[str]) -> str:
    """What a chain goes up to, as one word for journals: its stages that no other one of it builds on, by a plus sign.

    Of the whole chain it is "localize", with `measure` beside it "localize+measure". Stages of other packages are
    always named: whether they ran does not follow from those of this one.
    """
    if any(name not in names() for name in chain):
        return "+".join(chain[-1:])
    return "+".join(name for name in chain if name not in BUILT_IN or not any(_feeds(name, other) for other in chain))


def covers(done: str, wanted: str) -> bool:
    """Whether a chain that ended with `done` (see `ends`) ran all stages of one that ends with `wanted`."""
    if done == wanted:
        return True
    parts = [*done.split("+"), *wanted.split("+")]
    if any(part not in names() for part in parts):  # of a package that is not installed any more
        return False
    ran, asked = ({name for part in end.split("+") for name in leading_to(part, BUILT_IN)} for end in (done, wanted))
    return asked <= ran


def filled(chain: Iterable[str]) -> set[str]:
    """Fields of a record that the stages of these names fill in; stages that are not installed fill in nothing."""
    return {field for name in chain if name in names() for field in stage_class(name).fills}


def belonging(decisions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The stages that a chain has unasked, in order; see `Stage.belongs`."""
    return ordered(name for name in BUILT_IN if stage_class(name).belongs(decisions))


def about() -> dict[str, dict[str, Any]]:
    """What `pipeline info --json` says of each stage."""
    out = {}
    for name in names():
        stage = stage_class(name)
        out[name] = {
            "summary": stage.summary,
            "needs": list(stage.needs),
            "uses": list(stage.uses),
            "fills": list(stage.fills),
            "columns": {column.name: column.meaning for column in stage.columns},
            "has_weights": stage.has_weights,
            "run_settings": list(stage.run_settings),
            "truth": stage.truth.what,
            "headline_figures": list(stage.headline_figures),
        }
    return out


def _feeds(giver: str, taker: str) -> bool:
    """Whether a stage fills in what another one takes."""
    if giver == taker:
        return False
    first, second = stage_class(giver), stage_class(taker)
    return bool(set(first.fills) & {*second.needs, *second.uses})


def _place(name: str) -> int:
    known = names()
    if name not in known:
        raise UnknownStageError(f"stage must be one of {', '.join(known)}. Received: {name!r}")
    return known.index(name)


@cache
def _foreign() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def refresh() -> None:
    """Look again for stages of other packages: for those that are installed while this process runs."""
    _foreign.cache_clear()
