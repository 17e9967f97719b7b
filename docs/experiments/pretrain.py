"""Trains the features of the network `chest`: those that ship are models/weights/chest/features.npz.

    python docs/experiments/pretrain.py --data MANIFEST --out features.npz [--weights tb] [--steps 1200 900]

What is learned varies within a hospital: COVID-19, pneumonia and other findings of films, where boxes of tuberculosis
lie, and lesions pasted from one hospital's films into another's (`data.pasting`). Only films of the split `train` of
the sources below take part; shenzhen, rahman and montgomery never do. Stage a starts from ImageNet; stage b goes on at
a higher resolution and learns evidence that is joined over the lungs. A run that was stopped goes on where it was, from
what lies in `--work` (by default beside `--out`); lung crops are kept there too.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from pretrain_films import FINDING_NAMES, LABELS, STRIDE, Batches, Films, Plan, films_of

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.data.progress import track
from cxr_pipeline.models.backbones.chest import CHANNELS, CUT
from cxr_pipeline.models.backbones.encoder_weights import application, resolve
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.store import bundle_of, find
from cxr_pipeline.models.training.checkpoints import Checkpoint, Checkpoints, write_whole
from cxr_pipeline.stages.segment import Segment

if TYPE_CHECKING:
    import keras as K

LABEL_WEIGHTS = np.array([1.0, 0.5, 1.0] + [0.1] * len(FINDING_NAMES), np.float32)
CELL_WEIGHTS = (1.0, 0.6)  # lesions as tuberculosis makes them, and any opacity
KEEP_EVERY = 200  # steps between checkpoints
SETTLING = 60  # batches that BatchNorm sees before stage a

PLANS = (
    Plan("a", 160, 4e-4, {"covid": 18, "findings": 10, "lesions": 8, "host": 8, "children": 4}, end=2600 / 1200),
    Plan(
        *("b", 192, 2.5e-4),
        {"covid": 11, "findings": 9, "lesions": 8, "host_of_all": 9, "sick_host": 8, "children": 3},
    ),
)


def lung_weight(share: Any) -> Any:
    """How much each place counts in a mean over the lungs, (N, g, g, 1), from its share of lung."""
    return share / (keras().ops.mean(share, axis=(1, 2), keepdims=True) + 1e-3)


def joined_over_lungs(evidence: Any, weight: Any) -> Any:
    """A film's evidence (N, C) from that of its places (N, g, g, C): the log of the weighted mean of their exp."""
    k = keras()
    top = k.ops.max(evidence, axis=(1, 2), keepdims=True)
    return k.ops.log(k.ops.mean(k.ops.exp(evidence - top) * weight, axis=(1, 2)) + 1e-6) + top[:, 0, 0]


