"""The contract that all stages keep, and the record that travels through them.

A stage says of itself, as class data, what it needs and what it fills in, which settings a run may change in it, and
what it is judged by. Nothing outside of `stages/` asks a stage for its name to learn such a thing. `stages.registry`
lists the stages; `tests/stages/test_contract.py` tests each of them.
"""

from __future__ import annotations

import copy
import hashlib
import html
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.data.radiograph import Radiograph

if TYPE_CHECKING:  # pandas and pydantic are not needed to run a stage
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest

DETAIL = 1024  # pixels of a film's long side that stages and overlays share, so that they ask for one decoding
OK, REFUSED, FAILED = "ok", "refused", "failed"
Value = TypeVar("Value")


class StageError(CxrError, ValueError):
    """A stage that does not exist, does not fit into the chain, or does not know a setting."""


@dataclass(frozen=True)
class Region:
    """A region to look at: `box` in native pixels, `score` 0 to 1, `side` the patient's own.

    `side` is "left" or "right" (the patient's right lung lies on the left of the picture), `zone` is
    "upper", "middle" or "lower" (thirds of that lung's height), `label` the class whose map it is from.
    """

    box: Box
    score: float
    label: str
    side: str
    zone: str


@dataclass(frozen=True)
class Crash:
    """An exception that nobody foresaw, as plain text: `step` is the stage (or "reading") that raised it.

    `place` is the file and line that raised; unlike `message` and `trace` it never quotes what is in a film's header.
    """

    step: str
    kind: str
    message: str
    place: str
    trace: str


@dataclass
class Record:
    """One film on its way through the chain. Each stage fills in its own part.

    A stage that cannot judge a film sets `status` to "refused" or "failed" and `error` to a sentence;
    later stages pass such a record on untouched.
    """

    radiograph: Radiograph | None  # None: the file could not be read
    status: str = OK
    error: str = ""
    # segment
    mask: np.ndarray | None = None  # (H, W) uint8, 0 or 1, native size
    lung_box: Box | None = None  # around the mask with a margin, native pixels, within the film
    square_mask: np.ndarray | None = None  # the mask as of a film with square pixels, where its own are few and oblong
    lung_fraction: float | None = None  # share of the film's pixels that are lung
    # classify
    probabilities: dict[str, float] | None = None  # calibrated, one per class, in the order of the classes
    label: str | None = None  # the likeliest class
    screen: str | None = None  # positive, negative or unsure, at the operating threshold: see `stages.decisions`
    tb_score: float | None = None  # 0 to 100, of the positive class; 50 is the operating threshold
    abnormal: float | None = None  # probability that the film is not normal
    maps: np.ndarray | None = None  # (h, w, classes) float32, Grad-CAM of each class's logit, on `frame`
    frame: Frame | None = None
    # localize
    heat: np.ndarray | None = None  # (h, w) float32 [0, 1], the heat map on `frame`
    native_heat: np.ndarray | None = None  # the same at native size, see `heatmap`
    heatmap_label: str | None = None  # the class that it, and the regions, are of
    regions: list[Region] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    # segment, of weights that know the heart
    heart_mask: np.ndarray | None = None  # (H, W) uint8, 0 or 1, native size
    # of any stage: what its `columns` declare: a number, rounded as it shall be shown; a text; None where it is unknown
    measures: dict[str, float | str | None] | None = None
    id: str = ""  # name of the film in the run; by default the radiograph's
    crash: Crash | None = None  # where something raised that should not
    _lungs: tuple[np.ndarray | None, Frame, np.ndarray] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not self.id and self.radiograph is not None:
            self.id = self.radiograph.id

    def lungs_on(self, frame: Frame) -> np.ndarray:
        """Where at least half of a place on a frame's grid is lung, (h, w) bool; without a mask, all of the film.

        Kept for the frame that was asked for last: classifier and localization ask for the same, and a large mask takes
        longer to shrink than all else that they do with it.
        """
        if self._lungs is None or self._lungs[0] is not self.mask or self._lungs[1] != frame:
            mask = np.ones(self.size, np.uint8) if self.mask is None else self.mask
            self._lungs = (self.mask, frame, frame.to_grid(mask, times=255) >= 128)
        return self._lungs[2]

    @property
    def heatmap(self) -> np.ndarray | None:
        """The heat map (H, W) float32 [0, 1] at native size: drawn when first asked for, as few need it so large."""
        if self.native_heat is None and self.heat is not None:
            self.native_heat = np.clip(needed(self.frame, "frame").to_native(self.heat), 0.0, 1.0)
        return self.native_heat

    @heatmap.setter
    def heatmap(self, value: np.ndarray | None) -> None:
        self.native_heat = value

    @property
    def film(self) -> Radiograph:
        """The radiograph of a film that could be read.

        Raises:
            StageError: it could not.
        """
        return needed(self.radiograph, "radiograph")

    @property
    def ok(self) -> bool:
        """Whether later stages have something to judge."""
        return self.status == OK

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the film in pixels, (0, 0) where it could not be read."""
        return self.radiograph.size if self.radiograph is not None else (0, 0)

    @property
    def warnings(self) -> list[str]:
        """What a reader of the results should know of the film: from its file, then from the stages."""
        found = self.radiograph.meta.get("warnings", ()) if self.radiograph is not None else ()
        return [*found, *self.extra.get("warnings", ())]

    def __repr__(self) -> str:
        """One line, where the arrays would fill the screen."""
        said = [self.status, *([self.label] if self.label else [])]
        said += [] if self.tb_score is None else [f"score {self.tb_score:.1f}"]
        return f"Record({self.id!r}: {', '.join(said)})"

    def _repr_html_(self) -> str:
        """A notebook's view: what the film was answered with, in a table."""
        said: list[tuple[str, object]] = [("film", self.id), ("status", self.status), ("reason", self.error)]
        if self.tb_score is not None:
            said += [("screen", self.screen), ("score", f"{self.tb_score:.1f} of 100"), ("likeliest", self.label)]
        elif self.label is not None:  # of several labels, those that reach their thresholds
            said.append(("label", self.label or "none"))
        said += [(f"p {name}", f"{p:.3f}") for name, p in (self.probabilities or {}).items()]
        said += [("look at", f"{one.label}, {one.side} lung, {one.zone} zone") for one in self.regions or ()]
        said += [("warning", text) for text in self.warnings]
        lines = [f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in said if value]
        return f"<table>{''.join(lines)}</table><p>Research use only. Not a medical device.</p>"

    def warn(self, *texts: str) -> None:
        """Add warnings of a stage; they do not stop the film."""
        if texts:
            self.extra["warnings"] = [*self.extra.get("warnings", ()), *texts]

    def refuse(self, why: str) -> Record:
        """Mark the film as one that the chain cannot judge."""
        self.status, self.error = REFUSED, why
        return self


