"""The fit of `stages.quality`: what upright frontal chest X-rays look like, from those of a training."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr_pipeline.data.files import whole_file
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.models.store import QUALITY_FILE
from cxr_pipeline.stages.films import stream
from cxr_pipeline.stages.quality import COMPARED, EDGES, aligned, distances, measure, unlikeness

if TYPE_CHECKING:
    from cxr_pipeline.data.manifest import Manifest
    from cxr_pipeline.stages.segment import Segment

log = logging.getLogger("cxr.quality")

LEAST = 100  # films; fewer do not say what a chest X-ray may look like
MOST = 3000  # films; drawn evenly from the sources where there are more
_COMPONENTS = 24
# Training films past the limit: 5 of 1,000. Films of sources left out of the fit, one at a time: see docs/quality.md.
_QUANTILE = 0.995
_EDGE_QUANTILE = 0.998
_PENALTY = 0.01  # inverse of the ridge penalty on what tells a film from its mirror image


def fit(pairs: np.ndarray, measured: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fit on what `aligned` (N, 2, 32, 32) and `measure` (each (N,)) give for N upright frontal films.

    Each film also takes part mirrored, and with another gamma: neither makes it less of a chest X-ray.

    Returns:
        `mean` (2, 1024), `axes` (2, 24, 1024) and `spread` (2, 24) of the principal components; `scale` (6,) and
        `limit` () of `unlikeness`; `edges` (4,), limits on how far lung touches an edge; `mirror` (2048,), weights
        of the log odds that a film is not mirrored; `films` (), their number.
    """
    from sklearn.decomposition import PCA

    many = _varied(pairs)
    fitted: dict[str, np.ndarray] = {"films": np.array(len(pairs))}
    means, axes, spreads = [], [], []
    for part in (0, 1):
        found = PCA(_COMPONENTS, svd_solver="randomized", random_state=0).fit(many[:, part].reshape(len(many), -1))
        means.append(found.mean_)
        axes.append(found.components_)
        spreads.append(np.sqrt(found.explained_variance_))
    fitted |= {
        "mean": np.array(means, np.float32),
        "axes": np.array(axes, np.float16),
        "spread": np.array(spreads, np.float32),
    }
    compared = np.column_stack([distances(pairs, fitted), measured["texture"], measured["doubt"]])
    assert compared.shape[1] == len(COMPARED)
    fitted["scale"] = np.quantile(compared, 0.99, axis=0).astype(np.float32)
    fitted["limit"] = np.float32(1)
    fitted["limit"] = np.float32(np.quantile(unlikeness(compared, fitted), _QUANTILE))
    # Lung may touch an edge a little on any film; the floor keeps few films from setting a limit of nothing.
    edges = [max(0.1, float(np.quantile(measured[edge], _EDGE_QUANTILE))) for edge in EDGES]
    return fitted | {"edges": np.array(edges, np.float32), "mirror": _mirror(pairs)}


def _varied(pairs: np.ndarray) -> np.ndarray:
    """The films, their mirror images, and one of both with a gamma of 0.67 to 1.5; (3 N, 2, 32, 32)."""
    grey = pairs[:, 0]
    low = grey.min(axis=(1, 2), keepdims=True)
    span = grey.max(axis=(1, 2), keepdims=True) - low + 1e-6
    gamma = np.exp(np.random.default_rng(0).uniform(-0.4, 0.4, (len(pairs), 1, 1)))
    other = pairs.copy()
    bent = ((grey - low) / span) ** gamma
    other[:, 0] = (bent - bent.mean(axis=(1, 2), keepdims=True)) / (bent.std(axis=(1, 2), keepdims=True) + 0.05 / span)
    other[::2] = other[::2, ..., ::-1]
    return np.concatenate([pairs, pairs[..., ::-1], other])


def _mirror(pairs: np.ndarray) -> np.ndarray:
    """Weights (2048,) of a logistic regression without intercept, on a film less its mirror image."""
    from sklearn.linear_model import LogisticRegression

    odd = (pairs - pairs[..., ::-1]).reshape(len(pairs), -1)
    sign = np.where(np.arange(len(odd)) % 2, 1, -1)
    model = LogisticRegression(C=_PENALTY, fit_intercept=False, max_iter=300).fit(odd * sign[:, None], sign)
    return model.coef_[0].astype(np.float32)


def fit_bundle(bundle: Path, stage: Segment, data: Manifest) -> bool:
    """Fit on the films of `data` as `stage` sees them, and write `quality.npz` into the bundle.

    Returns:
        Whether it was written: with fewer than 100 films that can be used, it is not.
    """
    pairs, measured, _ = collect(stage, data)
    if len(pairs) < LEAST:
        log.warning(
            "%d films do not say what a chest X-ray may look like, at least %d are needed: films that cannot be judged "
            "will not be told from others",
            len(pairs),
            LEAST,
        )
        return False
    write(bundle, fit(pairs, measured))
    return True


def write(bundle: Path, fitted: dict[str, np.ndarray]) -> None:
    """Write `quality.npz`, whole or not at all."""
    with whole_file(bundle / QUALITY_FILE) as file:
        np.savez_compressed(file, allow_pickle=False, **fitted)


def collect(stage: Segment, data: Manifest) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """What `fit` needs of at most 3000 films in which any lung was found: pairs, measures, and their sources (N,)."""
    pairs, measured, sources = [], [], []
    batch: list[tuple[str, Radiograph]] = []

    def look() -> None:
        for (source, _), view in zip(batch, stage.views([film for _, film in batch]), strict=True):
            pair = aligned(view)
            if pair is not None:
                pairs.append(pair)
                measured.append(measure(view))
                sources.append(source)
        batch.clear()

    for row, record in stream(_drawn(data), description="quality"):
        if record.ok:
            batch.append((row["source"], record.film))
        if len(batch) == 16:
            look()
    look()
    names = measured[0] if measured else ()
    columns = {name: np.array([film[name] for film in measured]) for name in names}
    return np.array(pairs, np.float32), columns, np.array(sources)


def _drawn(data: Manifest) -> Manifest:
    """At most `MOST` films, as evenly from the sources as these allow."""
    order = data.table.sample(frac=1, random_state=0)
    place = order.groupby("source").cumcount().sort_values(kind="stable")
    kept = sorted(place.index[:MOST])
    return replace(data, table=data.table.loc[kept].reset_index(drop=True))
