"""Every setting of the pipeline, typed and validated. A YAML preset names only what differs from here."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.configs.fit import ClassifyFit, Section, SegmentFit
from cxr_pipeline.configs.networks import place_of
from cxr_pipeline.configs.yaml_text import YamlError, parse_yaml, read_yaml

PRESETS = Path(__file__).parent
_SECTIONS = {"segment", "segment.fit", "classify", "classify.fit", "localize"}


class ConfigError(CxrError, ValueError):
    """A setting that does not exist or cannot have the value given."""


class SegmentConfig(Section):
    """The lung segmentation network and its training."""

    weights: str | None = Field(
        None,
        description="take the stage from these weights, a shipped name or a folder of `train`; null: train it",
    )
    size: int = Field(256, ge=64, multiple_of=32, description="side of the square that the network sees, in pixels")
    encoder: str = "mobilenetv2"
    alpha: float = Field(0.35, gt=0, description="width of the encoder mobilenetv2; others have none")
    skips: Literal["expanded", "projected"] = Field(
        "projected",
        description="maps of mobilenetv2 that the decoder sees: the wide ones within its blocks, or the narrow ones "
        "between them, at half of the cost; others have those of segmentation-models",
    )
    encoder_weights: str | None = Field("imagenet", description="'imagenet', a .weights.h5 file, or null for none")
    # Wider decoders and maps cost much and gave nothing: docs/experiments.md, Segmentation.
    decoder_filters: tuple[int, ...] = Field(
        (32, 16, 8, 8),
        min_length=4,
        max_length=5,
        description="channels of the decoder's steps; with four, masks are found at half of `size` and doubled",
    )
    threshold: float = Field(0.5, gt=0, lt=1)
    margin: float = Field(0.05, ge=0, le=0.5, description="added to the lung box on each side, as a share of it")
    min_fraction: float = Field(0.04, ge=0, lt=1, description="refuse a film with less lung than this share of it")
    # Films scaled down to 48, 64, 96, 128, 224 px and not at all: AUROC of TB, shenzhen's test films, 0.84, 0.83, 0.87,
    # 0.89, 0.91, 0.90; Dice, montgomery, 0.96, 0.97, 0.97, 0.97, 0.97, 0.97.
    min_side: int = Field(96, ge=1, description="refuse a film whose shorter side has fewer pixels")
    min_age: float | None = Field(
        15,
        ge=0,
        description="refuse patients under so many years, by DICOM header; null for weights of children",
    )
    loss: Literal["dice_cross_entropy", "dice", "cross_entropy", "focal"] = "dice_cross_entropy"
    start: str | None = Field(
        None, description="weights whose lungs training goes on from, by name or path; null: the encoder's alone"
    )
    heart: bool = Field(
        False,
        description="find the heart too: learned from the films that have a mask in the manifest's column heart_mask",
    )
    heart_weight: float = Field(0.5, gt=0, description="how much the heart counts in the loss, beside the lungs' 1")
    fit: SegmentFit = SegmentFit()


class ClassifyConfig(Section):
    """The classifier and its training."""

    network: str = Field(
        "mobilenetv2", description="a name, see docs/tasks.md, or mypackage.module:build for a network of your own"
    )
    network_settings: dict[str, Any] = Field({}, description="further settings that the network takes, by name")
    alpha: float = Field(0.35, gt=0, description="width of MobileNetV2")
    cut: str | None = Field(None, description="encoder layer to stop at, such as block_12_add (stride 16); null: whole")
    size: int = Field(224, ge=64, description="side of the square that the network sees, in pixels")
    encoder_weights: str | None = Field("imagenet", description="'imagenet', a .weights.h5 file, or null for none")
    lungs: Literal["none", "crop", "masked", "channel"] = Field(
        "masked",
        description="what the network sees: none the whole film, without segmentation; crop the lung box; masked the "
        "lung box with all but the lungs dimmed; channel the lung box with the mask as an extra channel",
    )
    pool: Literal["all", "lungs", "zones", "evidence"] = Field(
        "zones",
        description="average features over the whole crop, the lungs, or each of the six lung zones; evidence joins "
        "the places' evidence, for the network chest",
    )
    dropout: float = Field(0.2, ge=0, lt=1)
    head_l2: float = Field(0.3, ge=0, description="penalty on the squared weights of the last layer")
    source_prior: float = Field(
        1.0,
        ge=0,
        le=1,
        description="how far each source's share of the classes is taken out of what is learned; 0: not",
    )
    lesion_weight: float = Field(
        0.3, ge=0, description="how much boxes of lesions, where the manifest has any, count beside the films' classes"
    )
    loss: Literal["cross_entropy", "focal", "generalized_cross_entropy"] = Field(
        "cross_entropy",
        description="of the second step; the first solves the last layer for cross-entropy. Some labels are wrong: "
        "generalized_cross_entropy",
    )
    label_smoothing: float = Field(0.05, ge=0, lt=0.5)
    balance: Literal["none", "class", "class_source"] = Field(
        "class_source", description="weigh films by the square root of how rare their class, or class and source, is"
    )
    keep_start: float = Field(
        0.0, ge=0, lt=1, description="share of the first step's weights averaged into those after the second (WiSE-FT)"
    )
    head: Literal["solved", "two_steps"] = Field(
        "solved",
        description="the last layer: solved for all classes at once; two_steps asks whether a film is abnormal, then "
        "of which class, and calibrates on films of sources left out in turn",
    )
    resolve_head: bool = Field(False, description="solve the last layer again on the encoder as fine-tuned")
    uncertain: Literal["ignore", "zeros", "ones"] = Field(
        "ignore", description="what an uncertain label counts as in training with several labels per film"
    )
    label_weights: bool = Field(
        True, description="several labels per film: weigh each label's films so that both answers contribute equally"
    )
    head_passes: int = Field(3, ge=1, description="first step: augmented passes that the last layer is solved on")
    assumed_mix: dict[str, float] | None = Field(
        None, description="share of each class that probabilities assume, such as {TB: 0.4, ...}; null: all alike"
    )
    target_sensitivity: float = Field(0.90, gt=0, lt=1, description="where the operating threshold is set, on val")
    fit: ClassifyFit = ClassifyFit()

    @field_validator("network")
    @classmethod
    def _known_network(cls, value: str) -> str:
        place_of(value)
        return value

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Trainings of networks without settings of their own stay those they were before there were any."""
        values = handler(self)
        if not values.get("network_settings", True):
            del values["network_settings"]
        return values


