"""The chain from Python, in a few lines::

from cxr_pipeline import Pipeline

results = Pipeline().run("films/", out="results")
results.table.sort_values("tb_score")

answer = Pipeline().analyze("film.dcm")
answer.probabilities, answer.regions, answer.heatmap
"""

from __future__ import annotations

import html
import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_pipeline.about import NOTICE
from cxr_pipeline.configs.extras import require
from cxr_pipeline.data.files import PRIVATE, plain_cell
from cxr_pipeline.data.radiograph import Radiograph
from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.results.outputs.asked import asked, for_films
from cxr_pipeline.results.reader import ResultsReader
from cxr_pipeline.run.inputs import LeftOut, find_inputs, marked_equal
from cxr_pipeline.run.isolation import IsolatedReader
from cxr_pipeline.run.listing import about_inputs, write_left_out
from cxr_pipeline.run.runner import Runner
from cxr_pipeline.run.spec import ChainSpec
from cxr_pipeline.stages.apply import apply
from cxr_pipeline.stages.base import Record

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20  # rows that a notebook shows
# Columns of text; numbers of patients and studies are text too, as they may begin with a zero.
_TEXT = (
    *("image", "id", "status", "error", "label", "screen", "warnings", "sha256", "ctr_note"),
    *("patient_id", "study_uid", "accession", "study_date", "view"),
)


@dataclass(frozen=True)
class Results:
    """The folder that a run left, as a person in a notebook wants it."""

    folder: Path

    @cached_property
    def _reader(self) -> ResultsReader:
        return ResultsReader(self.folder)

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """`results.csv`, one dict per input."""
        return list(self._reader.rows())

    @cached_property
    def table(self) -> pd.DataFrame:
        """`results.csv` with numbers as numbers, one row per input. It needs pandas; `rows` does not.

        Raises:
            configs.extras.MissingExtraError: pandas is not installed.
        """
        require("pandas", "Results.table")
        import pandas as pd

        text = {name: str for name in _TEXT}
        # A class or a film may be called None or NA, which pandas takes for empty cells of its own accord.
        table = pd.read_csv(self.folder / "results.csv", dtype=text, keep_default_na=False, na_values=[""])
        named = [name for name in text if name in table]
        table[named] = table[named].fillna("").map(plain_cell)
        return table

    @cached_property
    def regions(self) -> dict[str, list[dict[str, Any]]]:
        """The regions of each film by its id: `bbox` in native pixels, `score`, `label`, `side`, `zone`."""
        coco = json.loads((self.folder / "regions.json").read_text(encoding="utf-8"))
        names = {image["id"]: image["name"] for image in coco["images"]}
        labels = {category["id"]: category["name"] for category in coco["categories"]}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
        for one in coco["annotations"]:
            kept = {key: one[key] for key in ("bbox", "score", "side", "zone")}
            found[names[one["image_id"]]].append({**kept, "label": labels[one["category_id"]]})
        return found

    @property
    def info(self) -> dict[str, Any]:
        """`run.json`: versions, weights and their hashes, settings, counts, seconds."""
        return self._reader.info

    def picture(self, id: str, kind: str = "overlays") -> np.ndarray:
        """A picture of one film: "overlays" (h, w, 3) RGB, "masks", "heatmaps" or "crops" (h, w), uint8.

        Raises:
            FileNotFoundError: the film was not judged that far, or the run did not write that output.
            ResultsError: the file is damaged.
        """
        import cv2

        path = self._reader.file(id, kind)
        if path is None:
            raise FileNotFoundError(
                f"there is no {id} in {self.folder / kind}. The film was not judged that far, or the run did not "
                "write that output: see `outputs` of Pipeline.run"
            )
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if image is None:
            raise ResultsError(f"{path} is damaged. Run again with --verify, which writes it anew")
        return image[..., ::-1] if image.ndim == 3 else image

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {status}" for status, n in self.info.get("counts", {}).items() if status != "total")
        return f"Results({str(self.folder)!r}: {counts})"

    def _repr_html_(self) -> str:
        shown = ("id", "status", "screen", "tb_score", "score", "label", "regions", "error")
        columns = [name for name in shown if self.rows and name in self.rows[0]]
        cells = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        lines = [f"<tr>{cells}</tr>"]
        for row in self.rows[:_SHOWN]:
            lines.append("<tr>" + "".join(f"<td>{html.escape(row[name])}</td>" for name in columns) + "</tr>")
        more = f"<p>and {len(self) - _SHOWN} more</p>" if len(self) > _SHOWN else ""
        return f"<table>{''.join(lines)}</table>{more}<p>{html.escape(repr(self))}. {html.escape(NOTICE)}</p>"


