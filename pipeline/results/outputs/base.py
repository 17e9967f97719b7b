"""The contract of an output: what a run leaves of each film, and of all films together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, ClassVar

import cv2
import numpy as np

from cxr_pipeline.results.identity import Identity
from cxr_pipeline.stages.apply import crashed
from cxr_pipeline.stages.base import Record


@dataclass(frozen=True)
class JudgedFilm:
    """What an output sees of a film.

    Attributes:
        record: the film after the chain; an output may only read it.
        id: names its files; unique in the folder, and safe as a file name everywhere.
        image: the film's path as results.csv shows it.
        sha256: of the film's file; empty where it could not be read.
        folder: the results folder.
        identity: of the chain that judged it: version, runtime, fingerprints of the stages, classes.
        warnings: sentences that outputs add to the film's own in results.csv, such as why a file is missing.
        shared: what outputs of the same film may leave for one another, so that none of them does it again.
    """

    record: Record
    id: str
    image: str
    sha256: str
    folder: Path
    identity: Identity
    warnings: list[str] = field(default_factory=list, compare=False)
    shared: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def warn(self, *texts: str) -> None:
        """Add to the film's warnings."""
        self.warnings.extend(texts)


class Output:
    """One kind of output. A class without state beyond its options; it must pickle, for workers of a cluster.

    An output is one file of this package and one line in its registry, or an entry point in the group
    `cxr_pipeline.outputs` of another package, whose name is the output's and whose value is the class.

    Attributes:
        name: what `--outputs` calls it, and its folder below the results: letters a to z, digits, `-`, `_`.
        about: what it is, in a line for `--help`.
        default: whether a run writes it unless told otherwise.
        suffixes: what the names of a film's files end in; the file is `<name>/<id><suffix>`. Empty where it leaves no
            file of a single film.
        detail: pixels that the long side of a film has to keep for its files; None for all that it has.
        summary: the name of its one file of all films in the results folder; empty where it has none.
        named: it is written only where it is named, and not by `--outputs all`: it needs more than films.
        decides: its files hold label, screen or score; `pipeline screen` removes those of films that it decides anew.
        columns: further columns of results.csv that `cells` fills in.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    default: ClassVar[bool] = False
    suffixes: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = ""
    detail: int | None = None
    named: ClassVar[bool] = False
    decides: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def check(cls) -> None:
        """Refuse a run that could not write this output, before any film is read.

        Raises:
            CxrError: a package that it needs is not installed.
        """

    @property
    def key(self) -> str:
        """What the journal calls it: its name, with the options that change its files."""
        return self.name

    def files(self, film: JudgedFilm) -> Mapping[str, bytes]:
        """The film's files: bytes by suffix, all of them among `suffixes`; none where there is nothing to write.

        Called for every film, refused and failed ones too, from several threads. The same film gives the same bytes.

        Raises:
            Exception: the film then is failed, and its traceback goes to run.log.
        """
        del film
        return {}

    def cells(self, film: JudgedFilm) -> Mapping[str, str]:
        """The film's cells of results.csv, by column of `columns`; called after `files`, as they are."""
        del film
        return {}

    def write_summary(
        self, file: IO[bytes], entries: Callable[[], Iterable[dict[str, Any]]], run: Mapping[str, Any]
    ) -> None:
        """Write the file of all films. Never with all entries in memory: there may be millions.

        Args:
            file: opened for bytes; takes its name when this returns.
            entries: gives the journal's entries in their final order, see `results.entries`; may be called again.
            run: what `run.json` says.
        """

    def wants_summary(self, run: Mapping[str, Any]) -> bool:
        """Whether a run that says `run` of itself gets the file of all films."""
        del run
        return bool(self.summary)


def file_names(name: str, film: str, suffixes: Iterable[str]) -> list[str]:
    """The names of a film's files below the results folder, with forward slashes."""
    return [f"{name}/{film}{suffix}" for suffix in suffixes]


def failed(record: Record, where: str, error: Exception) -> tuple[Record, str]:
    """The record as failed by an exception that nobody foresaw, and the traceback for run.log."""
    return logged(crashed(record, where, error))


def logged(record: Record) -> tuple[Record, str]:
    """The record as a run tells of it, and the traceback for run.log: empty where nothing crashed."""
    if record.crash is None:
        return record, ""
    return replace(record, error=f"{record.error}. The traceback is in run.log"), record.crash.trace


def judged_so_far(record: Record) -> bool:
    """Whether the film came through a stage, and no stage spoke against it."""
    return record.ok and (record.mask is not None or record.probabilities is not None)


def levels(image: np.ndarray) -> np.ndarray:
    """An image (H, W) float in [0, 1] as uint8 0 to 255."""
    return cv2.convertScaleAbs(image, alpha=255)  # rounds and stops at 255 in one pass; 5 times as fast as in numpy


# How a grey PNG is packed. libpng's own choice tries all filters on every line, which takes twice as long for the same
# size: films of 512 px, ms and KB with it, then with one filter: crop 4.6, 94 / 2.1, 111; heat map 2.0, 14 / 0.8, 17.
CROP_PNG = (cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY, cv2.IMWRITE_PNG_FILTER_UP)
HEAT_PNG = (cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER_SUB)


def grey_png(image: np.ndarray, packing: tuple[int, int], level: int = 1) -> bytes:
    """An image (H, W) uint8 as an 8-bit grey PNG.

    Args:
        packing: zlib's strategy and the filter of the lines, as OpenCV numbers them.
        level: of compression, 0 to 9.

    Raises:
        ValueError: OpenCV cannot encode it.
    """
    strategy, line = packing
    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy, cv2.IMWRITE_PNG_FILTER, line]
    done, data = cv2.imencode(".png", image, options)
    if not done:
        raise ValueError(f"OpenCV cannot encode an image of shape {image.shape} as PNG")
    return data.tobytes()
