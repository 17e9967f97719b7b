"""A training in mixed precision that is interrupted goes on."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_pipeline.models.backend import training_scope
from tests.models.test_fit import run


def test_a_training_in_mixed_precision_goes_on_too(tmp_path):
    """Its optimizer is wrapped, to scale the loss: what is kept of it must be found again."""
    with training_scope("none", "mixed_float16"):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop_at=("fine", 1, 1))
        model, history, _ = run(tmp_path)
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert np.isfinite([row["loss"] for row in history]).all()
