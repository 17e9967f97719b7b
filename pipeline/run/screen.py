"""A finished folder decided again, from what its network said: another threshold, or a site's calibration.

No network runs and no film is read: the journal holds each film's logits. What changes is what decides (label, screen,
tb_score, probabilities, and warnings of doubt), the captions of the overlays, and the files made of them. Masks, heat
maps and boxes stay as they were drawn.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.files import (
    csv_line,
    file_sha256,
    mode_like,
    read_regular,
    sha256_of,
    whole_file,
    write_bytes,
    write_json,
)
from cxr_pipeline.data.locks import FolderLock
from cxr_pipeline.models.store import WeightsError, bundle_of, find, fingerprint, read_card
from cxr_pipeline.results.drawing import Caption, Made, answers, layout, strip_of
from cxr_pipeline.results.folder import LAYOUT, REPORT
from cxr_pipeline.results.identity import ResultsError
from cxr_pipeline.results.journal import Journal
from cxr_pipeline.results.outputs import columns, output_class, output_names
from cxr_pipeline.results.outputs.overlays import overlay_jpeg
from cxr_pipeline.results.outputs.table import cells
from cxr_pipeline.results.reader import ResultsReader, film_file, inside
from cxr_pipeline.results.worklist import write_worklist
from cxr_pipeline.stages.base import OK, fingerprint_of
from cxr_pipeline.stages.decisions import DOUBTS, Answer, Rules, probabilities_of
from cxr_pipeline.stages.scores import AT_THRESHOLD, shown
from cxr_pipeline.stages.uncertain import uncertain
from cxr_pipeline.texts import ENGLISH, Texts
from cxr_pipeline.train.site import NoSite, check_site, read_site

_OVERLAY = 50_000_000  # bytes that an overlay may have
_END = b"\xff\xd9"  # of a whole JPEG


class ScreenError(CxrError, ValueError):
    """A folder that cannot be decided again; says why, and what to do."""


@dataclass(frozen=True)
class Screened:
    """How a folder was decided.

    Attributes:
        films: in the folder, those without an answer too.
        before, now: films by screening answer.
        changed: films with another answer than before.
        threshold: score from which a film is positive.
    """

    films: int
    before: dict[str, int]
    now: dict[str, int]
    changed: int
    threshold: float


def screen(folder: Path, *, threshold: float | None = None, site: Path | NoSite | None = None) -> Screened:
    """Decide a finished folder of `pipeline run` again, and put its files into their new form, each at once.

    Called again after a kill, it finishes what it began.

    Args:
        folder: what `pipeline run --out` or `pipeline merge` left.
        threshold: score from which a film is positive, on the scale of the weights or the site; None: 50.
        site: a site file in place of what the weights, or another site file, decide; "none": as the weights decide.

    Raises:
        ResultsError: there are no results.
        ScreenError: neither is given, the folder has not finished, has no score, or was made before logits were kept;
            or of "none", the weights are gone or have changed.
        CalibrationError: the site file cannot be read, or was made with other weights.
        OSError: the disk takes no more.
    """
    if threshold is None and site is None:
        raise ScreenError("give --threshold SCORE, or --site FILE (none: back to the weights' own decisions), or both")
    run = _finished(folder)
    mode = mode_like(folder / "run.json")
    lock = FolderLock(folder, mode)
    if not lock.acquire():
        raise ScreenError(f"a run is working in {folder}. Wait for it, then decide again")
    journal = Journal(folder / "journal.jsonl", mode=mode)
    try:
        before = Rules.of(run["config"]["classify"])
        decisions = _decisions(folder, run, threshold, site)
        return _write(folder, run, before, decisions, journal)
    finally:
        journal.close()
        lock.release()


def _finished(folder: Path) -> dict[str, Any]:
    run = ResultsReader(folder).info
    if not run.get("finished"):
        raise ScreenError(f"the run in {folder} has not finished. Give its command again, then decide")
    if run.get("layout") != LAYOUT:
        raise ScreenError(f"{folder} was made by an earlier version of this program. Run it again, with --overwrite")
    classify = run.get("config", {}).get("classify", {})
    if not classify.get("positive") or classify.get("multi_label"):
        raise ScreenError(f"the films in {folder} have no score: its chain ends before the classifier, or has none")
    return run


def _decisions(
    folder: Path, run: dict[str, Any], threshold: float | None, site: Path | NoSite | None
) -> dict[str, Any]:
    """What decides from now on; `run` is changed to say so, with the fingerprint that such a run would have."""
    decisions = run["config"]["classify"]
    bundles = run.get("bundles") or run["fingerprints"]
    settings = dict(run.get("decided", {}))
    if isinstance(site, str):
        decisions = _of_weights(folder, run, bundles["classify"])
        settings = {key: value for key, value in settings.items() if key == "refuse"}
    elif site is not None:
        calibrated, made_with = read_site(site)
        check_site(site, calibrated, made_with, bundles, decisions["classes"])
        settings = {key: value for key, value in settings.items() if key == "refuse"} | calibrated
    if threshold is not None:
        settings["cutoff"] = float(threshold)  # 40 and 40.0 are one, in a fingerprint too
    elif site is not None:
        decisions.pop("cutoff", None)
    decisions = {**decisions, **settings}
    run["config"]["classify"] = decisions
    run["decided"] = settings
    run["fingerprints"]["classify"] = fingerprint_of(bundles["classify"], settings)
    return decisions


def _of_weights(folder: Path, run: dict[str, Any], made_with: str) -> dict[str, Any]:
    """What the card of the run's own weights decides: run.json knows that no more once a site file has decided."""
    weights = str(run.get("weights", ""))
    try:
        bundle = bundle_of(find(weights), "classify")
        found = fingerprint(bundle)
        decisions = dict(read_card(bundle)["decisions"])
    except (WeightsError, OSError) as error:
        raise ScreenError(f"{folder} was made with weights that cannot be read now: {error}") from None
    if found != made_with:
        raise ScreenError(
            f"{folder} was made with other weights ({made_with}) than {weights!r} is now ({found}). Run it again, with "
            "--overwrite"
        )
    return decisions


