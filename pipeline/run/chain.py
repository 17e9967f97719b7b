"""The chain that a run uses: its stages, what the config changes in them, and what `run.json` says of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_pipeline import stages
from cxr_pipeline.about import version, versions
from cxr_pipeline.results.folder import Identity
from cxr_pipeline.run.reading import file_hash
from cxr_pipeline.run.runner import classes_of

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.stages.base import Stage

# Settings that a trained stage obeys when it runs; all others concern its training.
RUN_SETTINGS = {
    "segment": ("threshold", "margin", "min_fraction", "min_side", "min_age"),
    "localize": ("threshold", "min_area", "max_regions", "label"),
}


@dataclass(frozen=True)
class Chain:
    """Loaded stages with their identity. `settings` are those that the config changed, by stage."""

    stages: list[Stage]
    identity: Identity
    settings: dict[str, dict[str, Any]]


def open_chain(
    weights: str,
    upto: str,
    *,
    runtime: str = "onnx",
    config: str | None = None,
    site: Path | None = None,
    label: str | None = None,
    threshold: float | None = None,
    refuse: bool = True,
    arguments: dict[str, Any] | None = None,
    threads: int | None = None,
) -> Chain:
    """Load the stages up to and including `upto`, with the settings of a config on top of what their cards decide.

    Args:
        weights: name of shipped weights, or the folder of trained ones.
        config: a YAML file or the name of a preset. Of it, running obeys `RUN_SETTINGS`, where it names them and they
            differ from what the weights were trained with (a fitted threshold stays when the config of the training is
            given again).
        site: a site file, see `train.calibration`.
        label: class whose map and regions are shown, in place of the predicted one.
        threshold: score from which a film is screen positive; None: 50, the operating threshold of weights or site.
        refuse: False lets films go on that cannot be judged, with warnings.
        arguments: of the command, for run.json.
        threads: cores for each network; None lets it take all.

    Raises:
        models.store.WeightsError: the weights do not exist or cannot be opened.
        configs.schema.ConfigError: the config cannot be read, or names other classes than the weights have.
        train.calibration.CalibrationError: the site file cannot be read, or is of other weights.
    """
    from cxr_pipeline.models.store import bundle_of, find

    wanted = None
    if config is not None:
        from cxr_pipeline.configs.schema import load_config

        wanted = load_config(config)
    chain = stages.load_chain(weights, upto, runtime, threads=threads)
    settings = _apply(wanted, chain) if wanted is not None else {}
    if site is not None:
        from cxr_pipeline.train.calibration import apply_site

        calibrated = apply_site(site, chain)
        if calibrated:
            settings.setdefault("classify", {}).update(calibrated)
    if threshold is not None:
        _apply_threshold(threshold, chain, settings)
    if label is not None and chain[-1].name == "localize":
        if label not in chain[-1].classes:
            from cxr_pipeline.configs.schema import ConfigError

            raise ConfigError(f"--label must be one of {', '.join(chain[-1].classes)}. Received: {label!r}")
        chain[-1].label = settings.setdefault("localize", {})["label"] = label
    if not refuse:
        chain[0].refuse = False
        settings.setdefault(chain[0].name, {})["refuse"] = False
    folder = find(weights)
    about = {
        "weights": weights,
        "decided": settings.get("classify", {}),
        "bundles": {stage.name: stage.fingerprint for stage in chain},
        "hashes": {stage.name: _hashes(bundle_of(folder, stage.name), runtime) for stage in chain},
        "config": {stage.name: stage.card["decisions"] | settings.get(stage.name, {}) for stage in chain},
        "unchecked": unchecked(chain),
        "versions": versions(),
        "arguments": arguments or {},
    }
    identity = Identity(
        version(),
        runtime,
        {stage.name: fingerprint_of(stage.fingerprint, settings.get(stage.name)) for stage in chain},
        classes_of(chain),
        about,
    )
    return Chain(chain, identity, settings)


def unchecked(chain: Sequence[Stage]) -> str:
    """What a user must know where a chain cannot tell a chest X-ray from anything else; empty where it can."""
    first = chain[0]
    if first.name != "segment":
        why = "have no segmentation, which checks them"
    elif getattr(first, "quality", None) is None:
        why = "were trained on fewer films with lung masks than a check can be fitted on"
    else:
        return ""
    return (
        f"Films are not checked for being upright frontal chest X-rays: these weights {why}. A photo would get an "
        "answer like a film"
    )


def _apply(config: Config, chain: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    from cxr_pipeline.configs.schema import ConfigError

    classes = list(classes_of(chain))
    if classes and "classes" in config.model_fields_set and config.classes != classes:
        raise ConfigError(
            f"the config has the classes {config.classes}, the weights {classes}. "
            "Take the config that the weights were trained with, or one without classes"
        )
    changed: dict[str, dict[str, Any]] = {}
    for stage in chain:
        section = getattr(config, stage.name)
        trained = stage.card.get("training", {}).get("settings", {})
        for name in RUN_SETTINGS.get(stage.name, ()):
            value = getattr(section, name)
            named = name in section.model_fields_set
            if named and value != trained.get(name) and value != stage.card["decisions"].get(name):
                setattr(stage, name, value)
                changed.setdefault(stage.name, {})[name] = value
    return changed


def _apply_threshold(threshold: float, chain: Sequence[Stage], settings: dict[str, dict[str, Any]]) -> None:
    from cxr_pipeline.configs.schema import ConfigError

    for stage in chain:
        if stage.name == "classify":
            if stage.positive is None or stage.multi_label:
                raise ConfigError("--threshold: these weights give no score. Leave it out")
            stage.cutoff = settings.setdefault("classify", {})["cutoff"] = float(threshold)


def fingerprint_of(bundle: str, settings: dict[str, Any] | None) -> str:
    """What names a stage's answers: the fingerprint of its bundle, with the settings that changed, if any."""
    if not settings:
        return bundle
    text = bundle + json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hashes(bundle: Path, runtime: str) -> dict[str, str]:
    from cxr_pipeline.models.store import CARD_FILE, QUALITY_FILE, RUNTIMES

    names = (CARD_FILE, RUNTIMES[runtime], QUALITY_FILE)
    return {name: file_hash(bundle / name) for name in names if (bundle / name).is_file()}
