"""The chain that a run uses, opened: its stages, and what `run.json` says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_pipeline.about import cores, versions
from cxr_pipeline.models.late import Waiting, late_networks
from cxr_pipeline.results.folder import Identity
from cxr_pipeline.run.reading import file_hash
from cxr_pipeline.run.runner import identity_of

if TYPE_CHECKING:
    from cxr_pipeline.run.spec import ChainSpec
    from cxr_pipeline.stages.base import Stage


# Each holds a batch of films and the networks' maps of it: some 170 MB on films of 512 px, 400 MB on those of 3000.
MOST_JUDGES = 4


@dataclass(frozen=True)
class Chain:
    """Loaded stages with their identity.

    Attributes:
        settings: those that the call changed, by stage.
        networks: those that are not open yet, if any.
        judges: threads that may judge films at once.
    """

    stages: list[Stage]
    identity: Identity
    settings: dict[str, dict[str, Any]]
    networks: Waiting = field(default_factory=Waiting)
    judges: int = 1


def open_chain(
    spec: ChainSpec, arguments: dict[str, Any] | None = None, *, late: bool = False, side_by_side: bool = False
) -> Chain:
    """Load the stages that `spec` describes; see `ChainSpec.load` for what it raises.

    Args:
        arguments: of the command, for run.json.
        late: leave the networks closed; `Chain.networks` opens them.
        side_by_side: for many films: let several threads judge at once, where runtime and stages can, and share the
            cores among them.
    """
    from cxr_pipeline.models.store import find

    with late_networks() as networks:
        chain = spec.load()
    judges = judges_of(spec, chain) if side_by_side else 1
    if judges > 1:
        networks.threads = max(1, cores() // judges)
    if not late:
        networks.wait()
    folder = find(spec.weights)
    about = {
        "weights": spec.weights,
        "decided": next((dict(stage.settings) for stage in chain if "screen" in stage.fills), {}),
        "bundles": {stage.name: stage.fingerprint for stage in chain},
        "hashes": {stage.name: _hashes(folder / stage.name, spec.runtime) for stage in chain},
        "config": {stage.name: dict(stage.decisions) for stage in chain},
        "unchecked": unchecked(chain),
        "versions": versions(),
        "arguments": arguments or {},
        "date": date.today().isoformat(),
        "language": spec.language,
    }
    identity = identity_of(chain, runtime=spec.runtime, about=about)
    settings = {stage.name: dict(stage.settings) for stage in chain if stage.settings}
    return Chain(chain, identity, settings, networks, judges)


def judges_of(spec: ChainSpec, chain: Sequence[Stage]) -> int:
    """How many threads may judge films of a chain at once; 1 where the networks' cores are given, or one cannot."""
    from cxr_pipeline.models.runtimes import RUNTIMES

    able = RUNTIMES[spec.runtime].shared and all(stage.shared for stage in chain)
    return min(cores(), MOST_JUDGES) if able and spec.threads is None else 1


def unchecked(chain: Sequence[Stage]) -> str:
    """What a user must know where a chain cannot tell a chest X-ray from anything else; empty where it can."""
    why = chain[0].unchecked()
    if why is None:
        return ""
    return (
        f"Films are not checked for being upright frontal chest X-rays: these weights {why}. A photo would get an "
        "answer like a film"
    )


def _hashes(bundle: Path, runtime: str) -> dict[str, str]:
    from cxr_pipeline.models.store import CARD_FILE, QUALITY_FILE, RUNTIMES

    names = (CARD_FILE, RUNTIMES[runtime], QUALITY_FILE)
    return {name: file_hash(bundle / name) for name in names if (bundle / name).is_file()}
