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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cxr_pipeline import stages
from cxr_pipeline.configs.schema import Config, dump_config, flat_settings
from cxr_pipeline.configs.yaml_text import parse_yaml
from cxr_pipeline.data.files import sweep, write_bytes
from cxr_pipeline.data.filmmasks import require_sound_masks
from cxr_pipeline.data.manifest import SPLITS, Manifest, read_manifest
from cxr_pipeline.data.splits import leaking_patients, split_by_patient
from cxr_pipeline.models.backend import training_scope
from cxr_pipeline.models.store import (
    KERAS_FILE,
    QUALITY_FILE,
    SERVING_FILE,
    WeightsError,
    bundle_of,
    find,
    fingerprint,
    read_card,
    write_card,
    write_text,
)
from cxr_pipeline.models.training.errors import TrainingError, full_disk_named
from cxr_pipeline.models.training.fit import forget
from cxr_pipeline.results.folder import REPORT
from cxr_pipeline.train.evaluation import evaluate_stage, summary_of
from cxr_pipeline.train.weighted import COLUMN

log = logging.getLogger("cxr.train")

DONE = "done"  # in a stage's folder: trained and evaluated with the config beside it


def train(
    data: Path,
    config: Config,
    out: Path,
    stage: str | None = None,
    *,
    overwrite: bool = False,
    mask_labels: Sequence[str] | None = None,
) -> None:
    """Train one stage, or all of them, and evaluate each on the test and external splits.

    An interrupted training goes on where it stopped when called again with the same arguments. `stage` needs the stages
    before it in `out`, but for a segmentation that `segment.weights` names: that is taken first.

    Args:
        overwrite: train stages again that `out` holds, finished, with other settings or data.
        mask_labels: values of the masks that count as lung; by default the obvious ones.

    Raises:
        ManifestError: the manifest has faults. MaskError: lung masks that nothing can be learned from.
        TrainingError: a patient in two splits, no films to train on, or `out` holds a training with other settings or
            data.
        WeightsError: a stage before `stage` has not been trained in `out`, or `segment.weights` names none.
    """
    manifest, split_recipe = prepare_manifest(data, config, mask_labels)
    names = [stage] if stage else stages.names_for(config)
    if stage and config.segment.weights and "segment" in _before(stage, config):
        names.insert(0, "segment")
    settings = {name: _settings_of(name, config, manifest) for name in names}
    if not overwrite:
        _refuse_to_replace(settings, out, manifest)
    for name in names:
        taken = name == "segment" and config.segment.weights
        if not (taken or _finished(name, config, out, settings[name], manifest)):
            stages.stage_class(name).require(manifest, config)
            if name == "segment":
                require_sound_masks(manifest.select(split=[*SPLITS]))
    with full_disk_named(out.parent):
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "config.yaml", dump_config(config))
    for name in names:
        with full_disk_named(out):
            _train_stage(name, manifest, config, out, settings[name], split_recipe)


def prepare_manifest(
    data: Path, config: Config, mask_labels: Sequence[str] | None = None
) -> tuple[Manifest, dict[str, Any] | None]:
    """The manifest with splits, and how they were dealt: by patient where it has none of its own, else None.

    Raises:
        ManifestError: the manifest has faults. TrainingError: a patient is in two splits.
    """
    own_labels = config.class_of is None and not config.multi_label
    manifest = read_manifest(data, classes=config.classes if own_labels else None, mask_labels=mask_labels)
    manifest = manifest.relabelled(config.class_of)
    split_recipe = None
    if not (manifest.table["split"] != "").any():
        recipe: dict[str, Any] = {"val": config.val_fraction, "test": config.test_fraction, "seed": config.seed}
        manifest = split_by_patient(manifest, **recipe)
        split_recipe = {**recipe, "class_of": config.class_of}
    leaks = leaking_patients(manifest)
    if leaks:
        shown = ", ".join(f"{patient} in {' and '.join(sorted(splits))}" for patient, splits in list(leaks.items())[:5])
        raise TrainingError(f"{len(leaks)} patient(s) are in more than one split: {shown}. Put each into one split")
    idle = int((manifest.table["split"] == "").sum())
    if idle:
        log.warning("%d of %d films have no split, and take no part", idle, len(manifest))
    if COLUMN in manifest.table and (manifest.table[COLUMN].astype(str).str.strip() != "").any():
        log.info(
            "The column %r is not used: a training counts its classes alike. calibrate and plan count by it", COLUMN
        )
    return manifest, split_recipe


