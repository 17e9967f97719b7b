"""The classification networks by name, and where each is built. Light: settings are checked without Keras."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

# One line for each file of models/backbones/.
NETWORKS: dict[str, str] = {
    "chest": "cxr_pipeline.models.backbones.chest:BACKBONE",
    "mobilenetv2": "cxr_pipeline.models.backbones.mobilenetv2:BACKBONE",
    "efficientnetb0": "cxr_pipeline.models.backbones.efficientnetb0:BACKBONE",
    "densenet121": "cxr_pipeline.models.backbones.densenet121:BACKBONE",
    "sequential_cnn": "cxr_pipeline.models.backbones.sequential_cnn:BACKBONE",
    "chexpert_cnn": "cxr_pipeline.models.backbones.chexpert_cnn:BACKBONE",
}
ENTRY_POINTS = "cxr_pipeline.networks"  # the group in which other packages register theirs

_PLACE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def known_networks() -> dict[str, str]:
    """All networks with a name, as name -> "module:attribute": ours, and those of installed packages."""
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)} | NETWORKS


def place_of(network: str) -> str:
    """Where a network is built, as "module:attribute".

    Args:
        network: a name, or such a place itself.

    Raises:
        ValueError: it is neither; names the networks that there are.
    """
    if network in NETWORKS:
        return NETWORKS[network]
    if _PLACE.fullmatch(network):
        return network
    known = known_networks()
    if network in known:
        return known[network]
    names = ", ".join(repr(name) for name in sorted(known))
    raise ValueError(f"network must be one of {names}, or 'package.module:build'. Received: {network!r}")
