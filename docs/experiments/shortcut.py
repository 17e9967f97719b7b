"""How well what the classifier sees and says tells the hospital: linear probes for the source.

    python docs/experiments/shortcut.py --data ../shared/data/manifest.csv [--weights tb]

Normal films alone, so that the class gives nothing away; five folds by patient.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_pipeline import stages
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.figures.metrics import bootstrap
from cxr_pipeline.models.store import bundle_of, find, load_keras
from cxr_pipeline.stages.crops import encoder_input, lung_crop
from cxr_pipeline.stages.films import stream

SOURCES = ("shenzhen", "montgomery", "nih", "rahman")
EACH = 80  # films per source


def main() -> None:
    """Print the probes' balanced accuracy: on the features of the whole crop, of the lungs alone, and on the logits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="tb")
    options = parser.parse_args()
    from cxr_pipeline.models.backend import keras

    k = keras()
    segment, classify = stages.load_chain(options.weights, "classify")
    data = read_manifest(options.data).select(source=SOURCES, labels="NORM")
    table = data.table.groupby("source").sample(EACH, random_state=0).reset_index(drop=True)
    rows, whole, lung = [], [], []
    for row, record in stream(replace(data, table=table), [segment]):
        if record.ok:
            crop, lungs, _ = lung_crop(record, classify.size)
            rows.append(row)
            whole.append(encoder_input(crop, np.ones_like(lungs), classify.lungs, classify.pool))
            lung.append(encoder_input(crop, lungs, classify.lungs, classify.pool))
    sources = np.array([row["source"] for row in rows])
    patients = np.array([row["patient"] for row in rows])
    model = load_keras(bundle_of(find(options.weights), "classify") / "model.keras")
    network = k.Model(model.input, [model.get_layer("pool").output, model.get_layer("logits").output])

    def seen(crops: list[np.ndarray]) -> list[np.ndarray]:
        parts = [network(np.stack(crops[i : i + 16]), training=False) for i in range(0, len(crops), 16)]
        return [np.concatenate([np.asarray(part[which]) for part in parts]) for which in (0, 1)]

    (features, _), (lung_features, logits) = seen(whole), seen(lung)
    for name, x in (("whole crop", features), ("lungs alone", lung_features), ("logits", logits)):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        guess = cross_val_predict(probe, x, sources, groups=patients, cv=GroupKFold(5))
        figure = bootstrap(lambda i, g=guess: float(balanced_accuracy_score(sources[i], g[i])), patients)
        print(f"{name}: balanced accuracy over {len(SOURCES)} sources {figure} (chance {1 / len(SOURCES):.2f})")


if __name__ == "__main__":
    main()