def _write(folder: Path, run: dict[str, Any], previous: Rules, decisions: dict[str, Any], journal: Journal) -> Screened:
    rules = Rules.of(decisions)
    offsets = np.array([decisions.get("offsets", {}).get(name, 0.0) for name in decisions["classes"]])
    names = columns(run["classes"], run.get("columns", ()))
    mode = mode_like(folder / "run.json")
    before: Counter[str] = Counter()
    now: Counter[str] = Counter()
    changed = 0
    keys = journal.keys()
    lines, table = folder / "journal.jsonl", folder / "results.csv"
    options: dict[str, Any] = {"durable": True, "mode": mode}
    with whole_file(table, **options) as rows, whole_file(lines, **options) as entries:
        rows.write(csv_line(names, {name: name for name in names}))
        for entry in journal.entries(keys):
            row = entry["row"]
            if row["status"] == OK and row.get("tb_score"):
                old = row.get("screen")
                if "logits" not in entry:
                    raise ScreenError(
                        f"{folder} was made by a version that did not keep what the network said. Run it again, with "
                        "--overwrite"
                    )
                p = probabilities_of(np.array(entry["logits"]), decisions["temperature"], offsets)
                shown_before = _texts(row, previous)
                _decide(row, dict(zip(decisions["classes"], map(float, p), strict=True)), rules, decisions)
                texts = _texts(row, rules)
                if texts != shown_before:
                    _caption(folder, run, entry, rules, mode)
                    _forget(folder, entry)
                before[old] += 1
                now[row["screen"]] += 1
                changed += old != row["screen"]
            rows.write(csv_line(names, cells(row)))
            entries.write((json.dumps(entry, separators=(",", ":")) + "\n").encode())
        journal.close()
    (folder / REPORT).unlink(missing_ok=True)  # it tells of what was decided before
    if "tables" in run:
        run["tables"] |= {path.name: file_sha256(path) for path in (table, lines)}
    write_json(folder / "run.json", run, **options)
    write_worklist(folder)
    return Screened(len(keys), dict(before), dict(now), changed, rules.cutoff)


