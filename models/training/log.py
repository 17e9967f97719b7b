"""What every training leaves beside its weights: curves, a summary for the card, a bar while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_pipeline.data.progress import progress_bar

if TYPE_CHECKING:
    from cxr_pipeline.data.manifest import Manifest
    from cxr_pipeline.models.training.phase import Phase


@contextmanager
def training_bar(stage: str, phases: Sequence[Phase]) -> Iterator[Callable[[str, int, int, int], None]]:
    """A progress bar over the batches of the current epoch; yields what `models.training.fit.Training` calls."""
    epochs = {phase.name: phase.epochs for phase in phases}
    with progress_bar(stage, None) as update:

        def on_batch(phase: str, epoch: int, batch: int, batches: int) -> None:
            update(batch, f"{stage} {phase} epoch {epoch + 1}/{epochs[phase]}", batches)

        yield on_batch


def summary(
    out: Path, parts: dict[str, Manifest], settings: dict[str, Any], history: list[dict[str, Any]], data: Manifest
) -> dict[str, Any]:
    """Draw `curves.png` and return the card's account of the training: films by source and split, settings, epochs."""
    from cxr_pipeline.models.figures.plots import training_curves

    training_curves(out / "history.csv", out / "curves.png")
    return {
        "films": {
            split: {"n": len(part), "by_source": dict(sorted(Counter(part.table["source"]).items()))}
            for split, part in parts.items()
        },
        "split_hash": data.split_hash(),
        "epochs": len(history),
        "settings": settings,
    }
