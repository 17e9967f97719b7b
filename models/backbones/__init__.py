"""Backbones by name: one file each, one line each in `configs.networks`, and those of other packages.

A backbone of your own is a function ``build(rgb, *, setting=default)`` from a symbolic (N, size, size, 3) in [0, 1] to
a feature map (N, h, w, C), or a `Backbone` that also says which range it expects and which head it wants. The config
names it as ``classify.network: mypackage.module:build``, or by a name of the entry point group `cxr_pipeline.networks`.
"""

from __future__ import annotations

import importlib

from cxr_pipeline.configs.networks import place_of
from cxr_pipeline.models.backbones.base import Backbone, NetworkError

__all__ = ["Backbone", "NetworkError", "find_backbone"]


def find_backbone(network: str) -> Backbone:
    """The backbone of a name, or of a place "package.module:build".

    Raises:
        NetworkError: there is none; names those that exist, or what failed to import.
    """
    try:
        module, _, attribute = place_of(network).partition(":")
    except ValueError as error:
        raise NetworkError(str(error)) from error
    try:
        found = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise NetworkError(
            f"the network {network!r} cannot be imported ({error}). Is its package installed, or on PYTHONPATH?"
        ) from error
    if isinstance(found, Backbone):
        return found
    if callable(found):
        return Backbone(found)
    raise NetworkError(
        f"{network!r} must be a function build(rgb, ...) that returns a feature map, or a Backbone. Received: "
        f"{type(found).__name__}"
    )
