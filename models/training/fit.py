"""Training of one network: epochs, history, best weights, and going on after a kill.

A training's folder::

    checkpoint/    the two newest checkpoints, see `models.training.checkpoints`
    history.csv    one row per epoch, rewritten whole after each; learning_rate is that at its end
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.training.checkpoints import Checkpoint, Checkpoints, write_whole
from cxr_pipeline.models.training.errors import TrainingError
from cxr_pipeline.models.training.optimizers import better, make_optimizer, plateau_rate, stalled
from cxr_pipeline.models.training.phase import PHASE_SETTINGS, Phase

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.data.batches import Batches

__all__ = ["PHASE_SETTINGS", "Objective", "Phase", "Training", "TrainingError", "forget", "set_batchnorm_momentum"]

log = logging.getLogger("cxr.train")

# The encoder comes with a BatchNorm momentum of 0.999: after a short fine-tuning its running moments are still mostly
# those of photos, and the network is good in training mode and useless in inference. 0.97 settles within 100 steps.
BATCHNORM_MOMENTUM = 0.97

CHECKPOINTS = "checkpoint"  # the folder of what an unfinished training keeps
START = "start"  # the phase of the history's row that `start` makes
Row = dict[str, Any]  # an epoch of the history: epoch, phase, and figures by name


@dataclass(frozen=True)
class Objective:
    """What a training makes better.

    Attributes:
        loss: for `keras.Model.compile`.
        metrics: makes the metrics for `compile`; called afresh for each phase.
        monitor: history column that picks the best epoch, such as "val_loss". Plateau and early stopping follow it
            too, each phase from its own first epoch on.
        mode: "min" or "max", where the column is to go.
    """

    loss: Any
    metrics: Callable[[], list[Any]]
    monitor: str
    mode: str


class Training:
    """A training of a model, in place. `run` it; run again on the same folder, it goes on after the last epoch.

    The order of the films, the augmentation, the optimizer and the learning rate are then those of an undisturbed
    training.

    Args:
        model: built, not compiled.
        objective: what is made better.
        train: batches of the train split. val: of the val split, neither shuffled nor augmented.
        out: the training's folder.
        phases: run one after the other; the best epoch is looked for in the last.
        settings: text of all that the training depends on; a folder made with another text is refused.
        start: called on a fresh training, to bring the model to where the phases begin; returns the figures of its row
            in the history; where they hold those on val, val is not judged once more. Not called again when the
            training goes on.
        keep_start: keep the weights that `start` left to the end, for `average_with_start`.
        on_batch: called with (phase, epoch, batch, batches) as training goes, for a progress bar.
    """

    def __init__(
        self,
        model: K.Model,
        objective: Objective,
        train: Batches,
        val: Batches,
        out: Path,
        *,
        phases: Sequence[Phase],
        settings: str,
        start: Callable[[], dict[str, float]] | None = None,
        keep_start: bool = False,
        on_batch: Callable[[str, int, int, int], None] | None = None,
    ) -> None:
        self.model, self.objective = model, objective
        self.train, self.val, self.out = train, val, out
        self.phases = [phase for phase in phases if phase.epochs]
        self.start, self.keep_start, self.on_batch = start, keep_start, on_batch
        self.checkpoints = Checkpoints(out / CHECKPOINTS, settings)
        self.history: list[Row] = []
        self._best: float | None = None
        self._best_weights: list[np.ndarray] | None = None
        self._start_weights: list[np.ndarray] | None = None

    def run(self) -> list[Row]:
        """Train, and leave the model with the weights of its best epoch on `val`.

        Returns:
            The history: one dict per epoch.

        Raises:
            TrainingError: the folder holds a training with other settings, the disk is full, or the loss is no longer
                finite.
        """
        self.checkpoints.open()
        kept = self.checkpoints.newest()
        if kept is not None:
            self._go_on_from(kept)
        if self.start is not None and not self.history:
            self._begin(self.start)
        for number, phase in enumerate(self.phases):
            later = {phase.name for phase in self.phases[number + 1 :]}
            if not any(row["phase"] in later for row in self.history):
                self._run_phase(phase, kept)
        if self._best_weights is not None:
            self.model.set_weights(self._best_weights)
        return self.history

    def average_with_start(self, share: float) -> None:
        """Move the trained model's weights back towards those that `start` left (WiSE-FT, Wortsman et al. 2022).

        What fine-tuning gains at home and what the start kept for other hospitals can be had together: between the
        two, the weights are often better elsewhere than either end.

        Args:
            share: of the start's weights, from 0 (none) to 1 (nothing else).

        Raises:
            ValueError: the training has no start, or did not keep it.
        """
        if self._start_weights is None:
            raise ValueError("the start's weights were not kept: give `start`, and keep_start=True, and run it first")
        pairs = zip(self._start_weights, self.model.get_weights(), strict=True)
        self.model.set_weights([share * old + (1 - share) * new for old, new in pairs])

    def _go_on_from(self, kept: Checkpoint) -> None:
        self.history, self._best = kept.state["history"], kept.state["best"]
        self._best_weights, self._start_weights = kept.arrays.get("best"), kept.arrays.get("start")
        self.model.set_weights(kept.arrays["weights"])

    def _begin(self, start: Callable[[], dict[str, float]]) -> None:
        """Run `start`, and keep what it leaves as the training's first epoch."""
        row = start()
        self._compile(Phase(START, 1, 1e-3), 1)
        if self.objective.monitor not in row:
            row |= judged(self.model, self.val)
        self._best, self._best_weights = row[self.objective.monitor], self.model.get_weights()
        self._start_weights = self._best_weights if self.keep_start else None
        self.history.append({"epoch": 1, "phase": START, **row})
        log.info("%s  %s", START, "  ".join(f"{n} {v:.4f}" for n, v in row.items()))
        self._keep()

    def _run_phase(self, phase: Phase, kept: Checkpoint | None) -> None:
        """All that is left of a phase. `kept` is the checkpoint that this call of `run` went on from."""
        figures = self._figures_of(phase)
        done = len(figures)
        phase.prepare(self.model)
        if done >= phase.epochs or stalled(phase, figures, self.objective.mode):
            return
        self._compile(phase, len(self.train))
        if done and kept is not None:  # the optimizer's state belongs to its phase; a new phase begins with none
            state = kept.arrays["optimizer"]
            self.model.optimizer.load_own_variables({str(n): array for n, array in enumerate(state)})
        self.train.epoch = len(self.history)
        log.info(
            "%s: %d of %d epochs to go, %d batches each; the first batch takes longest",  # it is compiled first
            *(phase.name, phase.epochs - done, phase.epochs, len(self.train)),
        )
        callbacks = [_callback(self, phase)]
        self.model.fit(
            self.train, epochs=phase.epochs, initial_epoch=done, verbose=0, callbacks=callbacks, shuffle=False
        )

    def begin_epoch(self, phase: Phase) -> None:
        """Set what an epoch depends on, from the history alone: so it is the same after a kill."""
        if phase.schedule == "plateau":
            self.model.optimizer.learning_rate = plateau_rate(phase, self._figures_of(phase), self.objective.mode)
        _reseed(self.model, len(self.history))

    def end_epoch(self, phase: Phase, epoch: int, figures: dict[str, float]) -> bool:
        """Judge on val, and keep history and checkpoint; whether the phase ends here, by early stopping.

        Raises:
            TrainingError: the loss is no longer finite, or the disk is full.
        """
        row: Row = {name: float(value) for name, value in figures.items()}
        if np.isnan(row["loss"]):
            raise TrainingError(
                f"the loss is not a number any more in epoch {epoch + 1}. Lower fit.learning_rate (it was "
                f"{phase.learning_rate}) and start again; the last good epoch is kept in {self.checkpoints.folder}"
            )
        raw = None
        if phase.ema:
            raw = self.model.get_weights()
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        row["loss"] -= _penalty(self.model)
        row |= judged(self.model, self.val)
        row["learning_rate"] = float(keras().ops.convert_to_numpy(self.model.optimizer.learning_rate))
        if phase is self.phases[-1] and better(row[self.objective.monitor], self._best, self.objective.mode):
            self._best, self._best_weights = row[self.objective.monitor], self.model.get_weights()
        if raw is not None:
            self.model.set_weights(raw)
        self.history.append({"epoch": len(self.history) + 1, "phase": phase.name, **row})
        self._keep()
        shown = "  ".join(f"{n} {v:.4g}" if n == "learning_rate" else f"{n} {v:.4f}" for n, v in row.items())
        log.info("%s epoch %d/%d  %s", phase.name, epoch + 1, phase.epochs, shown)
        ended = stalled(phase, self._figures_of(phase), self.objective.mode)
        if ended:
            monitor = self.objective.monitor
            log.info("%s: %s has not improved for %d epochs, stopped", phase.name, monitor, phase.early_stopping)
        return ended

    def _keep(self) -> None:
        """Write the checkpoint, from which on the last epoch counts as done, and the history."""
        state = {"history": self.history, "best": self._best}
        optimizer: dict[str, np.ndarray] = {}
        self.model.optimizer.save_own_variables(optimizer)
        arrays = {"weights": self.model.get_weights(), "optimizer": list(optimizer.values())}
        if self._best_weights is not None:
            arrays["best"] = self._best_weights
        if self._start_weights is not None:
            arrays["start"] = self._start_weights
        self.checkpoints.keep(len(self.history), Checkpoint(state, arrays))
        write_whole(self.out / "history.csv", _table(self.history).encode())

    def _compile(self, phase: Phase, steps: int) -> None:
        # XLA is Keras' default where it works; on the CPU it trains these networks three times slower (UNet 256 px on 4
        # cores: 3.5 images/s with it, 11 without).
        self.model.compile(
            optimizer=make_optimizer(phase, steps),
            loss=self.objective.loss,
            weighted_metrics=self.objective.metrics(),
            jit_compile=False,
        )
        self.model.optimizer.build(
            self.model.trainable_variables
        )  # in mixed precision it is wrapped, to scale the loss

    def _figures_of(self, phase: Phase) -> list[float]:
        """The monitored figure after each finished epoch of a phase."""
        return [row[self.objective.monitor] for row in self.history if row["phase"] == phase.name]