def _refuse_to_replace(settings: dict[str, str], out: Path, manifest: Manifest) -> None:
    """Refuse to train over finished weights of other settings or data; what changed is named."""
    for name, wanted in settings.items():
        path = out / name / "config.yaml"
        if not ((out / name / DONE).is_file() and path.is_file()):
            continue
        had = _without_version(path.read_text(encoding="utf-8"), wanted, manifest)
        if had != wanted:
            raise TrainingError(
                f"{out / name} holds a finished training with {_difference(had, wanted)}. Give another --out, or "
                "--overwrite to train it again"
            )


def _without_version(had: str, wanted: str, manifest: Manifest) -> str:
    """A stage's settings file, with the last line of older versions, which told films by splits alone, as it is now."""
    older = f"# films and splits: {manifest.split_hash()}\n"
    return had.removesuffix(older) + wanted.splitlines(keepends=True)[-1] if had.endswith(older) else had


def _difference(had: str, wanted: str) -> str:
    """What tells two settings files of a stage apart, in words."""
    before, now = (flat_settings(parse_yaml(text) or {}) for text in (had, wanted))
    changed = [key for key in now if before.get(key, _ABSENT) != now[key]] + [key for key in before if key not in now]
    if not changed:
        return "other films, labels or splits"
    differences = [f"{key} {before.get(key, 'unknown')!r} (now {now.get(key, 'unknown')!r})" for key in changed[:4]]
    return f"other settings: {', '.join(differences)}" + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")


_ABSENT = object()


def _train_stage(
    name: str, manifest: Manifest, config: Config, out: Path, settings: str, split_recipe: dict[str, Any] | None
) -> None:
    folder = out / name
    folder.mkdir(exist_ok=True)
    sweep(folder)  # what a killed training left half written
    done = folder / DONE
    if _finished(name, config, out, settings, manifest):
        log.info("%s: trained already in %s", name, folder)
        return
    if done.is_file() and (folder / "config.yaml").is_file():
        done.unlink()
        for stale in (folder / "evaluation", out / REPORT):  # of the weights that go
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
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
            if len(stage.films_with_truth(part)):
                metrics = evaluate_stage(stage, part, folder / "evaluation" / split, chain, split=split)
                figures[split] = summary_of(metrics)
        write_card(
            folder, read_card(folder) | {"figures": figures, **({"dealt": split_recipe} if split_recipe else {})}
        )
        forget(folder)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        write_text(done, _upstream(name, config, out))


def _finished(name: str, config: Config, out: Path, settings: str, manifest: Manifest) -> bool:
    """Whether `out` holds the stage, trained with these settings and films on the stages before it as they are."""
    done, kept = out / name / DONE, out / name / "config.yaml"
    if not (done.is_file() and kept.is_file()):
        return False
    try:
        before = _upstream(name, config, out)
    except WeightsError:
        return False
    had = _without_version(kept.read_text(encoding="utf-8"), settings, manifest)
    return had == settings and done.read_text(encoding="utf-8") == before


def _take(name: str, weights: str, config: Config, folder: Path) -> None:
    """Copy a trained stage into `folder`, with those of its decisions changed that the config names.

    Raises:
        WeightsError: there are no such weights, or they lack the stage.
    """
    bundle = bundle_of(find(weights), name)
    card = read_card(bundle)
    section = getattr(config, name)
    named = {key for key in stages.stage_class(name).run_settings if key in section.model_fields_set}
    decisions = card["decisions"] | section.model_dump(mode="json", include=named)
    if bundle.resolve() != folder.resolve():
        for file in (KERAS_FILE, SERVING_FILE, QUALITY_FILE):
            if (bundle / file).is_file():
                write_bytes(folder / file, (bundle / file).read_bytes())
            else:
                (folder / file).unlink(missing_ok=True)
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


def _settings_of(name: str, config: Config, manifest: Manifest) -> str:
    """What the stage depends on, as YAML: a change elsewhere does not make its training stale."""
    if name == "segment" and config.segment.weights:  # neither films nor a seed change what is taken
        taken = {"weights", *stages.stage_class(name).run_settings}
        return yaml.safe_dump({name: config.segment.model_dump(mode="json", include=taken)}, sort_keys=False)
    others = {"cache", "distribute", "precision", *stages.names()} - {name}
    if name == "segment":
        others |= {"name", "classes", "positive", "normal", "multi_label", "class_of"}
    text = yaml.safe_dump(config.model_dump(mode="json", exclude=others), sort_keys=False, allow_unicode=True)
    return text + f"# films: {manifest.content_hash(labels=name != 'segment')}\n"


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


class _LogFile(logging.FileHandler):
    """A log that a full disk does not stop: what ends the training then is said once, by the training itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line."""


@contextmanager
def _log_into(path: Path) -> Iterator[None]:
    handler = _LogFile(path, encoding="utf-8")
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
