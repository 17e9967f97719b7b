"""The settings that follow from a manifest of one's own: its classes, and whether its films have lung masks."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cxr_pipeline.configs.schema import ClassifyConfig, Config
from cxr_pipeline.data.manifest import Manifest
from cxr_pipeline.stages.classify_films import can_leave_out

_MOST_CLASSES = 20  # more labels are rather names of patients or free text
# Words for the class without disease, and for the one that a score should speak of; the first that fits counts.
_NORMAL = (
    *("norm", "normal", "normals", "healthy", "health", "nofinding", "nofindings", "none", "negative", "control"),
    *("controls", "well", "no", "nontb", "notb", "notuberculosis", "nonpneumonia", "nocovid", "noncovid", "clear", "0"),
)
_POSITIVE = (
    *("tb", "tuberculosis", "positive", "sick", "disease", "diseased", "abnormal", "ill", "yes", "pneumonia", "covid"),
    *("covid19", "1"),
)


@dataclass(frozen=True)
class Follows:
    """Settings that follow from a manifest.

    Attributes:
        overrides: as `key=value`, to go before those that the user gives.
        messages: what was concluded, for the user.
    """

    overrides: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


def settings_of(
    manifest: Manifest, config: Config, *, given: Sequence[str] = (), own_config: bool = False, stage: str | None = None
) -> Follows:
    """What a training's settings should be for a manifest, where the user did not say.

    Classes follow only where the manifest has labels that `config` does not know; the lungs are taken from the shipped
    weights where no film has a mask; the last layer is solved at once where its two steps could not be calibrated; and
    where `given` names another network, what the preset says of its own one does not hold.

    Args:
        config: the settings so far, with the user's.
        given: the user's overrides; none of their keys is touched.
        own_config: whether the user chose `config`: then its classes stand, whatever the manifest holds.
        stage: the stage to train alone; None trains all.
    """
    keys = {text.partition("=")[0].strip() for text in given}
    overrides: list[str] = []
    messages: list[str] = []
    counts = Counter(label for label in manifest.table["label"] if label)
    normal = config.normal
    free = config.class_of is None and not config.multi_label and "classes" not in keys and not own_config
    if free and 2 <= len(counts) <= _MOST_CLASSES and not set(counts) <= set(config.classes):
        positive, normal = roles(counts)
        others = [name for name, _ in counts.most_common() if name not in (positive, normal)]
        classes = [positive, *others, *([normal] if normal is not None else [])]
        follow = {
            "classes": classes,
            "positive": positive,
            "normal": normal,
            "classify.assumed_mix": None,
            "localize.label": None,
        }
        overrides += [
            f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in follow.items() if key not in keys
        ]
        found = ", ".join(f"{name} ({counts[name]})" for name in classes)
        messages.append(
            f"classes of the manifest: {found}. The score speaks of {positive!r}; "
            + (f"{normal!r} is the one without disease" if normal is not None else "none is known as the normal one")
            + ". Others: --set positive=NAME --set normal=NAME"
        )
    plain = not config.multi_label and config.class_of is None and stage in (None, "classify")
    two_steps = config.classify.head == "two_steps" and "classify.head" not in keys and not own_config
    if plain and two_steps and not can_leave_out(manifest, normal, config.classify.fit.leave_out):
        overrides.append("classify.head=solved")
        messages.append(
            "no source of the films can be left out to calibrate on (that takes each class from two sources): the "
            "films of val calibrate (classify.head=solved)"
        )
    preset = not own_config or config.classify.encoder_weights == "chest"
    of_network = _of_network(config, keys) if preset else []
    if of_network:
        overrides += of_network
        messages.append(f"of the network {config.classify.network}, not of the preset's: {', '.join(of_network)}")
    lungs = config.classify.lungs != "none" and config.segment.weights is None and "segment.weights" not in keys
    if lungs and stage != "segment" and not own_config and not (manifest.table["mask"] != "").any():
        overrides.append("segment.weights=tb")
        messages.append("no film has a lung mask: the lungs are found by the shipped weights (segment.weights=tb)")
    return Follows(tuple(overrides), tuple(messages))


def _of_network(config: Config, keys: set[str]) -> list[str]:
    """What the preset tb says of its own network alone, back at the default where the user names another network.

    Its encoder has learned chest films, and stays as it came; any other would not know them without epochs.
    """
    asked = config.classify
    if "classify.network" not in keys or asked.network == "chest":
        return []
    default = ClassifyConfig()
    values: dict[str, object] = {}
    if asked.encoder_weights == "chest":
        values["encoder_weights"] = default.encoder_weights
    if asked.pool == "evidence":
        values["pool"] = default.pool
    if not asked.fit.epochs:
        values |= {"fit.epochs": default.fit.epochs, "fit.augment": default.fit.augment}
    follow = {f"classify.{name}": value for name, value in values.items()}
    return [f"{key}={json.dumps(value)}" for key, value in follow.items() if key not in keys]


def roles(counts: Counter[str]) -> tuple[str, str | None]:
    """The positive and the normal class among labels: by their words, else the rarer one is positive."""
    plain = {"".join(letter for letter in name.casefold() if letter.isalnum()): name for name in counts}
    normal = next((plain[word] for word in _NORMAL if word in plain), None)
    left = {word: name for word, name in plain.items() if name != normal}
    positive = next((left[word] for word in _POSITIVE if word in left), None)
    if positive is None:
        positive = min(left.values(), key=lambda name: (counts[name], name))
    if normal is None and len(counts) == 2:
        normal = next(name for name in counts if name != positive)
    return positive, normal


def train_command(manifest: Manifest, data: Path, follows: Follows) -> str:
    """The command that trains on a manifest, with all that follows from it spelled out."""
    words = ["pipeline", "train", "--data", str(data)]
    for override in follows.overrides:
        words += ["--set", override]
    return shlex.join([*words, "--out", "my-weights"])
