"""A site's calibration file as a run obeys it; what makes it: `train.calibration`, which needs more packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.configs.yaml_text import YamlError, read_yaml
from cxr_pipeline.stages.base import Stage
from cxr_pipeline.stages.scores import Scale
from cxr_pipeline.stages.sets import Sets

NoSite = Literal["none"]  # in place of a site file: the weights' own decisions


class CalibrationError(CxrError, ValueError):
    """Films that cannot calibrate anything, or a site file that does not fit; says what is needed."""


def read_site(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a site file decides, and the fingerprints of the weights that it was made with.

    Returns:
        Settings of the classifier (temperature, offsets, threshold with interval, score, sets), and fingerprints by
        stage.

    Raises:
        CalibrationError: the file cannot be read.
    """
    try:
        facts = read_yaml(path)
        settings = {
            "temperature": float(facts["temperature"]),
            "offsets": {str(name): float(value) for name, value in facts["offsets"].items()},
            "threshold": float(facts["threshold"]),
            "threshold_ci95": [float(v) for v in facts["threshold_ci95"]] if "threshold_ci95" in facts else None,
        }
        if "score" in facts:
            settings["score"] = Scale.of(facts["score"]).to_json()
        sets = Sets.of(facts.get("sets"))  # the card's own are about probabilities that the site does not have
        settings["sets"] = None if sets is None else sets.to_json()
        return settings, dict(facts["weights"])
    except (OSError, UnicodeDecodeError, YamlError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CalibrationError(
            f"{path} cannot be read as a site file ({error}). Make one: pipeline calibrate --data MANIFEST --out {path}"
        ) from error


def check_site(
    path: Path, settings: dict[str, Any], made_with: dict[str, str], bundles: dict[str, str], classes: Sequence[str]
) -> None:
    """Refuse a site file of other weights than those with the fingerprints `bundles` (by stage) and these classes.

    Raises:
        CalibrationError: it was made with others.
    """
    for name, fingerprint in bundles.items():
        if name in made_with and made_with[name] != fingerprint:
            raise CalibrationError(
                f"{path} was made with other {name!r} weights ({made_with[name]}) than those of this call "
                f"({fingerprint}). Calibrate again with these weights"
            )
    if sorted(settings["offsets"]) != sorted(classes):
        raise CalibrationError(
            f"{path} is about the classes {', '.join(settings['offsets'])}, the weights about "
            f"{', '.join(classes)}. Calibrate again with these weights"
        )


def apply_site(path: Path, chain: Sequence[Stage]) -> list[Stage]:
    """A loaded chain as it answers with a site's calibration; the one given stays as it is.

    Returns:
        The stages, of which the one that has a temperature obeys what the site decides, see `read_site`.

    Raises:
        CalibrationError: the file cannot be read, or was made with other weights.
    """
    settings, made_with = read_site(path)
    bundles = {stage.name: stage.fingerprint for stage in chain}
    calibrated = next((stage for stage in chain if "temperature" in stage.call_settings), None)
    check_site(path, settings, made_with, bundles, calibrated.classes if calibrated else list(settings["offsets"]))
    return [stage.with_settings(**settings) if stage is calibrated else stage for stage in chain]
