"""What the base installation leaves out: which extra brings which package, and the error that names it."""

from __future__ import annotations

from importlib.util import find_spec

from cxr_pipeline.configs.errors import CxrError

# The modules of each extra that this program imports by name. `pip install cxr-pipeline` alone is for `run`.
MODULES = {
    "pandas": ("pandas",),
    "figures": ("matplotlib", "scipy", "sklearn"),
    "train": ("albumentations", "h5py", "keras", "onnx", "segmentation_models", "tensorflow", "tf2onnx"),
    "ray": ("ray",),
    "openvino": ("openvino",),
    "web": ("fastapi", "prometheus_client", "multipart", "uvicorn"),
    "excel": ("openpyxl",),
    "formats": ("nibabel", "pillow_heif"),
}
BUILDS_ON = {"figures": ("pandas",), "train": ("pandas", "figures")}  # extras that bring others with them


class MissingExtraError(CxrError, ImportError):
    """A part of this program that needs packages which are not installed."""


def require(extra: str, what: str) -> None:
    """Refuse what needs an extra that is not installed, before any work is begun.

    Args:
        extra: its name.
        what: that needs it, as the error begins: "pipeline train".

    Raises:
        MissingExtraError: which packages are missing, and how to install them.
    """
    modules = [name for one in (*BUILDS_ON.get(extra, ()), extra) for name in MODULES[one]]
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise _error(what, missing, extra)


def explained(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error that names the extra of a module that could not be imported; None where none of them brings it."""
    top = (error.name or "").partition(".")[0]
    extra = next((name for name, modules in MODULES.items() if top in modules), None)
    return None if extra is None else _error("this", [top], extra)


def _error(what: str, missing: list[str], extra: str) -> MissingExtraError:
    return MissingExtraError(
        f"{what} needs {', '.join(missing)}, which the base installation leaves out. "
        f"Install it: pip install 'cxr-pipeline[{extra}]'"
    )