class Pipeline:
    """The chain with its weights loaded: the same as the command `pipeline run`.

    Args:
        weights: name of shipped weights, or the folder of trained ones.
        stage: run the chain up to this stage; None runs all that the weights have.
        also: further stages, such as ("measure",), which needs no weights.
        runtime: "onnx", "onnx-cuda", "onnx-tensorrt", "openvino" or "keras".
        config: YAML file or preset; of it, a run obeys the thresholds.
        site: a site file, see `pipeline calibrate`.
        threshold: score from which a film is screen positive; None: 50, the threshold of weights or site.
        label: heat map and regions of this class; None takes the predicted one.
        language: of overlays, see `texts.LANGUAGES`.
        settings: run settings on top of all else, such as ["localize.threshold=0.6"]: `run --set`.
        refuse: False judges films too that would be refused, with the reasons as warnings: `run --no-refuse`.

    Raises:
        models.store.WeightsError: the weights do not exist or cannot be opened.
        configs.schema.ConfigError: the config cannot be read.
        stages.UnknownStageError: no stage has that name.
        stages.base.StageError: a run has no such setting, or the label is none of the classes.
    """

    def __init__(
        self,
        weights: str | Path = "tb",
        *,
        stage: str | None = None,
        also: Sequence[str] = (),
        runtime: str = "onnx",
        config: str | None = None,
        site: Path | str | None = None,
        threshold: float | None = None,
        label: str | None = None,
        language: str = "en",
        settings: Sequence[str] = (),
        refuse: bool = True,
    ) -> None:
        spec = ChainSpec(
            str(weights),
            stage,
            tuple(also),
            runtime=runtime,
            config=config,
            site=Path(site) if site is not None else None,
            threshold=threshold,
            label=label,
            language=language,
            overrides=tuple(settings),
            refuse=refuse,
        )
        self._chain = spec.open({"api": True, "stage": stage})
        self._reader = IsolatedReader()  # starts no process before it is asked for a film
        weakref.finalize(self, self._reader.close)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the classifier answers, in its order."""
        return self._chain.identity.classes

    def run(
        self,
        inputs: str | Path | Sequence[str | Path],
        out: str | Path,
        *,
        workers: int | None = None,
        batch_size: int = 8,
        overwrite: bool = False,
        outputs: str | Sequence[str] | None = None,
        mode: int = PRIVATE,
        identifiers: str | None = None,
        dicom_header: str | Path | None = None,
    ) -> Results:
        """Judge files, folders or a manifest into a results folder; goes on where an interrupted run stopped.

        Args:
            inputs: files, folders or a manifest.
            out: the results folder.
            workers: threads; by default one per core.
            batch_size: films that the networks see at once.
            overwrite: discard what another run left in the folder.
            outputs: what is written, such as ["masks", "heatmaps"] or "all"; by default masks, overlays and regions.
            mode: permissions of what is written.
            identifiers: "pseudonym" or "plain" adds the columns `patient_id, study_uid, accession, study_date, view` to
                results.csv, from the headers of DICOM films; None adds none.
            dicom_header: table (CSV) of headers for films that are no DICOM, see docs/dicom-out.md.

        Raises:
            run.inputs.InputError: nothing to judge.
            dicom.films.HeaderTableError: the table of headers cannot be used.
            dicom.pseudonyms.SecretError: pseudonyms are asked for, and the site's secret cannot be used.
            ResultsError: the folder belongs to another run.
            run.runner.RunError: the disk or the folder takes no more.
        """
        given = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
        header = Path(dicom_header) if dicom_header is not None else None
        wanted = asked(outputs, dicom_header=header, identifiers=identifiers)
        missing = [str(one) for one in given if not Path(one).exists()]
        if missing:
            raise FileNotFoundError(f"no such file or folder: {', '.join(missing)}")
        left_out: list[LeftOut] = []
        found = marked_equal(find_inputs([str(one) for one in given], out=Path(out), left_out=left_out))
        self._chain.identity.about.update(about_inputs(found, left_out))
        runner = Runner(
            self._chain.stages, Path(out), identity=self._chain.identity, batch_size=batch_size, workers=workers
        )
        for_films(wanted, (one.path for one in found))
        runner.outputs, runner.mode = wanted, mode
        runner.run(found, overwrite=overwrite)
        write_left_out(Path(out), left_out)
        return Results(Path(out))

    def analyze(self, film: str | Path | np.ndarray) -> Record:
        """One film through the chain, nothing written.

        A file is decoded in a process of its own, as by `run`: one that crashes its decoder, or takes too long or too
        much memory, raises here and does no harm to the caller. That process stays for the next film, and ends with
        this object.

        Args:
            film: a file, or pixels (H, W) with bright = dense: floats in [0, 1], or whole numbers of
                the full range of their type.

        Returns:
            The record: `status` and `error`, `mask`, `probabilities`, `label`, `screen`, `tb_score`, `abnormal`,
            `heatmap`, `heatmap_label` (the class that it is of), `regions`, `measures`. Where a stage raised, `status`
            is "failed" and `crash` says where and why.

        Raises:
            data.radiograph.RadiographError: the file cannot be read, or is no film.
            ValueError: an array that is no grey picture.
        """
        record = Record(_of_array(film) if isinstance(film, np.ndarray) else self._reader(film))
        (judged,) = apply(self._chain.stages, [record])
        return judged


def open_results(folder: str | Path) -> Results:
    """The results of an earlier run.

    Raises:
        results.identity.ResultsError: no run of this program left that folder.
    """
    ResultsReader(Path(folder))
    return Results(Path(folder))


def _of_array(pixels: np.ndarray) -> Radiograph:
    if pixels.ndim != 2 or not pixels.size:
        raise ValueError(f"pixels must be a grey picture (H, W). Received shape: {pixels.shape}; take one channel")
    if np.issubdtype(pixels.dtype, np.integer):
        scaled = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    else:
        scaled = pixels.astype(np.float32)
    if not np.isfinite(scaled).all() or scaled.min() < 0 or scaled.max() > 1:
        raise ValueError(f"pixels must lie in [0, 1]. Received: {scaled.min():g} to {scaled.max():g}; scale them first")
    return Radiograph(scaled, "array", "array", pixels.shape, None, "array", 8 * pixels.dtype.itemsize, {})
