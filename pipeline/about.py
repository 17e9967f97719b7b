"""What is installed here: versions, runtimes, shipped weights with their figures, presets. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from cxr_pipeline.models import runtimes

PROGRAM = "cxr-pipeline"
NOTICE = "Research use only. Not a medical device; no diagnosis may rest on it."
RUNTIMES = tuple(runtimes.RUNTIMES)  # what --runtime takes
PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "pydicom",
    "keras",
    "tensorflow",
)
EXIT_CODES = {
    0: "all done",
    1: "done, but some inputs were refused or failed; results.csv says which and why",
    2: "not done: the call was wrong, or the disk or a file stood in the way",
    130: "interrupted; the same command goes on",
}
# The figures that a list has room for, of those on a card.
_MAIN = ("dice", "hd95_px", "auc_tb", "sensitivity", "specificity", "balanced_accuracy", "ece", "hit_rate", "ap50")


def version() -> str:
    """The version of this program, whether installed or run from a checkout."""
    try:
        return metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        project = Path(__file__).parent.parent / "pyproject.toml"
        text = project.read_text(encoding="utf-8") if project.is_file() else ""
        found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
        return found.group(1) if found else "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, those that are installed; imports none of them."""
    found = {name: _installed(name) for name in PACKAGES}
    return {"python": platform.python_version(), **{name: value for name, value in found.items() if value}}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def info() -> dict[str, Any]:
    """All that `pipeline info --json` prints.

    Keys: program, version, python, platform, notice, runtimes (name -> version of its package, null where it is not
    installed), packages, stages (name -> what `stages.registry.about` says of it), weights (a list of name, bytes and
    stages with classes and figures), presets, settings (name -> default and description), exit_codes.
    """
    from cxr_pipeline.configs.schema import presets

    return {
        "program": PROGRAM,
        "version": version(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "notice": NOTICE,
        "runtimes": {
            name: _installed(one.package) or (_installed(one.replaced) if one.replaced else None)
            for name, one in runtimes.RUNTIMES.items()
        },
        "packages": versions(),
        "stages": _stages(),
        "weights": _weights(),
        "presets": presets(),
        "settings": _settings(),
        "exit_codes": {str(code): meaning for code, meaning in EXIT_CODES.items()},
    }


def _stages() -> dict[str, dict[str, Any]]:
    from cxr_pipeline.stages.registry import about

    return about()


def _weights() -> list[dict[str, Any]]:
    from cxr_pipeline import stages
    from cxr_pipeline.models.store import SHIPPED, WeightsError, read_card, shipped

    out = []
    for name in shipped():
        folder, described = SHIPPED / name, {}
        for stage in stages.names():
            try:
                card = read_card(folder / stage)
            except WeightsError:
                continue
            described[stage] = {
                "classes": card["decisions"].get("classes"),
                "figures": {split: _main_figures(figures) for split, figures in card.get("figures", {}).items()},
            }
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        out.append({"name": name, "bytes": size, "stages": described})
    return out


def _main_figures(figures: Any) -> dict[str, Any]:
    if not isinstance(figures, dict):
        return {}
    return {name: figures[name] for name in _MAIN if isinstance(figures.get(name), dict)}


def _settings() -> dict[str, dict[str, Any]]:
    from pydantic import BaseModel

    from cxr_pipeline.configs.schema import Config

    def walk(model: BaseModel, prefix: str) -> dict[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {}
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                out |= walk(value, f"{prefix}{name}.")
            else:
                plain = json.loads(json.dumps(value, default=str))
                out[prefix + name] = {"default": plain, "description": field.description or ""}
        return out

    return walk(Config(), "")


def as_text(facts: dict[str, Any]) -> str:
    """`info` for reading."""
    lines = [
        f"{facts['program']} {facts['version']}, Python {facts['python']}, {facts['platform']}",
        facts["notice"],
        "",
    ]
    lines.append("Runtimes (--runtime)")
    width = max(map(len, facts["runtimes"]))
    lines += [f"  {name:{width}}  {value or 'not installed'}" for name, value in facts["runtimes"].items()]
    lines += ["", "Stages (--stage)"]
    lines += [f"  {name:10}{stage['summary']}" for name, stage in facts["stages"].items()]
    lines += ["", "Weights (--weights)"]
    for weights in facts["weights"]:
        lines.append(f"  {weights['name']}  {weights['bytes'] / 1e6:.1f} MB")
        for stage, described in weights["stages"].items():
            for split, figures in described["figures"].items():
                lines.append(f"    {stage:9} {split:18} {', '.join(map(_figure, figures, figures.values()))}")
    if not facts["weights"]:
        lines.append("  none")
    lines += [
        "",
        f"Presets (--config): {', '.join(facts['presets'])}",
        "",
        "Settings (--set NAME=VALUE, or in a config)",
    ]
    width = max(map(len, facts["settings"]))
    for name, setting in facts["settings"].items():
        lines.append(f"  {name:{width}}  {json.dumps(setting['default'])}  {setting['description']}".rstrip())
    lines += ["", "Exit codes"]
    lines += [f"  {code:4}{meaning}" for code, meaning in facts["exit_codes"].items()]
    return "\n".join(lines)


def _figure(name: str, figure: dict[str, Any]) -> str:
    value, interval = figure.get("value"), figure.get("ci95") or [None, None]
    if value is None:
        return f"{name} none"
    bounds = "" if None in interval else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"{name} {value:.3f}{bounds}"
