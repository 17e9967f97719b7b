"""Which chain: one frozen description that the command line, Python, the server, evaluation and engines all open."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_pipeline import stages
from cxr_pipeline.texts import Texts

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.run.chain import Chain
    from cxr_pipeline.stages.base import Stage


@dataclass(frozen=True)
class ChainSpec:
    """Which stages, from which weights, with which settings. Plain values: it can be compared, printed and pickled.

    Attributes:
        weights: name of shipped weights, or the folder of trained ones.
        last_stage: the chain goes up to and including it; None takes all stages that the weights have.
        also: further stages by name, with what they build on.
        runtime: what runs the networks: a name of `models.runtimes.RUNTIMES`.
        config: a YAML file or the name of a preset. Of it, a run obeys the `run_settings` of each stage, where it names
            them and they differ from what the weights were trained with (a fitted threshold stays when the config of
            the training is given again).
        site: a site file, see `train.calibration`.
        threshold: score from which a film is screen positive; None: 50, the operating threshold of weights or site.
        label: class whose map and regions are shown, in place of the predicted one.
        refuse: False lets films go on that would be refused, with the reasons as warnings.
        threads: cores for each network; None lets it take all.
        language: of overlays and report, see `texts.LANGUAGES`.
        overrides: run settings on top of all else, each "STAGE.NAME=VALUE".
    """

    weights: str = "tb"
    last_stage: str | None = None
    also: tuple[str, ...] = ()
    runtime: str = "onnx"
    config: str | None = None
    site: Path | None = None
    threshold: float | None = None
    label: str | None = None
    refuse: bool = True
    threads: int | None = None
    language: str = "en"
    overrides: tuple[str, ...] = ()

    def absolute(self) -> ChainSpec:
        """The same for processes in other working folders: paths are absolute, names stay."""
        from cxr_pipeline.models.store import shipped

        config = self.config
        return replace(
            self,
            weights=self.weights if self.weights in shipped() else os.path.abspath(self.weights),
            config=os.path.abspath(config) if config is not None and os.path.isfile(config) else config,
            site=Path(os.path.abspath(self.site)) if self.site is not None else None,
        )

    def load(self) -> list[Stage]:
        """The stages in order, with the settings of this call on top of what their cards decide.

        Raises:
            texts.LanguageError: there are no texts in that language.
            stages.UnknownStageError: no stage has that name.
            models.store.WeightsError: the weights do not exist, lack a stage, or cannot be opened.
            configs.schema.ConfigError: the config cannot be read, or names other classes than the weights have.
            train.site.CalibrationError: the site file cannot be read, or is of other weights.
            stages.base.StageError: the label is none of the classes, or a threshold is given and there is no score.
        """
        Texts(self.language)  # refuses a language that there is none of before networks load
        wanted = None
        if self.config is not None:
            from cxr_pipeline.configs.schema import load_config

            wanted = load_config(self.config)  # first: its faults are found sooner than networks load
        further = {"also": self.also} if self.also else {}
        chain = stages.load_chain(self.weights, self.last_stage, self.runtime, threads=self.threads, **further)
        if wanted is not None:
            chain = _with_config(wanted, chain)
        if self.site is not None:
            from cxr_pipeline.train.site import apply_site

            chain = apply_site(self.site, chain)
        if self.threshold is not None:
            chain = [s.with_settings(cutoff=float(self.threshold)) if "cutoff" in s.call_settings else s for s in chain]
        if self.label is not None:
            chain = [s.with_settings(label=self.label) if "label" in s.run_settings else s for s in chain]
        if self.overrides:
            chain = _overridden(self.overrides, chain)
        if not self.refuse:  # the first stage checks films; one behind it does where there is no such stage
            first = next((stage for stage in chain if "refuse" in stage.call_settings), None)
            chain = [stage.with_settings(refuse=False) if stage is first else stage for stage in chain]
        return chain

    def open(
        self,
        arguments: dict[str, Any] | None = None,
        *,
        threads: int | None = None,
        late: bool = False,
        side_by_side: bool = False,
    ) -> Chain:
        """The loaded chain with its identity; see `load` for what it raises.

        Args:
            arguments: of the command, for run.json.
            threads: in place of those of the description.
            late, side_by_side: see `run.chain.open_chain`.
        """
        from cxr_pipeline.run.chain import open_chain

        spec = self if threads is None else replace(self, threads=threads)
        return open_chain(spec, arguments, late=late, side_by_side=side_by_side)


def _with_config(config: Config, chain: Sequence[Stage]) -> list[Stage]:
    from cxr_pipeline.configs.schema import ConfigError
    from cxr_pipeline.run.runner import classes_of

    classes = list(classes_of(chain))
    if classes and "classes" in config.model_fields_set and config.classes != classes:
        raise ConfigError(
            f"the config has the classes {config.classes}, the weights {classes}. "
            "Take the config that the weights were trained with, or one without classes"
        )
    return [stage.with_settings(**_changed(config, stage)) for stage in chain]


def _overridden(overrides: Sequence[str], chain: Sequence[Stage]) -> list[Stage]:
    from cxr_pipeline.configs.schema import load_config
    from cxr_pipeline.run.runner import classes_of
    from cxr_pipeline.stages.base import StageError

    allowed = [f"{stage.name}.{name}" for stage in chain for name in stage.run_settings]
    for one in overrides:
        key = one.partition("=")[0].strip()
        if key not in allowed:
            raise StageError(
                f"--set {one}: a run has the settings {', '.join(allowed)}. Others belong to `train --set`"
            )
    # Says what is wrong with a value. The classes are those of the chain, as localize.label names one of them.
    classes = list(classes_of(chain))
    own = [f"classes={json.dumps(classes)}", "multi_label=true", "positive=null", "normal=null"] if classes else []
    typed = load_config(None, [*own, *overrides])
    names = {tuple(one.partition("=")[0].strip().split(".", 1)) for one in overrides}
    out = []
    for stage in chain:
        asked = {name: getattr(getattr(typed, stage.name), name) for of, name in sorted(names) if of == stage.name}
        out.append(stage.with_settings(**asked) if asked else stage)
    return out


def _changed(config: Config, stage: Stage) -> dict[str, Any]:
    """The settings that a config names for a stage, and that are neither as trained nor as decided."""
    section = getattr(config, stage.name, None)
    if section is None:
        return {}
    trained = stage.card.get("training", {}).get("settings", {})
    changed = {}
    for name in stage.run_settings:
        value = getattr(section, name)
        named = name in section.model_fields_set
        if named and value != trained.get(name) and value != stage.decisions.get(name):
            changed[name] = value
    return changed
