"""One step of a training, as the settings name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras as K

# Those of `configs.fit.Fit` that a phase takes.
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


def _unchanged(model: K.Model) -> None:
    del model


@dataclass(frozen=True)
class Phase:
    """One step of a training: `epochs` epochs with one optimizer setting, as in `configs.fit.Fit`.

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
    prepare: Callable[[K.Model], None] = _unchanged
