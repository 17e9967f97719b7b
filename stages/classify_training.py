"""How the classifier is trained: its steps, one method each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.data.augment import classify_augmentation
from cxr_pipeline.data.batches import Batches, Encode
from cxr_pipeline.data.files import whole_file
from cxr_pipeline.data.progress import progress_bar
from cxr_pipeline.models.backend import keras, replicas
from cxr_pipeline.models.classifier import (
    build_classifier,
    free_encoder,
    has_encoder,
    head_with_prior,
    network_settings,
    with_prior,
)
from cxr_pipeline.models.export import save_bundle
from cxr_pipeline.models.gradcam import has_linear_head
from cxr_pipeline.models.pooling import ZONES, find_pooling
from cxr_pipeline.models.store import NO_LICENCE, open_network, write_card
from cxr_pipeline.models.training.errors import TrainingError
from cxr_pipeline.models.training.features import FeatureCache
from cxr_pipeline.models.training.fit import (
    PHASE_SETTINGS,
    Objective,
    Phase,
    Training,
    judged,
    set_batchnorm_momentum,
)
from cxr_pipeline.models.training.log import summary, training_bar
from cxr_pipeline.models.training.probe import Lesions, solve_head
from cxr_pipeline.models.training.two_steps import TwoSteps, solve_in_two_steps
from cxr_pipeline.stages.classify_films import Crops, crops_of, parts_of
from cxr_pipeline.stages.classify_tasks import OneClass, SeveralLabels, Task
from cxr_pipeline.stages.crops import VERSION, encoder_input

if TYPE_CHECKING:
    from cxr_pipeline.configs.schema import Config
    from cxr_pipeline.data.manifest import Manifest
    from cxr_pipeline.stages.base import Stage

NAME = "classify"
LEFT_OUT = "left_out.npy"  # logits of train's films by heads that never saw their source
_MOST = 300  # films of a source and class that calibration takes
MACHINE = ("cache", "distribute", "precision")  # settings of how a training runs, not of what it learns


def _as_it_is(features: np.ndarray, _: np.ndarray) -> np.ndarray:
    return features


class ClassifyTraining:
    """One training of the classifier; `run` takes its steps in order.

    Args:
        data: the manifest, with splits. out: the stage's folder. chain: the loaded stages before this one.
    """

    def __init__(self, data: Manifest, config: Config, out: Path, chain: Sequence[Stage]) -> None:
        self.data, self.config, self.out, self.chain = data, config, out, chain
        self.settings = config.classify
        self.cache = Path(config.cache or out / "cache")

    def run(self) -> Path:
        """Train, calibrate, and write the bundle; returns its folder.

        Raises:
            TrainingError: films are missing, the folder is of another training, the disk is full, or the loss is no
                longer finite.
        """
        self.prepare()
        self.build()
        history = self.fine_tune()
        content = save_bundle(self.model, self.out)
        self.write_card(history, content)
        return self.out

    def prepare(self) -> None:
        """The films as crops, and what they are trained for."""
        self.parts = parts_of(self.data, self.config)
        self.crops = {split: crops_of(part, self.config, self.chain, self.cache) for split, part in self.parts.items()}
        for split, part in self.parts.items():
            if not self.crops[split].rows:
                raise TrainingError(
                    f"lungs were found on none of the {len(part)} films of split {split!r}: there is nothing to learn "
                    "from. Look at the films, or take other lungs, such as --set segment.weights=tb"
                )
        self.task: Task
        if self.config.multi_label:
            task = SeveralLabels(self.config, self.crops["train"].targets)
            task.plot(self.out / "labels.png")
            self.task = task
        else:
            self.task = OneClass(self.config, len(set(self.parts["train"].table["source"])))
        augmentation = classify_augmentation if self.settings.fit.augment else None
        self.train = self._batches(self.crops["train"], augmentation=augmentation, shuffle=True)
        self.val = self._batches(self.crops["val"])

    def build(self) -> None:
        """The network, with its encoder's weights to start from."""
        settings = self.settings
        keras().utils.set_random_seed(self.config.seed)
        self.model = build_classifier(
            settings.network,
            settings.size,
            2 if settings.lungs == "channel" else 1,
            len(self.config.classes),
            pool=settings.pool,
            nearby=self.data.root,
            multi_label=self.config.multi_label,
            **network_settings(settings),
        )
        self.linear = has_linear_head(self.model)  # then the last layer is solved, and training starts from there
        self.pretrained = settings.encoder_weights is not None and has_encoder(self.model)
        if not self.pretrained:
            set_batchnorm_momentum(self.model)

    def start(self) -> dict[str, float]:
        """Solve the last layer on the encoder's features as they are; returns the loss."""
        if self.settings.head == "two_steps":
            return self._start_in_two_steps()
        with progress_bar(f"{NAME} head", None) as update:
            loss = solve_head(
                self.model,
                self.train,
                self._features,
                passes=self.settings.head_passes,
                l2=self.settings.head_l2,
                label_smoothing=self.settings.label_smoothing,
                lesions=self._lesions(),
                several=self.task.several,
                on_batch=lambda done, total: update(done, f"{NAME} head", total),
            )
        return {"loss": loss}

    def _start_in_two_steps(self) -> dict[str, float]:
        """Solve the last layer in two steps, and keep the answers to films of sources left out, for calibration."""
        task = TwoSteps(
            self.config.classes, str(self.config.normal), np.array([r["source"] for r in self.crops["train"].rows])
        )
        with progress_bar(f"{NAME} head", None) as update:
            loss, left_out = solve_in_two_steps(
                self.model,
                self._batches(self.crops["train"]),
                self._features,
                task,
                on_batch=lambda done, total: update(done, f"{NAME} head", total),
            )
        with whole_file(self.out / LEFT_OUT) as file:  # a training that goes on calibrates on them too
            np.save(file, left_out)
        return {"loss": loss}

    def begin(self) -> dict[str, float]:
        """`start`, and the figures on val beside its loss.

        Val's features are kept as those of train are: another setting of the last layer sends no film through the
        encoder.
        """
        row, val = self.start(), self.crops["val"]
        with progress_bar(f"{NAME} val", None) as update:
            found, film = self._features.features(
                self.model, self.val, 0, lambda done, total: update(done, f"{NAME} val", total)
            )
        kept = np.empty((len(val.rows), found.shape[1]), np.float32)
        kept[film] = found
        head = head_with_prior(self.model, self.config.multi_label)
        head.compile(loss=self.task.loss(), weighted_metrics=[self.task.metric()], jit_compile=False)
        return row | judged(head, self._batches(val._replace(crops=kept, lungs=kept), encode=_as_it_is))

    def fine_tune(self) -> list[dict[str, Any]]:
        """Train with the encoder free, from the solved last layer on; the model is left as it is to be stored.

        Returns:
            The history: one dict per epoch.
        """
        settings = self.settings
        fit = settings.fit.model_dump(include=PHASE_SETTINGS)
        phase = Phase("fine", **fit, prepare=free_encoder(batchnorm=not self.pretrained))
        objective = Objective(self.task.loss(), lambda: [self.task.metric()], "val_loss", "min")
        with training_bar(NAME, [phase]) as on_batch:
            training = Training(
                with_prior(self.model, self.config.multi_label),
                objective,
                self.train,
                self.val,
                self.out,
                phases=[phase],
                settings=self._fingerprint(),
                start=self.begin if self.linear and settings.head_passes else None,
                keep_start=bool(self.linear and settings.keep_start),
                on_batch=on_batch,
            )
            history = training.run()
        if self.linear and settings.resolve_head and settings.fit.epochs:
            self.start()
        if self.linear and settings.keep_start:
            training.average_with_start(settings.keep_start)
        return history

    def write_card(self, history: list[dict[str, Any]], content: dict[str, Any]) -> None:
        """Calibrate on val what the stored network answers, and write the card.

        Args:
            history: of the training. content: hashes of the stored network, see `save_bundle`.
        """
        config, settings = self.config, self.settings
        decisions = {
            "classes": config.classes,
            "positive": config.positive,
            "normal": config.normal,
            **({"class_of": config.class_of} if config.class_of else {}),
            **settings.model_dump(include={"size", "lungs", "pool"}),
            "temperature": 1.0,
            **self.task.decisions(),
        }
        decisions |= self.calibrate(decisions["offsets"])
        trained = summary(self.out, self.parts, settings.model_dump(mode="json"), history, self.data)
        card = {"stage": NAME, "decisions": decisions, "licence": NO_LICENCE, "content": content, "training": trained}
        write_card(self.out, card)

    def calibrate(self, offsets: dict[str, float]) -> dict[str, Any]:
        """What val's films decide: temperature and thresholds.

        Args:
            offsets: of each class, added to its logit divided by the temperature.
        """
        if self.settings.head == "two_steps":
            return self._calibrate_on_left_out(offsets)
        network, val = open_network(self.out), self.crops["val"]
        pairs = list(zip(val.crops, val.lungs, strict=True))
        batches = (np.stack([self._encode(*pair) for pair in pairs[i : i + 32]]) for i in range(0, len(pairs), 32))
        logits = np.concatenate([network(batch)["logits"] for batch in batches])
        targets = self.crops["train"].targets
        learned = (targets == 1).any(axis=0) & (targets == 0).any(axis=0)
        added = np.array([offsets.get(name, 0.0) for name in self.config.classes])
        return self.task.calibrated(logits, val.targets, val.rows, added, learned)

    def _calibrate_on_left_out(self, offsets: dict[str, float]) -> dict[str, Any]:
        """As `calibrate`, on the films of train, each as answered by a head that never saw its source.

        A source with thousands of films of a class counts as one with `_MOST`: it is hospitals that are to be many.
        """
        logits, train = np.load(self.out / LEFT_OUT), self.crops["train"]
        known = np.isfinite(logits).all(axis=1)
        groups = np.array([f"{row['source']}|{row['label']}" for row in train.rows])
        draw = np.random.default_rng(self.config.seed)
        kept = [draw.permutation(np.nonzero(known & (groups == name))[0])[:_MOST] for name in sorted(set(groups))]
        chosen = np.sort(np.concatenate(kept))
        if not len(chosen):
            raise TrainingError(
                "a head in two steps is calibrated on films of sources left out in turn, and no source could be left "
                "out: each class must have films in two sources. Set classify.head to solved"
            )
        added = np.array([offsets.get(name, 0.0) for name in self.config.classes])
        learned = np.asarray(train.targets.astype(bool).any(axis=0))
        rows = [train.rows[i] for i in chosen]
        return self.task.calibrated(logits[chosen], train.targets[chosen], rows, added, learned)

    @property
    def _features(self) -> FeatureCache:
        key = [VERSION, self.settings.lungs, self.settings.pool]
        return FeatureCache(self.cache / "features", json.dumps(key))

    @property
    def _encode(self) -> partial[np.ndarray]:
        return partial(encoder_input, mode=self.settings.lungs, pool=self.settings.pool)

    def _batches(self, films: Crops, encode: Encode | None = None, **options: Any) -> Batches:
        weights, priors = self.task.beside(films.rows, films.targets)
        return Batches(
            films.crops,
            films.lungs,
            films.targets,
            encode or self._encode,
            batch_size=self.settings.fit.batch_size,
            seed=self.config.seed,
            replicas=replicas(),
            weights=weights,
            beside={"prior": priors},
            **options,
        )

    def _lesions(self) -> Lesions | None:
        """Where lesions of the training's films lie, for a network that looks at each zone apart."""
        config, zones, weight = self.config, self.crops["train"].zones, self.settings.lesion_weight
        by_zone = find_pooling(self.settings.pool).zones == ZONES
        if not (by_zone and config.normal and config.positive and weight and np.isfinite(zones).any()):
            return None
        positive, normal = (config.classes.index(name) for name in (config.positive, config.normal))
        return Lesions(zones, positive, normal, weight)

    def _fingerprint(self) -> str:
        """All that the training depends on, as text."""
        settings = self.config.model_dump_json(exclude={"name", "segment", "localize", *MACHINE})
        before = [stage.fingerprint for stage in self.chain]
        return " ".join([settings, self.data.content_hash(labels=True), *before])
