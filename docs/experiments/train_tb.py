"""Trains the classifier and regions that ship, on the lungs that ship, with features that learned from TB.

    python docs/experiments/train_tb.py --data MANIFEST --out DIR --features C.npz --without shenzhen=A.npz rahman=B.npz

A hospital that taught the features can no longer stand for one never seen. So a twin answers its films: features of
`pretrain_tb.py` that were trained without it, and a last layer that never saw it either. Temperature, threshold and
sets come from these answers, and so do the figures `left_out` of the card. DIR becomes a folder of `pipeline train`,
with `left_out.csv` beside its stages.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.configs.schema import Config, load_config
from cxr_pipeline.data.files import whole_file
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.figures.metrics import auroc, bootstrap, bootstrap_mean, softmax
from cxr_pipeline.models.store import LICENCE, bundle_of, read_card, write_card
from cxr_pipeline.stages import classify_training, names_for
from cxr_pipeline.stages.classify_training import LEFT_OUT, ClassifyTraining
from cxr_pipeline.train.training import train

FEW = 20  # a source with no more films of a class has no figure of it


def told(twins: Collection[str]) -> str:
    """What the card says of the films left out."""
    answered = f"Films of {' and '.join(twins)} are answered by a twin whose features never saw their source either. "
    return (
        '"left_out" are films of train, each answered by a last layer fitted without its source. '
        f"{answered if twins else ''}Features saw train films of the other sources, see models/weights/chest/card.json"
    )


class WithTwins(ClassifyTraining):
    """A training that calibrates on what twins say of the films that taught its features.

    Attributes:
        twins: by source, the file of features that were trained without it. table: where the answers are written.
    """

    twins: Mapping[str, str] = {}
    table = Path("left_out.csv")

    def calibrate(self, offsets: dict[str, float]) -> dict[str, Any]:
        """As of any training, after the twins have answered."""
        rows, logits = self.crops["train"].rows, np.load(self.out / LEFT_OUT)
        sources = np.array([row["source"] for row in rows])
        for source, features in self.twins.items():
            logits[sources == source] = self._answers_of(source, features)[sources == source]
        with whole_file(self.out / LEFT_OUT) as file:
            np.save(file, logits)
        table = pd.DataFrame(rows)[["image", "patient", "source", "label"]]
        table[list(self.config.classes)] = logits
        table.to_csv(self.table, index=False)
        return super().calibrate(offsets)

    def _answers_of(self, source: str, features: str) -> np.ndarray:
        """Logits (N, K) of train's films by heads that never saw their source, on other features."""
        settings = self.config.classify.model_copy(update={"encoder_weights": features})
        out = self.out / "twins" / source
        out.mkdir(parents=True, exist_ok=True)
        twin = ClassifyTraining(self.data, self.config.model_copy(update={"classify": settings}), out, self.chain)
        twin.cache = self.cache
        twin.prepare()
        twin.build()
        twin.start()
        return np.load(out / LEFT_OUT)


def figures_of(table: pd.DataFrame, decisions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures by source of films that were left out, at a card's decisions; each with its interval over patients.

    Args:
        table: image, patient, source, label, and the logits by class; rows without an answer hold NaN.
    """
    classes, positive, normal = (decisions[key] for key in ("classes", "positive", "normal"))
    table = table[np.isfinite(table[classes]).all(axis=1)]
    offsets = np.array([decisions["offsets"][name] for name in classes])
    p = softmax(table[classes].to_numpy() / decisions["temperature"] + offsets)
    called = p[:, classes.index(positive)] >= decisions["threshold"]
    table = table.assign(said=np.array(classes)[p.argmax(axis=1)], called=called)
    return {source: _of_source(films, classes, positive, normal) for source, films in table.groupby("source")}


def _of_source(films: pd.DataFrame, classes: Sequence[str], positive: str, normal: str) -> dict[str, Any]:
    labels, patients = films["label"].to_numpy(), films["patient"].to_numpy()
    said, called = films["said"].to_numpy(), films["called"].to_numpy()
    found: dict[str, Any] = {}

    def share(name: str, chosen: np.ndarray, hits: np.ndarray) -> None:
        found[name] = bootstrap_mean(hits[chosen].astype(float), patients[chosen]).to_json()

    for name in classes:
        chosen, without = labels == name, labels == normal
        if chosen.sum() <= FEW:
            continue
        if name != normal and without.sum() > FEW:
            both = chosen | without
            truth, score = chosen[both], (films[name] - films[normal]).to_numpy()[both]
            figure = bootstrap(partial(_auroc_of, truth, score), patients[both])
            found[f"auc_{name.lower()}_against_{normal.lower()}"] = figure.to_json()
        if name == positive:
            share("sensitivity", chosen, called)
        else:
            share(f"specificity_{name.lower()}", chosen, ~called)
        share(f"recall_{name}", chosen, said == name)
    return found


def _auroc_of(truth: np.ndarray, score: np.ndarray, chosen: np.ndarray) -> float:
    return auroc(truth[chosen], score[chosen])


def train_with_twins(data: Path, config: Config, out: Path, twins: Mapping[str, str]) -> None:
    """Train as `pipeline train` does, with twins for the calibration; figures of left-out films go on the card.

    Args:
        out: must not hold a training: it would not tell by which twins it was calibrated.
        twins: by source, the file of features that were trained without it.

    Raises:
        CxrError: as `train`; also where `out` holds a training, or no film of `train` is of a twin's source.
    """
    if (out / "classify").exists():
        raise CxrError(f"{out} holds a training already. Give another --out, or remove it")
    films = read_manifest(data).select(split="train").table
    unknown = sorted(set(twins) - set(films["source"]))
    if unknown:
        raise CxrError(
            f"no film of train is of the source {', '.join(unknown)}. Sources of {data}: "
            f"{', '.join(sorted(set(films['source'])))}"
        )
    out.mkdir(parents=True, exist_ok=True)
    usual = classify_training.ClassifyTraining
    training = type("Training", (WithTwins,), {"twins": dict(twins), "table": out / LEFT_OUT.replace(".npy", ".csv")})
    classify_training.ClassifyTraining = training  # type: ignore[misc]
    try:
        train(data, config, out)
    finally:
        classify_training.ClassifyTraining = usual  # type: ignore[misc]
    for stage in sorted({"classify", "localize"} & set(names_for(config))):
        folder = bundle_of(out, stage)
        card = read_card(folder) | {"licence": LICENCE}
        if stage == "classify":
            table = pd.read_csv(training.table)
            card["figures"]["left_out"] = {"by_source": figures_of(table, card["decisions"])}
            card["training"]["left_out"] = told(twins)
        write_card(folder, card)


def main() -> None:
    """Train, and say where the weights are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--features", default="chest", help="'chest', or a file of pretrain_tb.py")
    parser.add_argument("--without", nargs="*", default=[], metavar="SOURCE=FILE", help="features without a source")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", help="crops and features; several trainings may share one")
    given = parser.parse_args()
    settings = ["segment.weights=tb", f"classify.encoder_weights={given.features}"]
    settings += [f"cache={given.cache}"] if given.cache else []
    twins = dict(one.split("=", 1) for one in given.without)
    train_with_twins(given.data, load_config("tb", settings), given.out, twins)
    print(f"trained: {given.out}")


if __name__ == "__main__":
    main()
