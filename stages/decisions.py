"""From calibrated probabilities to what a person reads: label, score, screening answer, and what stays open.

Two answers are kept apart. The *label* is the likeliest class. The *screen* is a decision at an operating threshold
that was chosen for its sensitivity: positive, negative, or unsure. Both come from the same probabilities, and may
differ: at a threshold of 0.14 a film with a probability of TB of 0.30 is most likely normal, and should be looked at
all the same.

The score is made by `stages.scores`, the sets that say when an answer is unsure by `stages.sets`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_pipeline.stages.scores import AT_THRESHOLD, Scale, score_of, shown
from cxr_pipeline.stages.sets import NEGATIVE, POSITIVE, UNSURE, Sets

DOUBTS = ("unsure: ", "abnormal, kind unsure", "uncertain: ")  # how warnings begin that a decision makes


@dataclass(frozen=True)
class Answer:
    """What is said of one film. `score` 0 to 100; `abnormal` 0 to 1, None without a normal class."""

    label: str
    screen: str
    score: float
    abnormal: float | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """Everything that decides, from probabilities on: of weights or a site, with a person's own cut-off.

    Attributes:
        threshold: probability of the positive class that has the score 50.
        cutoff: score from which a film is positive, to one digit.
        sets: None never says unsure.
    """

    positive: str
    threshold: float
    normal: str | None = None
    scale: Scale = field(default_factory=Scale)
    sets: Sets | None = None
    cutoff: float = AT_THRESHOLD

    @classmethod
    def of(cls, decisions: Mapping[str, Any], cutoff: float | None = None) -> Rules:
        """The rules of a card's ``decisions``. Cards of before, without ``score`` and ``sets``, decide by threshold."""
        return cls(
            decisions["positive"],
            float(decisions["threshold"]),
            decisions.get("normal"),
            Scale.of(decisions.get("score")),
            Sets.of(decisions.get("sets")),
            float(decisions.get("cutoff", AT_THRESHOLD) if cutoff is None else cutoff),
        )

    def score(self, probabilities: Mapping[str, float]) -> float:
        """The score of a film, 0 to 100."""
        return score_of(probabilities[self.positive], self.threshold, self.scale)

    def screen(self, probabilities: Mapping[str, float]) -> str:
        """Positive, negative or unsure."""
        p = probabilities[self.positive]
        if self.sets is not None and self.sets.answer(p) == UNSURE:
            return UNSURE
        return POSITIVE if shown(self.score(probabilities)) >= self.cutoff else NEGATIVE

    def decide(self, probabilities: Mapping[str, float]) -> Answer:
        """Label, screen, score and doubts of a film, from its calibrated probability of each class."""
        label = max(probabilities, key=probabilities.__getitem__)
        screen, score = self.screen(probabilities), self.score(probabilities)
        normal = probabilities.get(self.normal) if self.normal is not None else None
        abnormal = 1 - normal if normal is not None else None
        return Answer(label, screen, score, abnormal, tuple(self._doubts(probabilities, screen, shown(score))))

    def _doubts(self, probabilities: Mapping[str, float], screen: str, score: float) -> list[str]:
        if self.sets is None:
            return []
        out = []
        if screen == UNSURE:
            out.append(
                f"unsure: with a score of {score:.1f}, films with and without {self.positive} are both common, or both "
                f"rare, among those that the weights were calibrated on (risk {self.sets.risk:g}). Read the film"
            )
        kinds = self.sets.kinds(probabilities)
        if self.normal is not None and self.normal not in kinds and len(kinds) > 1 and self.positive in kinds:
            out.append(f"abnormal, kind unsure: it may be {' or '.join(kinds)}")
        return out


def probabilities_of(
    logits: np.ndarray, temperature: float, offsets: np.ndarray, *, several: bool = False
) -> np.ndarray:
    """Calibrated probabilities (..., K) of logits (..., K): ``softmax(logits / temperature + offsets)``.

    Args:
        offsets: (K,). several: a film may have several classes, so each has a probability of its own.
    """
    scaled = np.asarray(logits, float) / temperature + np.asarray(offsets, float)
    if several:
        return 1 / (1 + np.exp(-scaled))
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def decided_error(screens: Sequence[str], is_positive: np.ndarray) -> float:
    """Share of wrong answers among the films that are not unsure; NaN where all are."""
    answers, y = np.asarray(screens), np.asarray(is_positive, bool)
    decided = answers != UNSURE
    return float(((answers == POSITIVE) != y)[decided].mean()) if decided.any() else float("nan")
