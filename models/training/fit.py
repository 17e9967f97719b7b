"""Training of one network: epochs, history, best weights, and going on after a kill.

A training's folder::

    checkpoint/state.json                 phase, epoch, history so far, name of the weights file
    checkpoint/<phase>-<epoch>.weights.h5 weights and optimizer state after that epoch
    checkpoint/best.weights.h5            weights of the best epoch on val
    history.csv                           one row an epoch, rewritten whole after each; learning_rate is that at its end
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.store import write_text
from cxr_pipeline.models.training.optimizers import better, make_optimizer, plateau_rate, stalled

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.data.batches import Batches

log = logging.getLogger("cxr.train")

# The encoder comes with a BatchNorm momentum of 0.999: after a short fine-tuning its running moments are still mostly
# those of photos, and the network is good in training mode and useless in inference. 0.97 settles within 100 steps.
BATCHNORM_MOMENTUM = 0.97


START_FILE = "after-start.weights.h5"  # kept to the end, for `average_with_start`
START = "start"  # the phase of the history's row that `start` makes
PHASE_SETTINGS = {
    "epochs",
    "learning_rate",
    "schedule",
    "final_learning_rate",
    "plateau_patience",
    "early_stopping",
    "optimizer",
    "weight_decay",
    "ema",
}


class TrainingError(CxrError, RuntimeError):
    """A training that cannot start or go on; says why and what to do."""


@dataclass(frozen=True)
class Phase:
    """One step of a training: `epochs` epochs with one optimizer setting, as in `configs.schema.Fit`.

    Attributes:
        epochs: at most; `early_stopping` epochs on end without a better figure end the phase before.
        schedule: "constant"; "cosine" or "exponential" from `learning_rate` to `final_learning_rate`, step by step;
            "plateau" halves the rate after `plateau_patience` epochs without a better figure, down to
            `final_learning_rate` (None: a hundredth of `learning_rate`).
        prepare: called on the model before the phase's first step, to freeze or unfreeze layers.
    """

    name: str
    epochs: int
    learning_rate: float
    schedule: str = "cosine"
    final_learning_rate: float | None = None
    plateau_patience: int = 3
    early_stopping: int | None = None
    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    ema: float = 0.0
    prepare: Callable[[K.Model], None] = lambda model: None


def set_batchnorm_momentum(model: K.Model, momentum: float = BATCHNORM_MOMENTUM) -> None:
    """Set the momentum of every BatchNormalization layer, nested models included."""
    k = keras()
    for layer in model.layers:
        if isinstance(layer, k.layers.BatchNormalization):
            layer.momentum = momentum
        elif isinstance(layer, k.Model):
            set_batchnorm_momentum(layer, momentum)


def _reseed(model: K.Model, *numbers: int) -> None:
    """Set every random layer's generator from `numbers`; Keras keeps no generator's state in a weights file."""
    k = keras()
    for position, layer in enumerate(model.layers):
        if isinstance(layer, k.Model):
            _reseed(layer, *numbers, position)
        elif getattr(layer, "seed_generator", None) is not None:
            state = layer.seed_generator.state
            draw = np.random.default_rng((*numbers, position))
            state.assign(draw.integers(2**31, size=state.shape).astype(state.dtype))


def fit(
    model: K.Model,
    phases: Sequence[Phase],
    train: Batches,
    val: Batches,
    out: Path,
    *,
    loss: Any,
    metrics: Callable[[], list],
    monitor: str,
    mode: str,
    settings: str,
    start: Callable[[], dict[str, float]] | None = None,
    on_batch: Callable[[str, int, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place and leave it with the weights of its best epoch on `val`.

    Called again with the same arguments on the same folder, it goes on after the last finished epoch: the order of the
    films, the augmentation, the optimizer and the learning rate are those of an undisturbed training.

    Args:
        model: built, not compiled.
        phases: run one after the other; the best epoch is looked for in the last.
        train: batches of the train split; val: of the val split, neither shuffled nor augmented.
        out: the training's folder.
        loss, metrics: for `compile`; `metrics` is called afresh for each phase.
        monitor: history column that picks the best epoch, such as "val_loss"; `mode` is "min" or "max". Plateau and
            early stopping follow it too, each phase from its own first epoch on.
        settings: text of all that the training depends on; a folder made with another text is refused.
        start: called on a fresh training, to bring the model to where the phases begin; returns the figures of its row
            in the history. Not called again when the training goes on.
        on_batch: told (phase, epoch, batch, batches) as training goes, for a progress bar.

    Returns:
        The history: one dict an epoch.

    Raises:
        TrainingError: the folder holds a training with other settings, or the loss is no longer finite.
    """
    folder = out / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    state = _read_state(folder, key, out)
    if not (folder / "state.json").is_file():  # before anything is kept there: what is kept depends on the settings
        write_text(folder / "state.json", json.dumps(state))
    history: list[dict[str, Any]] = state["history"]
    phases = [phase for phase in phases if phase.epochs]
    if start is not None and not history:
        _begin(model, start, val, loss, metrics(), monitor, state, history, out)
    for number, phase in enumerate(phases):
        figures = _figures_of(phase, history, monitor)
        done = len(figures)
        later = any(row["phase"] in {p.name for p in phases[number + 1 :]} for row in history)
        if later:
            continue
        phase.prepare(model)
        _compile(model, phase, len(train), loss, metrics())
        if state["weights"]:
            # The optimizer's state belongs to its phase; a new phase takes the weights alone.
            _load(model, folder / state["weights"], with_optimizer=state["weights"].startswith(phase.name + "-"))
        if done >= phase.epochs or stalled(phase, figures, mode):
            continue
        last = number == len(phases) - 1
        keeper = _keeper(model, phase, history, folder, out, state, key, monitor, mode, last, val, on_batch)
        train.epoch = len(history)
        log.info(
            "%s: %d of %d epochs to go, %d batches each", phase.name, phase.epochs - done, phase.epochs, len(train)
        )
        model.fit(train, epochs=phase.epochs, initial_epoch=done, verbose=0, callbacks=[keeper], shuffle=False)
    best = folder / "best.weights.h5"
    if best.is_file():
        _load(model, best, with_optimizer=False)
    return history


