"""Goes on with the features of the network `chest` on films with TB and normal ones of hospitals that have both.

    python docs/experiments/pretrain_tb.py --data MANIFEST --features PRETRAINED.npz --sources rahman --out features.npz

Beside what stage b of pretrain.py learns, each film with TB is to have more evidence than each normal film of its own
source: a hospital's level cancels out, so that what is learned varies within it. A source that takes part can no longer
stand for a hospital never seen: train once without each, to judge on it. Start from a file of `pretrain.py`: the
features that ship have learned from shenzhen and rahman already.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from pretrain import Training, export, joined_over_lungs, loss_of, lung_weight, network
from pretrain_films import SOURCES, Batches, Films, Plan, films_of

from cxr_pipeline.data.manifest import read_manifest
from cxr_pipeline.models.backbones.chest import CHANNELS, load_features
from cxr_pipeline.models.backend import keras
from cxr_pipeline.models.store import bundle_of, find
from cxr_pipeline.models.training.checkpoints import Checkpoints
from cxr_pipeline.stages.segment import Segment

if TYPE_CHECKING:
    import keras as K

POSITIVE, NORMAL = "TB", "NORM"
OF_BOTH = 10  # films of a batch that are compared, of all sources and both classes together
BATCH = {"covid": 8, "findings": 7, "lesions": 7, "host_of_all": 8, "sick_host": 6, "children": 2}


def plan_for(sources: Sequence[str], size: int = 192) -> Plan:
    """What a batch is made of."""
    each = max(1, OF_BOTH // (2 * len(sources)))
    own = {f"{source} {label}": each for source in sources for label in (POSITIVE, NORMAL)}
    return Plan("tb", size, 1.2e-4, {**BATCH, **own}, end=1.1)


def pairs_of(plan: Plan) -> np.ndarray:
    """Which films of a batch are compared, (B, B) float32: 1 where one has TB and the other, of its source, not."""
    kinds = [kind.rpartition(" ") for kind, count in plan.batch.items() for _ in range(count)]
    return np.array(
        [[float(bool(a) and a == b and (x, y) == (POSITIVE, NORMAL)) for b, _, y in kinds] for a, _, x in kinds],
        np.float32,
    )


def with_evidence(model: K.Model) -> K.Model:
    """The network of stage b, and as a fourth output the film's evidence of TB (N, 1)."""
    evidence = model.get_layer("cells").output[..., :1]
    joined = joined_over_lungs(evidence, lung_weight(model.inputs[1]))
    return keras().Model(model.inputs, [*model.outputs, joined])


def start_from(model: K.Model, features: str) -> None:
    """Take over what a file of features holds; the evidence of single findings, which it lacks, starts small."""
    stored = {name: values.astype(np.float32) for name, values in load_features(features).items()}
    encoder, count = model.get_layer("encoder"), len(CHANNELS)
    encoder.set_weights([stored[f"encoder/{n}"] for n in range(len(encoder.weights))])
    model.get_layer("projection").set_weights([stored["projection/kernel"][None, None], stored["projection/bias"]])
    kernel, bias = model.get_layer("cells").get_weights()
    kernel[..., count:], bias[count:] = 0.3 * kernel[..., count:], -1
    kernel[..., :count], bias[:count] = stored["cells/kernel"], stored["cells/bias"]
    model.get_layer("cells").set_weights([kernel, bias])
    kernel, bias = model.get_layer("labels").get_weights()
    kernel[:, 3:] *= 0.3
    kernel[:, :3], bias[:3] = stored["context/kernel"][:, 2:], stored["context/bias"][2:]
    model.get_layer("labels").set_weights([kernel, bias])


def compared(labels: np.ndarray, pairs: np.ndarray) -> Callable[..., Any]:
    """The loss of stage b, and the logistic loss of the compared pairs, by evidence of TB and of any opacity."""
    k, usual = keras(), loss_of(labels)

    def loss(outputs: Sequence[Any], labels: Any, cells: Any) -> Any:
        total = usual(outputs[:3], labels, cells)
        for evidence in (outputs[3], outputs[2]):
            apart = evidence - k.ops.transpose(evidence)
            total += 0.5 * k.ops.sum(pairs * k.ops.softplus(-apart)) / pairs.sum()
        return total

    return loss


def train(films: Films, work: Path, plan: Plan, *, steps: int, seed: int, features: str) -> K.Model:
    """The network after training, with its averaged weights; a run that was stopped goes on from `work`.

    Raises:
        CxrError: a kind of film is lacking, or `work` holds a training with other settings.
    """
    keras().utils.set_random_seed(seed)
    model = with_evidence(network(plan, None))
    start_from(model, features)
    batches = Batches(films, plan, seed)
    training = Training(model, batches, steps, compared(batches.labels, pairs_of(plan)))
    checkpoints = Checkpoints(work / plan.name, repr((plan, steps, seed, features, [r["image"] for r in films.rows])))
    checkpoints.open()
    training.run(checkpoints)
    training.keep_average()
    return model


def main() -> None:
    """Make the crops, train, and write the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", required=True, help="hospitals with TB and normal films")
    parser.add_argument("--features", required=True, help="to start from: a file of pretrain.py, or 'chest'")
    parser.add_argument("--weights", default="tb", help="chain whose segmentation makes the lung crops")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--work", type=Path, help="checkpoints and crops; by default the name of --out with .work")
    parser.add_argument("--seed", type=int, default=3)
    given = parser.parse_args()
    work = given.work or given.out.with_name(given.out.name + ".work")
    segment = Segment.load(bundle_of(find(given.weights), "segment"))
    segment.refuse = False
    cv2.setNumThreads(1)
    sources = (*SOURCES, *given.sources)
    films = films_of(read_manifest(given.data), [segment], work / "crops", sources=sources)
    plan = plan_for(given.sources)
    export(train(films, work, plan, steps=given.steps, seed=given.seed, features=given.features), given.out)


if __name__ == "__main__":
    main()