class LocalizeConfig(Section):
    """How Grad-CAM becomes regions. Threshold and minimum area are fitted by `train --stage localize`."""

    threshold: float = Field(0.5, gt=0, lt=1, description="share of the map's maximum, used until one is fitted")
    min_area: float = Field(0.01, ge=0, lt=1, description="smallest region, as a share of the lung box")
    thresholds: list[float] = Field(
        [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], description="values that the fit tries"
    )
    min_areas: list[float] = Field([0.0, 0.005, 0.01, 0.02, 0.04], description="values that the fit tries")
    max_regions: int = Field(5, ge=1)
    label: str | None = Field(None, description="class whose map and regions are shown; null: the predicted one")


class Config(Section):
    """The whole chain's settings."""

    name: str = "tb"
    classes: list[str] = Field(["TB", "NTB", "NORM"], min_length=2)
    positive: str | None = Field("TB", description="the class that tb_score and auc_tb speak of; null: none")
    normal: str | None = Field("NORM", description="the class that gets no regions")
    multi_label: bool = Field(False, description="a film may have several classes, or none: they are its `findings`")
    class_of: dict[str, list[str]] | None = Field(
        None,
        description="labels or findings of the manifest that mean each class, the first that fits counts; a value fits "
        "itself and what follows it behind a slash; null: labels are the classes",
    )
    seed: int = 1
    val_fraction: float = Field(0.15, gt=0, lt=0.5, description="used only where the manifest has no split column")
    test_fraction: float = Field(0.15, gt=0, lt=0.5, description="used only where the manifest has no split column")
    distribute: Literal["none", "mirrored"] = Field(
        "none", description="mirrored trains on all GPUs of the machine at once, each on its part of every batch"
    )
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "auto", description="of training; auto is mixed_float16 where there is a GPU. What is stored runs in float32"
    )
    cache: str | None = Field(None, description="folder for decoded arrays; null puts it into the training's folder")
    segment: SegmentConfig = SegmentConfig()
    classify: ClassifyConfig = ClassifyConfig()
    localize: LocalizeConfig = LocalizeConfig()

    @model_validator(mode="after")
    def _known_classes(self) -> Config:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must differ from each other. Received: {self.classes}")
        odd = [name for name in self.classes if not name.strip() or "|" in name or name != name.strip()]
        if odd:
            raise ValueError(f"a class needs a name without a pipe sign and outer blanks. Received: {odd}")
        for key in ("positive", "normal"):
            value = getattr(self, key)
            if value is not None and value not in self.classes:
                raise ValueError(f"{key} must be one of the classes {self.classes}. Received: {value!r}")
        if self.positive is not None and self.positive == self.normal:
            raise ValueError(f"positive and normal must be two classes. Received: {self.positive!r} for both")
        if self.localize.label is not None and self.localize.label not in self.classes:
            raise ValueError(
                f"localize.label must be one of {self.classes}, or null. Received: {self.localize.label!r}"
            )
        if self.class_of is not None and self.multi_label:
            raise ValueError("class_of is for films of one class each: with multi_label, classes are findings by name")
        if self.class_of is not None and not set(self.class_of) <= set(self.classes):
            raise ValueError(f"class_of must name classes of {self.classes}. Received: {sorted(self.class_of)}")
        if self.positive is None and not self.multi_label:
            raise ValueError("positive may be null only where films have several labels (multi_label: true)")
        if self.multi_label and self.normal is not None:
            raise ValueError("with multi_label a film without any of the classes is the normal one: set normal to null")
        if self.classify.lungs == "none" and self.classify.pool != "all":
            raise ValueError("without segmentation there are no lungs to pool over: set classify.pool to all")
        mix = self.classify.assumed_mix
        if mix is not None and self.multi_label:
            raise ValueError("classify.assumed_mix is for films of one class each: set it to null with multi_label")
        if mix is not None and (set(mix) != set(self.classes) or min(mix.values()) <= 0):
            raise ValueError(f"classify.assumed_mix needs a share above 0 for each of {self.classes}. Received: {mix}")
        return self


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(p.stem for p in PRESETS.glob("*.yaml"))


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config: a YAML file or the name of a preset, then ``key.path=value`` overrides on top.

    Raises:
        ConfigError: with the file, the setting, what it may be and what it was.
    """
    values: dict[str, Any] = {}
    if source is not None:
        path = Path(source)
        if not path.is_file():
            path = PRESETS / f"{source}.yaml"
        if not path.is_file():
            raise ConfigError(f"no config {str(source)!r}. Give a YAML file or a preset: {', '.join(presets())}")
        try:
            values = read_yaml(path) or {}
        except YamlError as error:
            raise ConfigError(f"{path} is not YAML within bounds: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold `key: value` lines. Received: {type(values).__name__}")
    for text in overrides:
        _override(values, text)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        where = f"{source}: " if source is not None else ""
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'config'}: "
            + (_unknown(e["loc"]) if e["type"] == "extra_forbidden" else _wrong(e["msg"], e["input"]))
            for e in error.errors()
        ]
        raise ConfigError(f"{where}{len(lines)} setting(s) cannot be used:\n" + "\n".join(lines)) from error


def _wrong(message: str, received: object) -> str:
    """What to say of a value; a rule over several settings names what it received, and not all that it looked at."""
    said = message.removeprefix("Value error, ")
    return said if isinstance(received, dict) and "Received: " in said else f"{said}. Received: {received!r}"


def _unknown(path: Sequence[str | int]) -> str:
    """What to say of a setting that does not exist: the nearest one that does, and those of its section."""
    *parents, name = map(str, path)
    section: Any = Config
    for parent in parents:
        section = section.model_fields[parent].annotation
    near = [".".join([*parents, match]) for match in get_close_matches(name, section.model_fields, 1)]
    if not near:  # in another section, such as classify.epochs for classify.fit.epochs
        everywhere = flat_settings(Config().model_dump())
        near = [setting for setting in everywhere if get_close_matches(name, [setting.rpartition(".")[2]], 1, 0.8)]
    meant = f". Did you mean {' or '.join(near)}?" if near else "."
    where = f" in {'.'.join(parents)}" if parents else ""
    return f"there is no such setting{meant} Allowed{where}: {', '.join(section.model_fields)}"


def explain(source: str | Path | None, overrides: Sequence[str] = ()) -> list[tuple[str, Any, str]]:
    """Every setting as (name, value, where it came from): "default", the file or preset, or "--set".

    Raises:
        ConfigError: as `load_config`.
    """
    layers = [("default", Config()), (str(source), load_config(source)), ("--set", load_config(source, overrides))]
    flat = [(name, flat_settings(config.model_dump(mode="json"))) for name, config in layers]
    out = []
    for key, value in flat[-1][1].items():
        origin = "default"
        for (_, before), (name, now) in pairwise(flat):
            if now.get(key) != before.get(key):
                origin = name
        out.append((key, value, origin))
    return out


def flat_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of nested sections by their dotted names, such as "classify.fit.epochs"."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and f"{prefix}{key}" in _SECTIONS:
            out |= flat_settings(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"an override reads key=value, such as classify.alpha=1.0. Received: {text!r}")
    *parents, last = key.strip().split(".")
    here = values
    for name in parents:
        here = here.setdefault(name, {})
        if not isinstance(here, dict):
            raise ConfigError(f"{key!r}: {name!r} is a value, not a section. See `pipeline info` for the settings")
    try:
        here[last] = parse_yaml(raw)
    except YamlError as error:
        raise ConfigError(f"the value of {key!r} is not YAML that can be used ({error}): {raw[:200]!r}") from error


def dump_config(config: Config) -> str:
    """The config as YAML, every value spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