def average_with_start(model: K.Model, out: Path, share: float) -> None:
    """Move a trained model's weights back towards those that `start` left (WiSE-FT, Wortsman et al. 2022).

    What fine-tuning gains at home and what the start kept for other hospitals can be had together: between the two,
    the weights are often better elsewhere than either end.

    Args:
        out: folder of the training that has just ended.
        share: of the start's weights, from 0 (none) to 1 (nothing else).
    """
    tuned = model.get_weights()
    _load(model, out / "checkpoint" / START_FILE, with_optimizer=False)
    model.set_weights([share * old + (1 - share) * new for old, new in zip(model.get_weights(), tuned, strict=True)])


def _begin(
    model: K.Model,
    start: Callable[[], dict[str, float]],
    val: Batches,
    loss: Any,
    metrics: list,
    monitor: str,
    state: dict[str, Any],
    history: list[dict[str, Any]],
    out: Path,
) -> None:
    """Run `start`, and keep what it leaves as the training's first epoch."""
    row = start()
    _compile(model, Phase(START, 1, 1e-3), 1, loss, metrics)
    row |= _judged(model, val)
    history.append({"epoch": 1, "phase": START, **row})
    log.info("%s  %s", START, "  ".join(f"{n} {v:.4f}" for n, v in row.items()))
    name = f"{START}-0001.weights.h5"
    state.update(weights=name, best=row[monitor])
    for file in (name, "best.weights.h5", START_FILE):
        _save(model, out / "checkpoint" / file)
    write_text(out / "checkpoint" / "state.json", json.dumps(state))
    write_text(out / "history.csv", _table(history))


def _judged(model: K.Model, val: Batches) -> dict[str, float]:
    """Figures on val, named `val_...`; the loss without the penalty on weights, which says nothing of the films."""
    figures = {f"val_{name}": float(value) for name, value in model.evaluate(val, verbose=0, return_dict=True).items()}
    figures["val_loss"] -= _penalty(model)
    return figures


def _penalty(model: K.Model) -> float:
    """What the regularizers of the layers add to the loss."""
    return float(sum(float(keras().ops.convert_to_numpy(value)) for value in model.losses))


def forget(out: Path) -> None:
    """Remove the checkpoints of a finished training; its history stays."""
    shutil.rmtree(out / "checkpoint", ignore_errors=True)


