"""What the features of the network `chest` learn from: films, their labels, and the batches drawn of them.

Part of pretrain.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.cache import kept_arrays
from cxr_pipeline.data.geometry import Box, Frame
from cxr_pipeline.data.manifest import Manifest
from cxr_pipeline.data.pasting import Donor, lesion_map, paste
from cxr_pipeline.data.variation import varied
from cxr_pipeline.stages.base import Record, Stage
from cxr_pipeline.stages.crops import VERSION, lung_crop, rounded, soft_lungs
from cxr_pipeline.stages.films import stream

COVID, CHILDREN, FINDINGS, LESIONS = "covidradiography", "kermany", "nih", "tbx11k"
SOURCES = (COVID, CHILDREN, FINDINGS, LESIONS, "jsrt", "ieee8023")
NORMAL, OTHER = "NORM", "NTB"
# What a film as a whole is asked: COVID-19, pneumonia of children, any finding, and each of these.
FINDING_NAMES = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
LABELS = 3 + len(FINDING_NAMES)
UNKNOWN = -1.0

CROP = 256  # side of the kept crops
STRIDE = 16  # of the encoder's map
MOST_BOXES = 16
UNUSABLE = {"no_chest", "no_lungs", "turned", "inverted", "lateral"}


@dataclass(frozen=True)
class Plan:
    """How a stage trains.

    Attributes:
        size: side of the crops. rate: highest learning rate.
        batch: films of each kind in a batch; see `pools_of`.
        end: steps that the cosine of the learning rate is planned over, as a multiple of those that are made.
    """

    name: str
    size: int
    rate: float
    batch: dict[str, int]
    end: float = 1.0


class Films(NamedTuple):
    """What is trained on.

    Attributes:
        crops: (N, S, S) uint8. lungs: (N, S, S) uint8, 0 or 1.
        boxes: (N, 16, 4) uint8, first and last column and row (x0, y0, x1, y1) of lesions; zeros where there is none.
        rows: the films' rows of the manifest.
    """

    crops: np.ndarray
    lungs: np.ndarray
    boxes: np.ndarray
    rows: list[dict[str, Any]]

    def boxes_of(self, film: int) -> np.ndarray:
        """Boxes (n, 4) int of one film: x0, y0, x1, y1, the last two beside the box."""
        boxes = self.boxes[film].astype(int)
        return boxes[boxes.any(axis=1)] + [0, 0, 1, 1]


def films_of(
    data: Manifest, chain: Sequence[Stage], folder: Path, size: int = CROP, sources: Sequence[str] = SOURCES
) -> Films:
    """The training films of `sources` after the stages of `chain`, kept in `folder`."""
    chosen = data.select(split="train", source=sources)
    table = chosen.table.to_dict("records")

    def lesions_of(row: dict[str, Any]) -> list[Box]:
        return [box for _, box in data.boxes_of(row["image"])] if row["source"] == LESIONS else []

    def rows() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for number, (row, record) in enumerate(stream(chosen, chain, description="lung crops")):
            if _usable(record):
                crop, lungs, frame = lung_crop(record, size)
                yield number, {"crop": rounded(crop), "lungs": lungs, "boxes": _on_grid(lesions_of(row), frame)}

    films = [(row["image"], [tuple(box) for box in lesions_of(row)]) for row in table]
    key = ["pretrain", VERSION, size, [stage.fingerprint for stage in chain], films, str(data.root)]
    shapes = {"crop": (size, size), "lungs": (size, size), "boxes": (MOST_BOXES, 4)}
    arrays, numbers = kept_arrays(folder, key, len(chosen), shapes, rows)
    return Films(arrays["crop"], arrays["lungs"], arrays["boxes"], [table[number] for number in numbers])


def _usable(record: Record) -> bool:
    codes = {text.split(":")[0] for text in record.extra.get("warnings", ())}
    return record.ok and record.lung_box is not None and not codes & UNUSABLE


def _on_grid(boxes: Sequence[Box], frame: Frame) -> np.ndarray:
    """Boxes in native pixels as (16, 4) uint8 on the grid, cut to it; those of which hardly anything is left go."""
    size, kept = frame.grid[0], np.zeros((MOST_BOXES, 4), np.uint8)
    parts = [frame.box_to_grid(box).intersect(Box(0, 0, size, size)) for box in boxes]
    large = [part.rounded() for part in parts if min(part.w, part.h) > size / 64]
    for number, part in enumerate(large[:MOST_BOXES]):
        right, bottom = min(part.x + part.w, size) - 1, min(part.y + part.h, size) - 1
        kept[number] = part.x, part.y, right, bottom
    return kept


def labels_of(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """What films as a whole are labelled, (N, 17) float32: 1, 0, or -1 where a source says nothing of it."""
    labels = np.full((len(rows), LABELS), UNKNOWN, np.float32)
    for number, row in enumerate(rows):
        is_other = float(row["label"] == OTHER)
        if row["source"] == COVID:
            labels[number, 0] = is_other
        elif row["source"] == CHILDREN:
            labels[number, 1] = is_other
        elif row["source"] == FINDINGS:
            found = {name.strip().replace(" ", "_") for name in row["findings"].split("|")}
            labels[number, 2:] = [is_other, *(float(name in found) for name in FINDING_NAMES)]
    return labels


Pool = list[tuple[float, list[int]]]  # shares of a kind's films, and the films to draw each from

_NO_FILMS: Pool = [(1.0, [])]


def pools_of(films: Films) -> dict[str, Pool]:
    """The films of each kind of a batch: with what share they are drawn from which. "SOURCE LABEL" is a kind too."""

    def those(source: str, label: str | None = None) -> list[int]:
        pairs = enumerate(films.rows)
        return [n for n, row in pairs if row["source"] == source and label in (None, row["label"])]

    hosts = those(COVID, NORMAL) + 2 * those(FINDINGS, NORMAL)
    own = sorted({(row["source"], row["label"]) for row in films.rows})
    return {
        **{f"{source} {label}": [(1.0, those(source, label))] for source, label in own},
        "covid": [(0.45, those(COVID, OTHER)), (0.55, those(COVID, NORMAL))],
        "children": [(0.5, those(CHILDREN, OTHER)), (0.5, those(CHILDREN, NORMAL))],
        "findings": [(1.0, those(FINDINGS))],
        "lesions": [(1.0, [n for n in those(LESIONS) if len(films.boxes_of(n))])],
        "host": [(1.0, hosts)],
        "host_of_all": [(1.0, hosts + 6 * those("jsrt", NORMAL))],
        "sick_host": [(1.0, those(COVID, OTHER) + 3 * those(FINDINGS, OTHER) + 2 * those("ieee8023", OTHER))],
    }


class Batch(NamedTuple):
    """Inputs and targets.

    Attributes:
        crops: (B, size, size, 1) float32 in [-1, 1].
        share: (B, g, g, 1) float32, how much of each place is lung.
        labels: (B, 17) float32, 1, 0, or -1 for unknown.
        cells: (B, g, g, 2) float32, whether a place has a lesion as of tuberculosis, and any opacity; the same values.
    """

    crops: np.ndarray
    share: np.ndarray
    labels: np.ndarray
    cells: np.ndarray


class Batches:
    """Batches of one stage, each drawn from (seed, number) alone: a training that goes on sees what it would have."""

    def __init__(self, films: Films, plan: Plan, seed: int) -> None:
        self.films, self.plan, self.seed = films, plan, seed
        self.labels, self.pools = labels_of(films.rows), pools_of(films)
        needed = {*plan.batch, "lesions"}
        empty = [kind for kind in sorted(needed) if not all(numbers for _, numbers in self.pools.get(kind, _NO_FILMS))]
        if empty:
            raise CxrError(
                f"no usable film, or none of one of its labels, for {', '.join(empty)}. Needed are films of split "
                f"'train' of the sources {', '.join(SOURCES)}, labelled {NORMAL} or {OTHER}, with boxes of {LESIONS}"
            )

    def __getitem__(self, number: int) -> Batch:
        draw = np.random.default_rng((self.seed, number))
        kinds = [kind for kind, count in self.plan.batch.items() for _ in range(count)]
        return Batch(*map(np.stack, zip(*(self._film(kind, draw) for kind in kinds), strict=True)))

    def ahead(self, start: int, end: int) -> Iterator[Batch]:
        """Batches `start` to `end` - 1, made by two threads while the network learns."""
        with ThreadPoolExecutor(2) as pool:
            waiting = deque(pool.submit(self.__getitem__, n) for n in range(start, min(start + 4, end)))
            for number in range(start, end):
                batch = waiting.popleft().result()
                if number + 4 < end:
                    waiting.append(pool.submit(self.__getitem__, number + 4))
                yield batch

    def _donor(self, draw: np.random.Generator) -> Donor:
        film = _drawn(self.pools["lesions"], draw)
        return Donor(self.films.crops[film], self.films.lungs[film], self.films.boxes_of(film))

    def _film(self, kind: str, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
        """One film of a batch, without the first axis."""
        number = _drawn(self.pools[kind], draw)
        crop, lungs = np.array(self.films.crops[number]), np.array(self.films.lungs[number])
        labels, lesions = self.labels[number], None
        if kind == "lesions":
            lesions = lesion_map(self.films.boxes_of(number), len(crop))
        elif "host" in kind:
            crop, lesions = paste(crop, lungs, self._donor, draw)
            labels = np.full_like(labels, UNKNOWN)
        elif kind != "children" and self.films.rows[number]["label"] == NORMAL:
            lesions = np.zeros_like(lungs)
        size = self.plan.size
        film = varied(crop, lungs, np.zeros_like(lungs) if lesions is None else lesions, size, draw)
        grey = film.crop.astype(np.float32) / 255
        if draw.random() < 0.85:
            grey = grey * soft_lungs(film.lungs)
        share = _shrunk(film.lungs, size)
        cells = np.full((*share.shape, 2), UNKNOWN, np.float32)
        if lesions is not None:
            marked = _shrunk(film.lesions, size)
            cells[marked > 0.5] = 1
            cells[(marked < 0.05) & (share > 0.3), 0] = 0
            if kind != "sick_host":  # it has opacities of its own, nobody knows where
                cells[(marked < 0.05) & (share > 0.3), 1] = 0
            cells[share < 0.05] = UNKNOWN
        return grey[..., None] * 2 - 1, share[..., None], labels, cells


def _drawn(pool: Pool, draw: np.random.Generator) -> int:
    numbers = pool[draw.choice(len(pool), p=[share for share, _ in pool])][1]
    return numbers[draw.integers(len(numbers))]


def _shrunk(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask (size, size) uint8 0/1 as shares (g, g) float32 of the places of the encoder's map."""
    return cv2.resize(mask.astype(np.float32), (size // STRIDE,) * 2, interpolation=cv2.INTER_AREA)
