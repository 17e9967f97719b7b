"""What a run leaves, one file per output: the registry, and the door for outputs of other packages.

An output of another package is an entry point of the group `cxr_pipeline.outputs`::

    [project.entry-points."cxr_pipeline.outputs"]
    contours = "mypackage.contours:Contours"      # a class, see `results.outputs.base.Output`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.results.outputs.base import Output, failed, logged
from cxr_pipeline.results.outputs.regions import regions_of
from cxr_pipeline.results.outputs.table import columns, row_of

GROUP = "cxr_pipeline.outputs"

# In the order in which they are written.
_BUILT_IN = {
    "table": "cxr_pipeline.results.outputs.table:Table",
    "masks": "cxr_pipeline.results.outputs.masks:Masks",
    "overlays": "cxr_pipeline.results.outputs.overlays:Overlays",
    "heatmaps": "cxr_pipeline.results.outputs.heatmaps:Heatmaps",
    "crops": "cxr_pipeline.results.outputs.crops:Crops",
    "regions": "cxr_pipeline.results.outputs.regions:Regions",
    "dicom": "cxr_pipeline.results.outputs.dicom:DicomAnswers",
    "fhir": "cxr_pipeline.results.outputs.fhir:FhirBundles",
}


def output_names() -> list[str]:
    """All outputs by name: those of this package, then those of others. Imports none of them."""
    return [*_BUILT_IN, *sorted(one.name for one in entry_points(group=GROUP) if one.name not in _BUILT_IN)]


def output_class(name: str) -> type[Output]:
    """The class of an output.

    Raises:
        ResultsError: no output has that name, or that of another package cannot be imported or is none.
    """
    if name in _BUILT_IN:
        module, _, of = _BUILT_IN[name].partition(":")
        return getattr(import_module(module), of)
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                found = point.load()
            except Exception as error:
                raise ResultsError(
                    f"the output {name!r} ({point.value}) cannot be loaded ({type(error).__name__}: {error}). Mend or "
                    "remove its package"
                ) from error
            return _checked(name, point.value, found)
    raise ResultsError(f"no output is called {name!r}. There are {', '.join(output_names())}, or all")


def _checked(name: str, value: str, found: object) -> type[Output]:
    """An output of another package, as far as its class can be checked."""
    if not (isinstance(found, type) and issubclass(found, Output)):
        wrong = "it is no subclass of cxr_pipeline.results.outputs.base.Output"
    elif getattr(found, "name", None) != name or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        wrong = f"its name is {getattr(found, 'name', None)!r}; it must be that of the entry point: a to z, 0 to 9, - _"
    elif not all(re.fullmatch(r"[\w-]*(\.[a-z0-9]+)+", suffix) for suffix in found.suffixes):
        wrong = f"its suffixes are {found.suffixes}; each must end like a file name, such as .png"
    elif found.summary and not re.fullmatch(r"[a-z][a-z0-9_-]*\.[a-z0-9]+", found.summary):
        wrong = f"its summary is {found.summary!r}; it must be a file name such as regions.json"
    else:
        return found
    raise ResultsError(f"the output {name!r} ({value}) cannot be used: {wrong}")


def chosen(
    names: str | Sequence[str] | None = None,
    *,
    native_heatmaps: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    check: bool = True,
) -> tuple[Output, ...]:
    """The outputs that a run writes.

    Args:
        names: a list, or text with commas between; "all" takes all but those that must be named (dicom, fhir), and None
            those that a reader needs. The table is always among them.
        native_heatmaps: write heat maps, and at the films' own size.
        options: arguments of outputs by their name, for those that are written.
        check: see that what they need is installed.

    Raises:
        ResultsError: a name is unknown.
        CxrError: a package that one of them needs is not installed.
    """
    given = [part.strip() for part in names.split(",")] if isinstance(names, str) else names
    if given is None:
        wanted = {name for name in output_names() if output_class(name).default}
    else:
        wanted = {output_class(name).name for name in given if name and name != "all"}
        if "all" in given:
            wanted |= {name for name in output_names() if not output_class(name).named}
    wanted.add("table")
    how = dict(options or {})
    if native_heatmaps:
        wanted.add("heatmaps")
        how["heatmaps"] = {"native": True}
    if check:
        for name in wanted:
            output_class(name).check()
    return tuple(_made(name, how.get(name, {})) for name in output_names() if name in wanted)


def _made(name: str, options: Mapping[str, Any]) -> Output:
    try:
        return output_class(name)(**options)
    except TypeError as error:
        raise ResultsError(f"the output {name!r} cannot be used: {error}. It must need no arguments") from error


__all__ = ["Output", "chosen", "columns", "failed", "logged", "output_class", "output_names", "regions_of", "row_of"]