def _compile(model: K.Model, phase: Phase, steps: int, loss: Any, metrics: list) -> None:
    optimizer = make_optimizer(phase, steps)
    # XLA is Keras' default where it works; on the CPU it trains these networks three times slower (UNet 256 px on 4
    # cores: 3.5 images/s with it, 11 without).
    model.compile(optimizer=optimizer, loss=loss, weighted_metrics=metrics, jit_compile=False)
    model.optimizer.build(model.trainable_variables)  # in mixed precision it is wrapped, to scale the loss


def _figures_of(phase: Phase, history: list[dict[str, Any]], monitor: str) -> list[float]:
    """The monitored figure after each finished epoch of a phase."""
    return [row[monitor] for row in history if row["phase"] == phase.name]


def _load(model: K.Model, path: Path, *, with_optimizer: bool) -> None:
    if with_optimizer:
        model.load_weights(path)
        return
    if not hasattr(model, "optimizer"):  # never compiled: a finished training without epochs is called again
        model.load_weights(path, skip_mismatch=False)
        return
    optimizer, model.optimizer = model.optimizer, None
    try:
        model.load_weights(path, skip_mismatch=False)
    finally:
        model.optimizer = optimizer


def _read_state(folder: Path, key: str, out: Path) -> dict[str, Any]:
    path = folder / "state.json"
    if not path.is_file():
        return {"key": key, "history": [], "weights": None, "best": None}
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["key"] != key:
        raise TrainingError(
            f"{out} holds an unfinished training with other settings or data. Give another --out, or remove {folder}"
        )
    return state


def _keeper(
    model: K.Model,
    phase: Phase,
    history: list[dict[str, Any]],
    folder: Path,
    out: Path,
    state: dict[str, Any],
    key: str,
    monitor: str,
    mode: str,
    last: bool,
    val: Batches,
    on_batch: Callable[[str, int, int, int], None] | None,
) -> K.callbacks.Callback:
    """A callback that validates, keeps history and checkpoints at the end of each epoch."""
    k = keras()

    class Keeper(k.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            if on_batch is not None:
                on_batch(phase.name, self.epoch, batch + 1, self.params["steps"])

        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            self.epoch = epoch
            if phase.schedule == "plateau":
                model.optimizer.learning_rate = plateau_rate(phase, _figures_of(phase, history, monitor), mode)
            _reseed(model, len(history))

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            row = {name: float(value) for name, value in (logs or {}).items()}
            if row["loss"] != row["loss"]:
                raise TrainingError(
                    f"the loss is not a number any more in epoch {epoch + 1}. Lower fit.learning_rate (it was "
                    f"{phase.learning_rate}) and start again; the last good epoch is kept in {folder}"
                )
            raw = None
            if phase.ema:
                raw = model.get_weights()
                model.optimizer.finalize_variable_values(model.trainable_variables)
            row["loss"] -= _penalty(model)
            row |= _judged(model, val)
            row["learning_rate"] = float(k.ops.convert_to_numpy(model.optimizer.learning_rate))
            if last and better(row[monitor], state["best"], mode):
                state["best"] = row[monitor]
                _save(model, folder / "best.weights.h5")
            if raw is not None:
                model.set_weights(raw)
            entry = {"epoch": len(history) + 1, "phase": phase.name, **row}
            history.append(entry)
            name = f"{phase.name}-{epoch + 1:04d}.weights.h5"
            old = state["weights"]
            _save(model, folder / name)
            state.update(weights=name, key=key)
            write_text(folder / "state.json", json.dumps(state))  # from here on the epoch counts as done
            if old and old != name:
                (folder / old).unlink(missing_ok=True)
            write_text(out / "history.csv", _table(history))
            log.info(
                "%s epoch %d/%d  %s",
                phase.name,
                epoch + 1,
                phase.epochs,
                "  ".join(f"{n} {v:.4g}" if n == "learning_rate" else f"{n} {v:.4f}" for n, v in row.items()),
            )
            if stalled(phase, _figures_of(phase, history, monitor), mode):
                log.info("%s: %s has not improved for %d epochs, stopped", phase.name, monitor, phase.early_stopping)
                model.stop_training = True

    return Keeper()


def _save(model: K.Model, path: Path) -> None:
    part = path.with_name("part." + path.name)  # Keras insists on the suffix
    model.save_weights(part, overwrite=True)
    part.replace(path)


def _table(history: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
