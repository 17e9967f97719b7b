"""DICOM on its way out and in: what a run writes for a PACS, and the programs that talk to one."""

from __future__ import annotations

from importlib.util import find_spec

from cxr_pipeline.configs.errors import CxrError

_NEEDED = {"pynetdicom": "pynetdicom", "dicomweb_client": "dicomweb-client", "highdicom": "highdicom"}


class NodeError(CxrError, ValueError):
    """A DICOM node or a DICOMweb server that was named wrongly, or cannot be reached; says what to do."""


def check_installed(what: str) -> None:
    """Whether the extra `[dicom]` is there.

    Args:
        what: that needs it, as a person calls it.

    Raises:
        NodeError: a package of it is missing.
    """
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise NodeError(
            f"{what} needs {', '.join(missing)}, which is not installed. Install it: pip install 'cxr-pipeline[dicom]'"
        )
