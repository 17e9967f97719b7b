"""Optimizers, learning-rate schedules and stopping, as the settings name them.

What depends on how training goes (the plateau schedule, early stopping) is worked out from the stored figures of the
phase's epochs alone, so a training that was killed goes on with the rates of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cxr_pipeline.models.backend import keras

if TYPE_CHECKING:
    import keras as K

    from cxr_pipeline.models.training.phase import Phase

PLATEAU_FACTOR = 0.5
# Where a rate ends when no `final_learning_rate` is set, as a share of the first.
FINAL_SHARE = 0.01

# Weight decay is decoupled from the gradient in all of them (Loshchilov and Hutter 2019): adam with it is adamw.
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": lambda *args, **options: keras().optimizers.AdamW(*args, **options),
    "adam": lambda *args, **options: keras().optimizers.Adam(*args, **options),
    "sgd": lambda *args, **options: keras().optimizers.SGD(*args, momentum=0.9, nesterov=True, **options),
    "rmsprop": lambda *args, **options: keras().optimizers.RMSprop(*args, **options),
}


def make_optimizer(phase: Phase, steps: int) -> K.optimizers.Optimizer:
    """The optimizer of a phase, gradients clipped to norm 1, its rate a schedule where that depends on the step alone.

    Args:
        steps: batches in an epoch.

    Raises:
        ValueError: no optimizer or schedule of that name.
    """
    if phase.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}. Received: {phase.optimizer!r}")
    options: dict[str, Any] = {"clipnorm": 1.0}
    if phase.weight_decay:
        options["weight_decay"] = phase.weight_decay
    elif phase.optimizer == "adamw":
        options["weight_decay"] = 0.0  # its own default is not 0
    if phase.ema:
        options |= {"use_ema": True, "ema_momentum": phase.ema}
    return OPTIMIZERS[phase.optimizer](_rate(phase, max(1, phase.epochs * steps)), **options)


def final_rate(phase: Phase) -> float:
    """The rate at which the phase's schedule ends, and below which a plateau never lowers it."""
    if phase.final_learning_rate is None:
        return FINAL_SHARE * phase.learning_rate
    return phase.final_learning_rate


def _rate(phase: Phase, steps: int) -> Any:
    """A number, or a Keras schedule over the phase's `steps` steps."""
    schedules = keras().optimizers.schedules
    share = final_rate(phase) / phase.learning_rate
    if phase.schedule == "cosine":
        return schedules.CosineDecay(phase.learning_rate, steps, alpha=share)
    if phase.schedule == "exponential":
        return schedules.ExponentialDecay(phase.learning_rate, steps, decay_rate=share)
    if phase.schedule in ("constant", "plateau"):
        return phase.learning_rate
    raise ValueError(f"schedule must be one of constant, cosine, plateau, exponential. Received: {phase.schedule!r}")


def better(value: float, best: float | None, mode: str) -> bool:
    """Whether a figure beats the best so far; `mode` is "min" or "max", NaN beats nothing."""
    if value != value:
        return False
    return best is None or (value < best if mode == "min" else value > best)


def plateau_rate(phase: Phase, figures: Sequence[float], mode: str) -> float:
    """The rate of a plateau phase's next epoch: halved each time the figure has not improved for some epochs.

    Args:
        figures: the monitored figure after each epoch of the phase so far.
        mode: "min" or "max", where the figure is to go.
    """
    rate, best, waited = phase.learning_rate, None, 0
    for figure in figures:
        if better(figure, best, mode):
            best, waited = figure, 0
            continue
        waited += 1
        if waited >= phase.plateau_patience:
            rate, waited = max(rate * PLATEAU_FACTOR, final_rate(phase)), 0
    return rate


def stalled(phase: Phase, figures: Sequence[float], mode: str) -> bool:
    """Whether early stopping ends the phase after these epochs; arguments as of `plateau_rate`."""
    if phase.early_stopping is None:
        return False
    best, waited = None, 0
    for figure in figures:
        improved = better(figure, best, mode)
        best, waited = (figure, 0) if improved else (best, waited + 1)
    return waited >= phase.early_stopping