def network(plan: Plan, encoder_weights: str | None) -> K.Model:
    """The network of a stage: from crops and lung shares to labels, cells, and in stage b the film's evidence."""
    k = keras()
    whole = application("MobileNetV2", encoder_weights, plan.size, 1.0)
    encoder = k.Model(whole.input, whole.get_layer(CUT).output, name="encoder")
    crops, share = k.Input((plan.size, plan.size, 1)), k.Input((plan.size // STRIDE, plan.size // STRIDE, 1))
    seen = k.layers.Conv2D(256, 1, activation="relu", name="projection")(encoder(k.layers.Concatenate()([crops] * 3)))
    weight = lung_weight(share)
    mean = k.layers.GlobalAveragePooling2D()(seen * weight)
    if plan.name == "a":
        cells = k.layers.Conv2D(1, 1, name="cells")(seen)
        top = k.layers.GlobalMaxPooling2D()(seen * k.ops.cast(share > 0.3, seen.dtype))
        both = k.layers.Dropout(0.3)(k.layers.Concatenate()([mean, top]))
        return k.Model([crops, share], [k.layers.Dense(LABELS, name="labels")(both), cells])
    evidence = k.layers.Conv2D(len(CELL_WEIGHTS) + LABELS, 1, name="cells")(seen)
    joined = joined_over_lungs(evidence, weight)
    context = k.layers.Dense(LABELS, name="labels")(k.layers.Dropout(0.3)(mean))
    return k.Model([crops, share], [context + joined[:, 2:], evidence[..., :2], joined[:, 1:2]])


def go_on_from(model: K.Model, before: K.Model) -> None:
    """Take over into the network of stage b what stage a has learned."""
    for name in ("encoder", "projection"):
        model.get_layer(name).set_weights(before.get_layer(name).get_weights())
    kernel, bias = model.get_layer("cells").get_weights()
    learned, offset = before.get_layer("cells").get_weights()
    kernel, bias = 0.3 * kernel, np.full_like(bias, -1)  # evidence of labels starts small
    kernel[..., :2], bias[:2] = learned, offset
    model.get_layer("cells").set_weights([kernel, bias])
    kernel, bias = before.get_layer("labels").get_weights()
    model.get_layer("labels").set_weights([kernel[:256], bias])  # of the mean, not of the maximum


def loss_of(labels: np.ndarray) -> Callable[..., Any]:
    """The loss of a batch, of the network's outputs and the targets; rare labels (of N films, (N, 17)) weigh more."""
    k = keras()
    present, absent = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    rare = np.sqrt(np.clip(absent / np.maximum(present, 1), 0.2, 25)).astype(np.float32)
    rare[:2] = 1

    def entropy(target: Any, smooth: float, output: Any) -> Any:
        smoothed = k.ops.maximum(target, 0) * (1 - 2 * smooth) + smooth
        return k.ops.binary_crossentropy(smoothed, output, from_logits=True)

    def loss(outputs: Sequence[Any], labels: Any, cells: Any) -> Any:
        known = k.ops.cast(labels >= 0, "float32") * LABEL_WEIGHTS * k.ops.where(labels > 0, rare, 1.0)
        total = k.ops.sum(known * entropy(labels, 0.02, outputs[0])) / (k.ops.sum(known) + 1e-6)
        channels = outputs[1].shape[-1]
        cells = cells[..., :channels]
        each = entropy(cells, 0.02, outputs[1])
        for value in (0, 1):  # places with a lesion count as much as those without
            chosen = k.ops.cast(cells == value, "float32")
            mean = k.ops.sum(chosen * each, axis=(0, 1, 2)) / (k.ops.sum(chosen, axis=(0, 1, 2)) + 1)
            total += 0.5 * k.ops.sum(mean * np.array(CELL_WEIGHTS[:channels], np.float32))
        if len(outputs) > 2:  # any opacity: whether the film as a whole is abnormal
            abnormal = k.ops.max(labels[:, :3], axis=1, keepdims=True)
            known = k.ops.cast(abnormal >= 0, "float32")
            total += 0.25 * k.ops.sum(known * entropy(abnormal, 0.05, outputs[2])) / (k.ops.sum(known) + 1e-6)
        return total

    return loss


class Training:
    """The training of one stage, with a running average of the network's weights."""

    def __init__(self, model: K.Model, batches: Batches, steps: int, loss_on: Callable[..., Any] | None = None) -> None:
        import tensorflow as tf

        self.model, self.batches, self.steps = model, batches, steps
        self.optimizer = keras().optimizers.AdamW(1e-9, weight_decay=1e-4, clipnorm=1.0)
        self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.optimizer.build(model.trainable_variables)
        self.average = [tf.Variable(weight) for weight in model.weights]
        loss_on = loss_on or loss_of(batches.labels)

        @tf.function
        def step(crops: Any, share: Any, labels: Any, cells: Any, decay: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_on(model([crops, share], training=True), labels, cells)
            gradients = tape.gradient(loss, model.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            for mean, weight in zip(self.average, model.weights, strict=True):
                mean.assign(mean * decay + tf.cast(weight, mean.dtype) * (1 - decay))
            return loss

        self._step = step

    def run(self, checkpoints: Checkpoints) -> None:
        """Train to the end, from the newest checkpoint on where there is one."""
        start = self._restore(checkpoints.newest())
        plan, losses = self.batches.plan, []
        for number, batch in enumerate(
            track(self.batches.ahead(start, self.steps), f"stage {plan.name}", self.steps - start), start
        ):
            cosine = 0.5 * (1 + np.cos(np.pi * number / (self.steps * plan.end)))
            self.optimizer.learning_rate = plan.rate * min(1, (number + 1) / 150) * cosine
            decay = np.array(min(0.998, (number + 1) / (number + 20)), np.float32)  # a float would compile each step
            losses.append(float(self._step(*batch, decay)))
            if (number + 1) % KEEP_EVERY == 0 or number + 1 == self.steps:
                print(f"stage {plan.name}, step {number + 1}: loss {np.mean(losses):.3f}", flush=True)
                losses = []
                checkpoints.keep(number + 1, self._state(number + 1))

    def settle(self) -> None:
        """Let the moments of BatchNorm, which are those of photos, move towards chest films before training."""
        encoder = self.model.get_layer("encoder")
        for batch in self.batches.ahead(10**6, 10**6 + min(SETTLING, self.steps)):
            encoder(np.repeat(batch.crops, 3, axis=-1), training=True)
        for mean, weight in zip(self.average, self.model.weights, strict=True):
            mean.assign(weight)

    def keep_average(self, only: str | None = None) -> None:
        """Put the average into the network, or into one layer of it."""
        wanted = {id(weight) for weight in (self.model.get_layer(only) if only else self.model).weights}
        for mean, weight in zip(self.average, self.model.weights, strict=True):
            if id(weight) in wanted:
                weight.assign(mean)

    def _variables(self) -> dict[str, list[Any]]:
        return {"model": self.model.variables, "average": self.average, "optimizer": self.optimizer.variables}

    def _state(self, step: int) -> Checkpoint:
        arrays = {name: [np.asarray(v) for v in variables] for name, variables in self._variables().items()}
        return Checkpoint({"step": step}, arrays)

    def _restore(self, checkpoint: Checkpoint | None) -> int:
        """Steps that were made already."""
        if checkpoint is None:
            return 0
        for name, variables in self._variables().items():
            for variable, array in zip(variables, checkpoint.arrays[name], strict=True):
                variable.assign(array)
        return int(checkpoint.state["step"])


def train(
    films: Films,
    work: Path,
    *,
    steps: Sequence[int],
    seed: int,
    encoder_weights: str | None,
    plans: Sequence[Plan] = PLANS,
) -> K.Model:
    """Both stages; returns the network of stage b with its averaged weights.

    Raises:
        CxrError: a kind of film is lacking, or `work` holds a training with other settings.
    """
    before: K.Model | None = None
    for number, (plan, count) in enumerate(zip(plans, steps, strict=True)):
        keras().utils.set_random_seed(seed)
        model = network(plan, None if before is not None else encoder_weights)
        if before is not None:
            go_on_from(model, before)
        training = Training(model, Batches(films, plan, seed + number), count)
        images = [row["image"] for row in films.rows]
        checkpoints = Checkpoints(work / plan.name, repr((plan, list(steps), seed, encoder_weights, images)))
        checkpoints.open()
        if before is None and checkpoints.newest() is None:
            training.settle()
        training.run(checkpoints)
        training.keep_average(only="encoder" if before is None else None)
        before = model
    return model


def export(model: K.Model, out: Path) -> None:
    """Write what `models.backbones.chest` reads: the encoder and three layers behind it, float16.

    The evidence of its five channels is that of the cells and of the first three labels; context is known of labels.
    """
    cells, offsets = model.get_layer("cells").get_weights()
    kernel, bias = model.get_layer("labels").get_weights()
    count, places = len(CHANNELS), len(CELL_WEIGHTS)
    context = np.zeros((kernel.shape[0], count)), np.zeros(count)
    context[0][:, places:], context[1][places:] = kernel[:, : count - places], bias[: count - places]
    projection = model.get_layer("projection").get_weights()
    arrays = {f"encoder/{n}": values for n, values in enumerate(model.get_layer("encoder").get_weights())}
    arrays |= {"projection/kernel": projection[0][0, 0], "projection/bias": projection[1]}
    arrays |= {"cells/kernel": cells[0, 0, :, :count], "cells/bias": offsets[:count]}
    arrays |= {"context/kernel": context[0], "context/bias": context[1]}
    halves = {name: np.asarray(values, np.float16) for name, values in arrays.items()}
    endless = [name for name, values in halves.items() if not np.isfinite(values).all()]
    if endless:
        raise CxrError(f"{', '.join(endless[:5])} no longer fit into float16: the training went wrong. Start it again")
    memory = io.BytesIO()
    np.savez_compressed(memory, **halves)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, memory.getvalue())


def main() -> None:
    """Make the crops, train, and write the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", default="tb", help="chain whose segmentation makes the lung crops")
    parser.add_argument("--steps", type=int, nargs=2, default=(1200, 900), metavar=("A", "B"))
    parser.add_argument(
        "--encoder-weights", default="imagenet", help="of MobileNetV2 1.0; a .weights.h5 file or 'imagenet'"
    )
    parser.add_argument("--work", type=Path, help="checkpoints and crops; by default the name of --out with .work")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    work = given.work or given.out.with_name(given.out.name + ".work")
    data = read_manifest(given.data)
    start = resolve(given.encoder_weights, "MobileNetV2", 1.0, data.root)
    segment = Segment.load(bundle_of(find(given.weights), "segment"))
    segment.refuse = False  # only what is no frontal chest film is left out; see UNUSABLE
    cv2.setNumThreads(1)
    films = films_of(data, [segment], work / "crops")
    export(train(films, work, steps=given.steps, seed=given.seed, encoder_weights=start), given.out)


if __name__ == "__main__":
    main()
