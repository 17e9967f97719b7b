"""The two tasks of the classifier as objects: films of one class each, and films that may have several labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.stages.classify_calibration import mix_offsets, one_class, several_labels, weight_offsets
from cxr_pipeline.stages.classify_targets import balance_weights, label_weights, source_priors
from cxr_pipeline.stages.reference import fit_reference

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config

Rows = Sequence[dict[str, Any]]


class Task(ABC):
    """What training asks of a task. `targets` are (N, classes) float32 throughout, `rows` the films' manifest rows.

    Attributes:
        several: what a film counts in each label's loss where it has the label, and where not, (classes, 2) float32;
            None where every film has one class.
    """

    several: np.ndarray | None = None

    def __init__(self, config: Config) -> None:
        self.config, self.settings = config, config.classify

    @abstractmethod
    def beside(self, rows: Rows, targets: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Weight of each film in the loss (N,), or None; and what is added to its logits in training (N, classes)."""

    @abstractmethod
    def loss(self) -> Any:
        """The loss, for `keras.Model.compile`."""

    @abstractmethod
    def metric(self) -> Any:
        """A fresh metric, for `keras.Model.compile`."""

    @abstractmethod
    def decisions(self) -> dict[str, Any]:
        """What the card decides before anything is calibrated."""

    @abstractmethod
    def calibrated(
        self, logits: np.ndarray, targets: np.ndarray, rows: Rows, offsets: np.ndarray, learned: np.ndarray
    ) -> dict[str, Any]:
        """What val's films decide, see `stages.classify_calibration`.

        Args:
            logits: (N, classes). offsets: (classes,), added to the logits divided by the temperature.
            learned: (classes,) bool, whether train had films with the class, and films without.

        Raises:
            TrainingError: films that a threshold needs are missing.
        """


class OneClass(Task):
    """Every film has one class: a softmax, balanced by class and source, and what the source gives away taken out.

    Args:
        sources: how many sources the training's films come from.
    """

    def __init__(self, config: Config, sources: int) -> None:
        super().__init__(config)
        self._source_given = self.settings.source_prior > 0 and sources > 1

    def beside(self, rows: Rows, targets: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """See `Task.beside`."""
        del targets
        weights = balance_weights(rows, self.settings.balance)
        return weights, source_priors(rows, self.config.classes, weights, self.settings.source_prior)

    def loss(self) -> Any:
        """See `Task.loss`."""
        from cxr_pipeline.models.training.losses import classification_loss

        return classification_loss(self.settings.loss, False, self.settings.label_smoothing, None)

    def metric(self) -> Any:
        """See `Task.metric`."""
        from cxr_pipeline.models.backend import keras

        # The source's share of the classes is given for free, to val's films too: on films of sources with one class
        # each, that alone answers everything.
        return keras().metrics.CategoricalAccuracy("accuracy_given_source" if self._source_given else "accuracy")

    def decisions(self) -> dict[str, Any]:
        """See `Task.decisions`."""
        return {"offsets": mix_offsets(self.config.classes, self.settings.assumed_mix), "threshold": 0.5}

    def calibrated(
        self, logits: np.ndarray, targets: np.ndarray, rows: Rows, offsets: np.ndarray, learned: np.ndarray
    ) -> dict[str, Any]:
        """See `Task.calibrated`."""
        del learned  # training refuses films without the positive class
        positive = self.config.classes.index(str(self.config.positive))
        patients = [row["patient"] for row in rows]
        classes, labels = self.config.classes, targets.argmax(axis=1)
        decided = one_class(logits, labels, offsets, classes, positive, self.settings.target_sensitivity, patients)
        if self.config.normal == classes[-1] and len(np.unique(labels)) == len(classes):
            sources = [row["source"] for row in rows]
            decided["reference"] = fit_reference(logits / decided["temperature"], labels, sources).to_json()
        return decided


class SeveralLabels(Task):
    """A film may have several labels, or none: a sigmoid each, and unknown answers count nothing.

    Args:
        targets: of train: 1, 0, or -1 where unknown.
    """

    def __init__(self, config: Config, targets: np.ndarray) -> None:
        super().__init__(config)
        even = np.ones((targets.shape[1], 2), np.float32)
        self._targets = targets
        self.weights = label_weights(targets) if self.settings.label_weights else even
        self.several = self.weights

    def plot(self, path: Path) -> None:
        """Draw how many films each label has, and what they count."""
        from cxr_pipeline.models.figures.plots import label_counts

        label_counts(self._targets, self.weights, self.config.classes, path)

    def beside(self, rows: Rows, targets: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """See `Task.beside`."""
        del rows
        return None, np.zeros_like(targets)

    def loss(self) -> Any:
        """See `Task.loss`."""
        from cxr_pipeline.models.training.losses import classification_loss

        return classification_loss(self.settings.loss, True, self.settings.label_smoothing, self.weights.tolist())

    def metric(self) -> Any:
        """See `Task.metric`."""
        from cxr_pipeline.models.training.losses import KnownLabelsAccuracy

        return KnownLabelsAccuracy()

    def decisions(self) -> dict[str, Any]:
        """See `Task.decisions`."""
        classes = self.config.classes
        return {
            "offsets": weight_offsets(classes, self.weights),
            "threshold": 0.5,
            "multi_label": True,
            "thresholds": dict.fromkeys(classes, 0.5),
        }

    def calibrated(
        self, logits: np.ndarray, targets: np.ndarray, rows: Rows, offsets: np.ndarray, learned: np.ndarray
    ) -> dict[str, Any]:
        """See `Task.calibrated`."""
        del rows
        return several_labels(logits, targets, offsets, self.config.classes, learned)
