"""The weights store: bundles found by name or path, opened without TensorFlow, checked by hash.

A chain of weights is a folder with one bundle a stage::

    tb/
      segment/    model.keras  model.onnx  card.json  quality.npz
      classify/   model.keras  model.onnx  card.json
      localize/   card.json                              (decisions only: it has no network of its own)

`card.json` holds `decisions` (all that running the stage obeys: classes, input size, thresholds, temperature),
`training` (sources, counts, split hash, settings), `figures` (measured, with intervals) and `licence`.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import write_text
from cxr_pipeline.models import runtimes
from cxr_pipeline.models.late import collecting
from cxr_pipeline.models.runtimes import KERAS_FILE, SERVING_FILE, Network
from cxr_pipeline.models.runtimes.keras import load_keras

__all__ = [  # what stands elsewhere in models/, too
    "CARD_FILE",
    "KERAS_FILE",
    "LICENCE",
    "NO_LICENCE",
    "QUALITY_FILE",
    "RUNTIMES",
    "SERVING_FILE",
    "SHIPPED",
    "Network",
    "WeightsError",
    "bundle_of",
    "find",
    "fingerprint",
    "load_keras",
    "open_network",
    "read_card",
    "shipped",
    "write_card",
    "write_text",
]

SHIPPED = Path(__file__).parent / "weights"
CARD_FILE = "card.json"
QUALITY_FILE = "quality.npz"  # of the segmentation: what `stages.quality` compares films with
NO_LICENCE = "none claimed: whoever trained these weights says on what terms others may use them"
LICENCE = "MIT for the weights' files; the training images keep their own terms, see docs/model-card.md"

# What can run a network, and the file of a bundle that it takes.
RUNTIMES = {name: runtime.file for name, runtime in runtimes.RUNTIMES.items()}


class WeightsError(CxrError, ValueError):
    """Weights that are missing, incomplete or damaged."""


def shipped() -> list[str]:
    """Names of the chains that come with the package.

    A folder without a stage's bundle, such as that of the features `chest`, is no chain.
    """
    return sorted({card.parent.parent.name for card in SHIPPED.glob(f"*/*/{CARD_FILE}")})


def find(weights: str | Path) -> Path:
    """The folder of a chain, by the name of a shipped one or by path.

    Raises:
        WeightsError: neither exists; names what does.
    """
    named = SHIPPED / str(weights)
    folder = named if str(weights) in shipped() else Path(weights)
    if not folder.is_dir():
        raise WeightsError(
            f"no weights {str(weights)!r}. Give one of the shipped names ({', '.join(shipped()) or 'none'}) "
            "or the folder that `pipeline train --out` made"
        )
    return folder


def bundle_of(chain: Path, stage: str) -> Path:
    """The bundle of one stage in a chain's folder.

    Raises:
        WeightsError: the stage has not been trained there.
    """
    folder = chain / stage
    if not (folder / CARD_FILE).is_file():
        raise WeightsError(
            f"{chain} holds no trained {stage!r} stage. Train it: pipeline train --stage {stage} --out {chain}"
        )
    return folder


def read_card(bundle: Path) -> dict[str, Any]:
    """`card.json` of a bundle.

    Raises:
        WeightsError: it is missing or not JSON.
    """
    try:
        card = json.loads((bundle / CARD_FILE).read_text(encoding="utf-8"))
        card["decisions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{bundle / CARD_FILE} cannot be read as a card ({error}). Train the stage again") from error
    return card


def write_card(bundle: Path, card: dict[str, Any]) -> None:
    """Write `card.json`, whole or not at all."""
    write_text(bundle / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def fingerprint(bundle: Path) -> str:
    """16 hex digits over all that decides what the stage answers: network, quality file, the card's decisions.

    Equal trainings have equal fingerprints: of a file that its card knows, what the network computes counts, and not
    its bytes. Any other file counts by its bytes.
    """
    card = read_card(bundle)
    digest = hashlib.sha256(json.dumps(card["decisions"], sort_keys=True).encode())
    content = card.get("content") or {}
    for path in (bundle / SERVING_FILE, bundle / QUALITY_FILE):
        if path.is_file():
            stat = path.stat()
            found = _file_hash(str(path), stat.st_size, stat.st_mtime_ns)
            known = content.get("files", {}).get(path.name) == found
            digest.update((content["network"] if known else found).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=32)
def _file_hash(path: str, size: int, mtime: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def open_network(bundle: Path, runtime: str = "onnx", threads: int | None = None) -> Network:
    """The bundle's network, ready to call; within `models.late.late_networks` one that opens later.

    Args:
        bundle: folder with the network's files.
        runtime: "keras" runs the Keras file, all others the serving file without TensorFlow.
        threads: cores for ONNX Runtime and OpenVINO; None lets them take all.

    Raises:
        WeightsError: the file is missing or damaged, or the runtime is unknown or not installed.
        models.runtimes.RuntimeUnusableError: the runtime cannot work on this machine.
    """
    if runtime not in RUNTIMES:
        raise WeightsError(f"runtime must be one of {', '.join(RUNTIMES)}. Received: {runtime!r}")
    path = bundle / RUNTIMES[runtime]
    if not path.is_file():
        raise WeightsError(f"{path} is missing. Train the stage again, or use the other runtime")
    waiting = collecting()
    if waiting is None or not runtimes.RUNTIMES[runtime].late:
        return _opened(path, runtime, threads)
    return waiting.add(lambda: _opened(path, runtime, waiting.threads if threads is None else threads))


def _opened(path: Path, runtime: str, threads: int | None) -> Network:
    try:
        return runtimes.RUNTIMES[runtime].open_file(path, threads)
    except ModuleNotFoundError as error:
        needed = runtimes.RUNTIMES[runtime]
        named = f"cxr-pipeline[{needed.extra}]" if needed.extra else needed.package
        raise WeightsError(
            f"the runtime {runtime!r} is not installed ({error}). Install it: pip install '{named}'"
        ) from error
    except runtimes.RuntimeUnusableError:
        raise  # the file may well be whole
    except Exception as error:
        raise WeightsError(f"{path} cannot be loaded ({type(error).__name__}: {error}). Is the file whole?") from error
