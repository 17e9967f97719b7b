"""Training of the chain: each stage in turn, on what the stages before it make.

The folder that `pipeline train --out DIR` leaves::

    DIR/
      config.yaml                  every setting, spelled out
      segment/ classify/           model.keras  model.onnx  card.json  config.yaml
                                   history.csv  curves.png  train.log  evaluation/<split>/
      localize/                    card.json  fit.csv  config.yaml  train.log  evaluation/<split>/
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import stages
from configs.schema import Config, dump_config
from data.manifest import Manifest, read_manifest
from data.splits import leaking_patients, split_by_patient
from models.backend import training_scope
from models.fit import TrainingError, forget
from models.weights import (
    KERAS_FILE,
    QUALITY_FILE,
    SERVING_FILE,
    bundle_of,
    find,
    fingerprint,
    read_card,
    write_card,
    write_text,
)
from pipeline.chain import RUN_SETTINGS
from pipeline.evaluation import evaluate_stage, summary_of, with_truth

log = logging.getLogger("cxr.train")

DONE = "done"  # in a stage's folder: trained and evaluated with the config beside it


def train(data: Path, config: Config, out: Path, stage: str | None = None) -> None:
    """Train one stage, or all of them, and evaluate each on the test and external splits.

    An interrupted training goes on where it stopped when called again with the same arguments. `stage` needs the stages
    before it in `out`, but for a segmentation that `segment.weights` names: that is taken first.

    Raises:
        ManifestError: the manifest has faults.
        TrainingError: a patient in two splits, no films to train on, or `out` holds a training with other settings.
        WeightsError: a stage before `stage` has not been trained in `out`, or `segment.weights` names none.
    """
    manifest = prepare_manifest(data, config)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.yaml", dump_config(config))
    names = [stage] if stage else stages.names_for(config)
    if stage and config.segment.weights and "segment" in _before(stage, config):
        names.insert(0, "segment")
    for name in names:
        _train_stage(name, manifest, config, out)


def prepare_manifest(data: Path, config: Config) -> Manifest:
    """The manifest with splits: its own, or made by patient where it has none; refuses patients in two splits."""
    own_labels = config.class_of is None and not config.multi_label
    manifest = read_manifest(data, classes=config.classes if own_labels else None).relabelled(config.class_of)
    if not (manifest.table["split"] != "").any():
        manifest = split_by_patient(manifest, val=config.val_fraction, test=config.test_fraction, seed=config.seed)
    leaks = leaking_patients(manifest)
    if leaks:
        shown = ", ".join(f"{patient} in {' and '.join(sorted(splits))}" for patient, splits in list(leaks.items())[:5])
        raise TrainingError(f"{len(leaks)} patient(s) are in more than one split: {shown}. Put each into one split")
    idle = int((manifest.table["split"] == "").sum())
    if idle:
        log.warning("%d of %d films have no split, and take no part", idle, len(manifest))
    return manifest


def _train_stage(name: str, manifest: Manifest, config: Config, out: Path) -> None:
    folder = out / name
    folder.mkdir(exist_ok=True)
    settings = _settings_of(name, config) + f"# films and splits: {manifest.split_hash()}\n"
    done = folder / DONE
    if done.is_file() and (folder / "config.yaml").is_file():
        if (folder / "config.yaml").read_text(encoding="utf-8") == settings and done.read_text() == _upstream(
            name, config, out
        ):
            log.info("%s: trained already in %s", name, folder)
            return
        done.unlink()
    write_text(folder / "config.yaml", settings)
    with _log_into(folder / "train.log"):
        log.info("training %s", name)
        chain = [stages.stage_class(n).load(bundle_of(out, n)) for n in _before(name, config)]
        stage_class = stages.stage_class(name)
        if name == "segment" and config.segment.weights:
            # With the figures of its own training: it may have seen what is test or external here.
            _take(name, config.segment.weights, config, folder)
            write_text(done, _upstream(name, config, out))
            return
        with training_scope(config.distribute, config.precision):
            stage_class.train(manifest, config, folder, chain)
        stage = stage_class.load(folder)
        figures: dict[str, Any] = {}
        for split in ("test", "external"):
            part = _judged(name, manifest.select(split=split), config)
            if len(with_truth(stage, part)):
                metrics = evaluate_stage(stage, part, folder / "evaluation" / split, chain, split=split)
                figures[split] = summary_of(metrics)
        write_card(folder, read_card(folder) | {"figures": figures})
        forget(folder)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        write_text(done, _upstream(name, config, out))


def _take(name: str, weights: str, config: Config, folder: Path) -> None:
    """Copy a trained stage into `folder`, with those of its decisions changed that the config names.

    Raises:
        WeightsError: there are no such weights, or they lack the stage.
    """
    bundle = bundle_of(find(weights), name)
    card = read_card(bundle)
    section = getattr(config, name)
    named = {key for key in RUN_SETTINGS[name] if key in section.model_fields_set}
    decisions = card["decisions"] | section.model_dump(mode="json", include=named)
    if bundle.resolve() != folder.resolve():
        for file in (KERAS_FILE, SERVING_FILE, QUALITY_FILE):
            (folder / file).unlink(missing_ok=True)
            if (bundle / file).is_file():
                shutil.copyfile(bundle / file, folder / file)
    write_card(folder, card | {"decisions": decisions, "taken_from": weights})
    log.info("%s: taken from %s", name, weights)


def _judged(name: str, films: Manifest, config: Config) -> Manifest:
    """The films that a stage's figures are taken on: none it trained on, no source that its config calls foreign."""
    if name == "segment":
        return films.select(split=sorted({"test", "external"} - set(config.segment.fit.splits)))
    if config.classify.fit.sources is not None:
        return films.select(source=config.classify.fit.sources)
    foreign = config.classify.fit.leave_out
    return films.select(source=sorted(set(films.table["source"]) - set(foreign))) if foreign else films


def _settings_of(name: str, config: Config) -> str:
    """The settings that the stage depends on, as YAML: a change elsewhere does not make its training stale."""
    others = {"cache", "distribute", "precision", *stages.NAMES} - {name}
    if name == "segment":
        others |= {"name", "classes", "positive", "normal", "multi_label", "class_of"}
    return yaml.safe_dump(config.model_dump(mode="json", exclude=others), sort_keys=False, allow_unicode=True)


def _before(name: str, config: Config) -> list[str]:
    names = stages.names_for(config)
    if name not in names:
        raise TrainingError(f"classify.lungs is {config.classify.lungs!r}: there is no stage {name!r} to train")
    return names[: names.index(name)]


def _upstream(name: str, config: Config, out: Path) -> str:
    """Fingerprints of the stages that `name` builds on, or is taken from: trained again, they make it stale."""
    if name == "segment" and config.segment.weights:
        return fingerprint(bundle_of(find(config.segment.weights), name))
    return "\n".join(fingerprint(bundle_of(out, n)) for n in _before(name, config))


@contextmanager
def _log_into(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger("cxr")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