def _callback(training: Training, phase: Phase) -> K.callbacks.Callback:
    """What Keras calls between the batches and epochs of a phase."""
    if TYPE_CHECKING:
        import keras as k
    else:
        k = keras()

    class Keeper(k.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            if training.on_batch is not None:
                training.on_batch(phase.name, self.epoch, batch + 1, self.params["steps"])

        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            self.epoch = epoch
            training.begin_epoch(phase)

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if training.end_epoch(phase, epoch, logs or {}):
                training.model.stop_training = True

    return Keeper()


def judged(model: K.Model, val: Batches) -> dict[str, float]:
    """Figures of a compiled model on val, named `val_...`.

    The loss is without the penalty on weights, which says nothing of the films.
    """
    found = model.evaluate(val, verbose=0, return_dict=True)
    figures = {f"val_{name}": float(value) for name, value in found.items()}
    figures["val_loss"] -= _penalty(model)
    return figures


def forget(out: Path) -> None:
    """Remove the checkpoints of a finished training; its history stays."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def set_batchnorm_momentum(model: K.Model, momentum: float = BATCHNORM_MOMENTUM) -> None:
    """Set the momentum of every BatchNormalization layer, nested models included."""
    k = keras()
    for layer in model.layers:
        if isinstance(layer, k.layers.BatchNormalization):
            layer.momentum = momentum
        elif isinstance(layer, k.Model):
            set_batchnorm_momentum(layer, momentum)


def _reseed(model: K.Model, *numbers: int) -> None:
    """Set every random layer's generator from `numbers`; Keras keeps no generator's state in a network's weights."""
    k = keras()
    for position, layer in enumerate(model.layers):
        if isinstance(layer, k.Model):
            _reseed(layer, *numbers, position)
        elif getattr(layer, "seed_generator", None) is not None:
            state = layer.seed_generator.state
            draw = np.random.default_rng((*numbers, position))
            state.assign(draw.integers(2**31, size=state.shape).astype(state.dtype))


def _penalty(model: K.Model) -> float:
    """What the regularizers of the layers add to the loss."""
    return float(sum(float(keras().ops.convert_to_numpy(value)) for value in model.losses))


def _table(history: list[Row]) -> str:
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
