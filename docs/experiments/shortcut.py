"""How well the classifier's features tell the hospital: a linear probe for the source, beside one for TB.

    python docs/experiments/shortcut.py --data ../shared/data/manifest.csv [--weights tb]

Normal films alone, so that the class gives nothing away; five folds by patient; features averaged over the lungs.
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

import stages
from data.manifest import read_manifest
from models.metrics import bootstrap
from models.weights import bundle_of, find, load_keras
from stages.classify import encoder_input, lung_crop
from stages.films import stream

SOURCES = ("shenzhen", "montgomery", "nih", "rahman")
EACH = 80  # films a source


def main() -> None:
    """Print both probes' balanced accuracy, for the encoder as trained and as ImageNet made it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="tb")
    told = parser.parse_args()
    from models.backend import keras

    k = keras()
    segment, classify = stages.load_chain(told.weights, "classify")
    data = read_manifest(told.data).select(source=SOURCES, labels="NORM")
    table = data.table.groupby("source").sample(EACH, random_state=0).reset_index(drop=True)
    rows, crops = [], []
    for row, record in stream(replace(data, table=table), [segment]):
        if record.ok:
            crop, lungs, _ = lung_crop(record, classify.size)
            rows.append(row)
            crops.append(encoder_input(crop, lungs, classify.lungs, classify.pool))
    sources = np.array([row["source"] for row in rows])
    patients = np.array([row["patient"] for row in rows])
    tuned = load_keras(bundle_of(find(told.weights), "classify") / "model.keras")
    fresh = k.models.clone_model(tuned)
    from pathlib import Path

    from models.encoder_weights import mobilenetv2, resolve

    width = classify.card["training"]["settings"]["alpha"]
    source = mobilenetv2(resolve("imagenet", width, Path(told.data).parent), width, classify.size)
    for layer in fresh.get_layer("encoder").layers:
        layer.set_weights(source.get_layer(layer.name).get_weights())
    for name, model in (("as ImageNet made it", fresh), ("as trained", tuned)):
        network = k.Model(model.input, model.get_layer("encoder").output)
        features = np.concatenate(
            [np.asarray(k.ops.mean(network(np.stack(crops[i : i + 16]), training=False), (1, 2)))
             for i in range(0, len(crops), 16)]
        )  # fmt: skip
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        guess = cross_val_predict(probe, features, sources, groups=patients, cv=GroupKFold(5))
        figure = bootstrap(lambda i, g=guess: float(balanced_accuracy_score(sources[i], g[i])), patients)
        print(f"{name}: balanced accuracy over {len(SOURCES)} sources {figure} (chance {1 / len(SOURCES):.2f})")


if __name__ == "__main__":
    main()
