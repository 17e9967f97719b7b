"""What each threshold would cost and find: the yield tables of the WHO's calibration toolkit for CAD, from read films.

    RESULTS/plan/
      plan.csv     a row for each group of people and each score from 0 to 100
      plan.png     sensitivity, tests per case and cost per case by threshold
      plan.html    the same with a slider, by itself and without a network

A film is positive from the threshold on. Sensitivity and specificity are of the labelled films; what they give in a
programme follows from its own prevalence: per 1,000 people, ``1000 prevalence sensitivity`` true positives, and ``1000
(1 - prevalence)(1 - specificity)`` false ones. Films that were refused or failed are in no figure, and are counted
beside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_pipeline.configs.errors import CxrError
from cxr_pipeline.data.manifest import Manifest, read_manifest
from cxr_pipeline.models.store import write_text
from cxr_pipeline.results.folder import rows, run_info
from cxr_pipeline.results.reader import ResultsReader
from cxr_pipeline.stages.base import OK
from cxr_pipeline.stages.scores import AT_THRESHOLD, Scale, probability_at
from cxr_pipeline.train.weighted import COLUMN, weights_of

SCORES = np.arange(101.0)
LEAST = 10  # labelled films with the disease, and without, under which a table would be a guess
LEAST_OF_GROUP = 5  # of each, for a group of people to have its own table
_REPEATS = 300
_Z = 1.959964  # of a 95 % interval
_IN_A_YEAR = {"M": 12, "W": 52, "D": 365}
_AGES = ((0, 15), (15, 35), (35, 55), (55, 200))
FIGURES = (
    "sensitivity", "specificity", "true_positives", "false_positives", "tests_per_case", "cost_per_case", "ppv", "npv",
)  # fmt: skip


class PlanError(CxrError, ValueError):
    """Results and labels that no plan can be made of; says what is missing."""


@dataclass(frozen=True)
class Costs:
    """Of a programme: share of the people screened who have the disease; price of a film, and of a confirming test."""

    prevalence: float = 0.02
    film: float = 2.0
    test: float = 10.0


def yields(sensitivity: Any, specificity: Any, costs: Costs) -> dict[str, Any]:
    """What follows from a sensitivity and a specificity (numbers or arrays), per 1,000 people screened.

    Returns:
        `FIGURES` by name. Figures per case are infinite where no case is found; a predictive value without any film
        that it speaks of is NaN.
    """
    sensitivity, specificity = np.asarray(sensitivity, float), np.asarray(specificity, float)
    sick, well = 1000 * costs.prevalence, 1000 * (1 - costs.prevalence)
    found, false = sick * sensitivity, well * (1 - specificity)
    missed, cleared = sick - found, well - false
    tests = found + false
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "sensitivity": sensitivity,
            "specificity": specificity,
            "true_positives": found,
            "false_positives": false,
            "tests_per_case": np.where(found > 0, tests / found, np.inf),
            "cost_per_case": np.where(found > 0, (1000 * costs.film + tests * costs.test) / found, np.inf),
            "ppv": np.where(tests > 0, found / tests, np.nan),
            "npv": np.where(missed + cleared > 0, cleared / (missed + cleared), np.nan),
        }


def sample_size(share: float, width: float) -> int:
    """Films for a share to have a 95 % interval of at most `width` from end to end (Buderer 1996; normal theory).

    Never fewer than Wilson's interval of a share of 0 or 1 needs, where normal theory asks for none.

    Args:
        share: the sensitivity or specificity expected, 0 to 1. width: such as 0.1 for five points to each side.
    """
    if not 0 < width < 1:
        raise PlanError(f"a width lies between 0 and 1, such as 0.1. Received: {width}")
    return math.ceil(_Z**2 * max(share * (1 - share) / (width / 2) ** 2, 1 / width - 1) - 1e-9)


def sample_sizes(sensitivity: float, specificity: float, width: float, prevalence: float) -> dict[str, int]:
    """What a calibration study needs: films with the disease, without, and people to screen to meet that many."""
    cases, others = sample_size(sensitivity, width), sample_size(specificity, width)
    people = max(cases / prevalence, others / (1 - prevalence)) if 0 < prevalence < 1 else math.inf
    return {"with": cases, "without": others, "people": math.ceil(people - 1e-9) if math.isfinite(people) else 0}


def table_of(
    y: np.ndarray, score: np.ndarray, patients: Sequence[str], costs: Costs, mass: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Each figure of `yields` at `SCORES`, (101, 3): value, and its 95 % interval by bootstrap over patients.

    Args:
        y: (N,) bool. score: (N,) 0 to 100, as results.csv has it.
        mass: (N,) how many films each stands for, see `train.weighted`; None counts them alike.
    """
    reached = np.asarray(score)[:, None] >= SCORES
    of_each = np.ones(len(y)) if mass is None else np.asarray(mass, float)

    def at(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sick, well = weights * y, weights * ~y
        return sick @ reached / max(sick.sum(), 1e-12), 1 - well @ reached / max(well.sum(), 1e-12)

    _, codes = np.unique(np.asarray(patients), return_inverse=True)
    count = codes.max() + 1
    draw = np.random.default_rng(0)
    samples: list[dict[str, np.ndarray]] = []
    while len(samples) < _REPEATS:
        weights = np.bincount(draw.integers(count, size=count), minlength=count)[codes].astype(float)
        if (weights * y).any() and (weights * ~y).any():
            samples.append(yields(*at(weights * of_each), costs))
    value = yields(*at(of_each), costs)
    out = {}
    for name in FIGURES:
        spread = np.array([sample[name] for sample in samples])
        # By rank, not between two values: infinite ones have no middle.
        low, high = np.quantile(spread, [0.025, 0.975], axis=0, method="inverted_cdf")
        out[name] = np.stack([value[name], low, high], axis=1)
    return out


@dataclass(frozen=True)
class Plan:
    """The tables of a plan.

    Attributes:
        groups: by name, first "all": number of films with and without the disease, and the table.
        chosen: score of the threshold chosen.
        not_judged: labelled films with the disease, and without, that were refused or failed.
        missing: labelled films that the results do not hold.
    """

    groups: dict[str, tuple[int, int, dict[str, np.ndarray]]]
    costs: Costs
    positive: str
    chosen: float
    target: float
    not_judged: tuple[int, int]
    missing: int
    sizes: dict[str, int]


def plan(
    results: Path,
    data: Path,
    *,
    costs: Costs | None = None,
    target_sensitivity: float = 0.90,
    threshold: int | None = None,
    width: float = 0.10,
) -> Plan:
    """Tables for every threshold, from a results folder and the labels of its films.

    Args:
        threshold: score to choose; None takes the highest that reaches the target sensitivity on these films.
        width: of the interval that a calibration study should have.

    Raises:
        ResultsError: there are no results.
        PlanError: they have no score, or too few of the labelled films are among them.
        ManifestError: the manifest has faults.
    """
    costs = costs or Costs()
    decisions = _decisions(results)
    positive = decisions["positive"]
    manifest = read_manifest(data, check_files=False).relabelled(decisions.get("class_of"))
    films, missing = _joined(results, manifest, decisions["classes"])
    judged = [film for film in films if film["score"] is not None]
    y = np.array([film["label"] == positive for film in judged], bool)
    if y.sum() < LEAST or (~y).sum() < LEAST:
        raise PlanError(
            f"{int(y.sum())} labelled films with {positive} and {int((~y).sum())} without have a score in {results}; "
            f"at least {LEAST} of each are needed. {missing} films of {data} are not in the results: their paths, or "
            "file names, must be the same"
        )
    score = np.array([film["score"] for film in judged])
    patients = np.array([film["patient"] for film in judged])
    mass = weights_of([film["weight"] for film in judged])
    groups = {}
    for name, keep in _groups(judged).items():
        own = np.array(keep, bool)
        if min((y & own).sum(), (~y & own).sum()) >= LEAST_OF_GROUP or name == "all":
            own_mass = None if mass is None else mass[own]
            groups[name] = (
                int((y & own).sum()),
                int((~y & own).sum()),
                table_of(y[own], score[own], patients[own], costs, own_mass),
            )
    sensitivity = groups["all"][2]["sensitivity"][:, 0]
    reaching = int(np.flatnonzero(sensitivity >= target_sensitivity - 1e-9).max())
    place = reaching if threshold is None else threshold
    sizes = sample_sizes(
        float(sensitivity[place]), float(groups["all"][2]["specificity"][place, 0]), width, costs.prevalence
    )
    left = [film["label"] == positive for film in films if film["score"] is None]
    return Plan(
        groups, costs, positive, float(place), target_sensitivity, (sum(left), len(left) - sum(left)), missing, sizes
    )


def _decisions(results: Path) -> dict[str, Any]:
    run = ResultsReader(results).info
    decisions = run.get("config", {}).get("classify", {})
    if not decisions.get("positive") or decisions.get("multi_label"):
        raise PlanError(f"the films in {results} have no score: its chain ends before the classifier, or has none")
    return decisions


def _joined(results: Path, manifest: Manifest, classes: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Films with a label and a row, by path, else by a file name that is there once; and how many have no row."""
    by_path: dict[str, dict[str, str]] = {}
    by_name: dict[str, list[dict[str, str]]] = {}
    for one in rows(results):
        path = Path(one["image"])
        by_path[str(path.resolve())] = one
        by_name.setdefault(path.name, []).append(one)
    films, missing = [], 0
    labelled = manifest.select(labels=list(classes)).rows()
    names = Counter(Path(film["image"]).name for film in labelled)
    for film in labelled:
        name = Path(film["image"]).name
        row = by_path.get(str(manifest.path(film["image"]).resolve()))
        if row is None and names[name] == 1 and len(by_name.get(name, ())) == 1:
            row = by_name[name][0]
        if row is None:
            missing += 1
            continue
        score = float(row["tb_score"]) if row["status"] == OK and row.get("tb_score") else None
        known = {key: str(film.get(key) or row.get(key) or "") for key in ("age", "sex")}
        known["weight"] = str(film.get(COLUMN) or "")
        films.append({"label": film["label"], "patient": film["patient"], "score": score, **known})
    return films, missing


def _groups(films: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    out = {"all": [True] * len(films)}
    for sex in sorted({film["sex"].strip().upper()[:1] for film in films} - {""}):
        out[f"sex {sex}"] = [film["sex"].strip().upper()[:1] == sex for film in films]
    ages = [_age(film["age"]) for film in films]
    for low, high in _AGES:
        name = f"age {low} to {high - 1}" if high < 200 else f"age {low} and over"
        out[name] = [age is not None and low <= age < high for age in ages]
    return out


def _age(text: str) -> float | None:
    """Years, of a number or of DICOM's form, such as 058Y, 006M and 013D."""
    given = text.strip().upper()
    try:
        age = float(given.rstrip("YMWD")) / _IN_A_YEAR.get(given[-1:], 1)
    except ValueError:
        return None
    return age if 0 <= age < 200 else None


def write_site(made: Plan, results: Path, out: Path) -> None:
    """The site file of the chosen threshold: what the results were decided with, and 50 at that score."""
    import yaml

    run = run_info(results)
    decisions = run["config"]["classify"]
    scale = Scale.of(decisions.get("score"))
    threshold = decisions["threshold"]
    if made.chosen != AT_THRESHOLD:
        threshold = probability_at(made.chosen, threshold, scale)
    wanted = {
        "site": out.stem,
        "weights": run.get("bundles") or run["fingerprints"],
        "temperature": decisions["temperature"],
        "offsets": {name: decisions.get("offsets", {}).get(name, 0.0) for name in decisions["classes"]},
        "threshold": float(f"{threshold:.9g}"),
        "score": scale.to_json(),
        **({"sets": decisions["sets"]} if decisions.get("sets") else {}),
        "films": {"n": sum(made.groups["all"][:2])},
        "chosen": f"score {made.chosen:g} of the results in {results.name}, by pipeline plan",
    }
    write_text(out, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))