def _decide(row: dict[str, str], p: Mapping[str, float], rules: Rules, decisions: Mapping[str, Any]) -> Answer:
    """The row of a film as its probabilities decide it; warnings that are no doubts of a decision stay."""
    answer = rules.decide(p)
    doubts = list(answer.doubts)
    if rules.sets is None:
        interval = decisions.get("threshold_ci95")
        interval = None if interval is None or None in interval else interval  # null: too few films to say
        doubts = uncertain(p[rules.positive], rules.threshold, interval)
    row |= {f"p_{name}": f"{value:.4f}" for name, value in p.items()}
    row |= {"label": answer.label, "screen": answer.screen, "tb_score": f"{shown(answer.score):.1f}"}
    others = [text for text in row.get("warnings", "").split("; ") if text and not text.startswith(DOUBTS)]
    row["warnings"] = "; ".join([*others, *doubts])
    if not row["warnings"]:
        del row["warnings"]
    return answer


def _texts(row: Mapping[str, str], rules: Rules, say: Texts = ENGLISH) -> list[str]:
    """What an overlay's caption says of a film, the longest form first."""
    extra = {"positive": rules.positive, "cutoff": rules.cutoff}
    return answers(row["label"], row.get("screen") or None, float(row["tb_score"]), extra, say)


def _caption(folder: Path, run: Mapping[str, Any], entry: dict[str, Any], rules: Rules, mode: int) -> None:
    """Draw the overlay's strip anew, and note the file's new size and checksum. The film above it is packed again.

    An overlay that is missing or cut is left to the next run, which sees that, and draws it again.
    """
    name, row = film_file(entry, "overlays"), entry["row"]
    if name is None:
        return
    try:
        path = inside(folder, name)
        packed = read_regular(path, _OVERLAY, follow=False)
        # Not by its checksum: it may be one that a killed call has drawn already.
        drawn = cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_COLOR) if packed.endswith(_END) else None
    except (OSError, ResultsError, cv2.error):
        return
    height, width, strip = layout(int(row["height"]), int(row["width"]))
    if drawn is None or drawn.shape[:2] != (height + strip, width):
        return
    made = Made.of(row["image"], run, str(run.get("version", "")))
    regions = entry.get("regions") or []
    of = entry.get("heatmap_label") or (regions[0]["category"] if regions else "")
    caption = Caption(_texts(row, rules, made.say), made, of if entry.get("heat") else None)
    drawn[height:] = strip_of(caption, width, strip)
    data = overlay_jpeg(drawn)
    write_bytes(path, data, mode=mode)
    entry["files"][name] = {"size": len(data), "sha256": sha256_of(data)}


def _forget(folder: Path, entry: dict[str, Any]) -> None:
    """Remove the film's files that hold the decision of before (dicom, fhir); `run` with --outputs makes them anew."""
    for name in output_names():
        if output_class(name).decides and name in [key.split()[0] for key in entry["outputs"]]:
            for file in [file for file in entry["files"] if file.startswith(f"{name}/")]:
                inside(folder, file).unlink(missing_ok=True)
                del entry["files"][file]
            entry["outputs"] = [key for key in entry["outputs"] if key.split()[0] != name]


def summary(screened: Screened, out: Path) -> str:
    """What the command prints."""
    counts = ", ".join(f"{screened.now.get(name, 0)} {name}" for name in ("positive", "unsure", "negative"))
    where = "" if screened.threshold == AT_THRESHOLD else f" from a score of {screened.threshold:g}"
    return f"Screen{where}: {counts}. {screened.changed} films changed.\nTable     {out / 'results.csv'}"