def needed(value: Value | None, name: str) -> Value:
    """The field `name` of a record, which reading or an earlier stage has filled in.

    Raises:
        StageError: nothing has.
    """
    if value is None:
        raise StageError(f"the record has no {name}: put a stage that fills it in before this one, see Stage.fills")
    return value


class Column(NamedTuple):
    """A further column of `results.csv` that a stage fills in, under this name in `Record.measures`."""

    name: str
    meaning: str


class Monitor(NamedTuple):
    """The column of `history.csv` that picks the best epoch, and whether "min" or "max" of it is best."""

    column: str
    mode: str


class Truth(NamedTuple):
    """What a film needs for a stage to be judged on it: `what`, in words, and `where` a manifest holds it."""

    what: str
    where: str


class Stage(ABC):
    """One step of the chain: trainable, runnable and evaluable on its own.

    A stage is loaded from its bundle (`load`), enriches records (`run`) and is judged against a manifest
    (`evaluate`); `train` makes the bundle. `run` on a batch of n records equals n runs on one.

    Attributes:
        name: in commands, folders and files.
        summary: one line for lists of stages.
        needs: fields of a record that another stage has to fill in first.
        uses: fields that the stage takes into account where another stage fills them in.
        fills: fields that the stage fills in. The order of a chain follows from `needs`, `uses` and `fills`.
        columns: further columns of `results.csv`, of what the stage puts into `Record.measures`.
        shared: whether several threads may call `run` at once, because a call leaves nothing behind in the stage. A run
            on large machines is faster by it, where all stages of the chain say so.
        has_weights: False for a stage that needs no bundle: it runs on any weights, where `--stage` or `--also` names
            it or `belongs` says so.
        run_settings: settings of the stage's section of a config that a trained stage obeys when it runs.
        call_settings: settings that only a call changes, by an option or a site file.
        truth: what a film needs for the stage to be judged on it.
        headline_figures: names in `metrics.json` of the figures that stand for the stage, best known first.
        worst: name in `films.csv` of the figure that tells the worst films, and how a table heads it; None where the
            stage has a way of its own.
        monitor: what picks the best epoch of a training; None where there are no epochs.
        card: what `card.json` of the bundle says; `card["decisions"]` is all that running obeys.
        fingerprint: of the bundle, 16 hex digits; settings of a call do not change it.
        classes: names that the stage answers with, in their order; empty where it has none.
        settings: what `with_settings` changed.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    uses: ClassVar[tuple[str, ...]] = ()
    fills: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()
    shared: ClassVar[bool] = False
    has_weights: ClassVar[bool] = True
    run_settings: ClassVar[tuple[str, ...]] = ()
    call_settings: ClassVar[tuple[str, ...]] = ()
    truth: ClassVar[Truth] = Truth("what the stage is judged against", "manifest")
    headline_figures: ClassVar[tuple[str, ...]] = ()
    worst: ClassVar[tuple[str, str] | None] = None
    monitor: ClassVar[Monitor | None] = None

    card: Mapping[str, Any] = {"decisions": {}}
    fingerprint: str = ""
    classes: Sequence[str] = ()
    settings: Mapping[str, Any] = {}

    @classmethod
    @abstractmethod
    def load(cls, bundle: Path, *, runtime: str = "onnx", threads: int | None = None) -> Stage:
        """The stage as stored in the folder `bundle`. `runtime`, `threads`: see `models.store.open_network`.

        A stage without weights (`has_weights` is False) loads from a folder that does not exist, too.

        Raises:
            models.store.WeightsError: the bundle is incomplete or damaged.
        """

    @classmethod
    @abstractmethod
    def train(cls, data: Manifest, config: Config, out: Path, chain: Sequence[Stage] = ()) -> Path:
        """Fit the stage on the manifest's `train` split, watching `val`; returns the bundle's folder.

        `chain` holds the loaded stages that come before this one. An interrupted training goes on from
        its last finished epoch when called again with the same arguments.
        """

    @classmethod
    def belongs(cls, decisions: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a chain has this stage unasked.

        Args:
            decisions: by name of the stage, the sections of a config, or what the cards of trained stages decide.
        """
        del decisions
        return cls.has_weights

    @classmethod
    def require(cls, data: Manifest, config: Config) -> None:
        """Refuse films that the stage cannot be trained on, before any training begins.

        Raises:
            models.training.fit.TrainingError: what is missing, and where.
        """
        del data, config  # a stage without a network does with none

    def obey(self, decisions: Mapping[str, Any]) -> None:
        """Take over what a card decides, with the settings of a call on top: set the attributes that `run` reads."""
        del decisions  # a stage without decisions has none to take over

    def with_settings(self, **settings: Any) -> Stage:
        """A new stage with other settings; this one stays as it is.

        Args:
            settings: of `run_settings` and `call_settings`.

        Raises:
            StageError: the stage has no such setting.
        """
        allowed = (*self.run_settings, *self.call_settings)
        unknown = [name for name in settings if name not in allowed]
        if unknown:
            raise StageError(
                f"the stage {self.name!r} has no setting {unknown[0]!r} for a run. It has "
                f"{', '.join(allowed) or 'none'}"
            )
        changed = copy.copy(self)
        changed.card = {**self.card, "decisions": {**self.card["decisions"], **settings}}
        changed.settings = {**self.settings, **settings}
        changed.obey(changed.card["decisions"])
        return changed

    @property
    def decisions(self) -> Mapping[str, Any]:
        """All that running obeys: what the card decides, with the settings of this call."""
        return self.card["decisions"]

    @property
    def identity(self) -> str:
        """16 hex digits over all that decides the answers: the fingerprint, with the settings of this call."""
        return fingerprint_of(self.fingerprint, self.settings)

    @property
    def detail(self) -> int | None:
        """Pixels that the long side of a film has to keep for the stage to run on it; None for all that it has."""
        return None

    @property
    def grids(self) -> tuple[int, ...]:
        """Sides of the squares on which the stage sees the film letterboxed: they are made of all its pixels."""
        return ()

    def unchecked(self) -> str | None:
        """For the first stage of a chain: why it cannot tell a chest X-ray from anything else; None where it can."""
        return "have no segmentation, which checks them"

    def films_with_truth(self, data: Manifest) -> Manifest:
        """The films of `data` that the stage can be judged on: those of which is known what it answers."""
        return data

    def truth_of(self) -> Truth:
        """What a film needs for this loaded stage to be judged on it; `truth`, in more detail where there is some."""
        return self.truth

    @property
    def restorable(self) -> bool:
        """Whether `restore` can take the place of `run`."""
        return type(self).restore is not Stage.restore

    def restore(self, record: Record, mask: np.ndarray) -> Record:
        """Take over a mask (H, W) uint8 0/1 that this stage found before, with all that follows from it; not `run`."""
        raise NotImplementedError(f"the stage {self.name!r} fills in no mask")

    @abstractmethod
    def run(self, records: Sequence[Record]) -> list[Record]:
        """The same records, in the same order, with this stage's fields filled in."""

    @abstractmethod
    def evaluate(self, data: Manifest, out: Path, chain: Sequence[Stage] = ()) -> dict[str, Any]:
        """Figures on the films of `data` (see `models.figures.metrics.Figure`); plots are written into `out`."""


def fingerprint_of(bundle: str, settings: Mapping[str, Any] | None) -> str:
    """What names a stage's answers, 16 hex digits: its bundle's fingerprint, with the settings that a call changed."""
    if not settings:
        return bundle
    return hashlib.sha256((bundle + json.dumps(settings, sort_keys=True)).encode()).hexdigest()[:16]


Timed = Callable[[str], Any]  # called with a stage's name, gives a context that counts the seconds of a block
