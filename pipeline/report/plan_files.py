"""A plan as files: its table, its curves, and a page with a slider. See `report.plan` for what they hold."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np

from cxr_pipeline.data.files import whole_file
from cxr_pipeline.models.store import write_text
from cxr_pipeline.report.page import data_block, escape, page, table
from cxr_pipeline.report.plan import FIGURES, SCORES, Plan


def write_plan(made: Plan, out: Path) -> list[Path]:
    """Write plan.csv, plan.png and plan.html into a folder; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")]
    writer.writerow(["group", "films_with", "films_without", "threshold", *ends])
    for name, (sick, well, figures) in made.groups.items():
        for place, score in enumerate(SCORES):
            values = [f"{v:.6g}" for figure in FIGURES for v in figures[figure][place]]
            writer.writerow([name, sick, well, f"{score:g}", *values])
    write_text(out / "plan.csv", text.getvalue())
    _draw(made, out / "plan.png")
    _page(made, out / "plan.html")
    return [out / name for name in ("plan.csv", "plan.png", "plan.html")]


def _draw(made: Plan, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures = made.groups["all"][2]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    shown: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("sensitivity, specificity", ("sensitivity", "specificity")),
        ("tests per case", ("tests_per_case",)),
        ("cost per case found", ("cost_per_case",)),
    )
    for axis, (title, names) in zip(figure.subplots(1, 3), shown, strict=True):
        for name in names:
            value, low, high = np.where(np.isfinite(figures[name]), figures[name], np.nan).T
            axis.plot(SCORES, value, label=name)
            axis.fill_between(SCORES, low, high, alpha=0.2)
        axis.axvline(made.chosen, color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="threshold (score)", title=title)
        if len(names) > 1:
            axis.legend(frameon=False)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _page(made: Plan, path: Path) -> None:
    names = {
        "sensitivity": "sensitivity", "specificity": "specificity",
        "true_positives": "true positives per 1,000 screened", "false_positives": "false positives per 1,000 screened",
        "tests_per_case": "tests per case found", "cost_per_case": "cost per case found",
        "ppv": "positive predictive value", "npv": "negative predictive value",
    }  # fmt: skip
    facts = {
        "chosen": made.chosen,
        "names": names,
        "groups": {
            group: {
                "films": [sick, well],
                "figures": {
                    name: [[float(f"{v:.6g}") if math.isfinite(v) else None for v in row] for row in values.tolist()]
                    for name, values in figures.items()
                },
            }
            for group, (sick, well, figures) in made.groups.items()
        },
    }
    with page(path, "Choosing a threshold", "plan.js") as file:
        text = "".join(f"<p>{escape(line)}</p>\n" for line in summary_lines(made))
        text += '<p class="slider"><label for="group">People</label> <select id="group">'
        text += "".join(f"<option>{escape(group)}</option>" for group in made.groups) + "</select> "
        text += '<label for="at">Threshold</label> <input id="at" type="range" min="0" max="100" step="1"> '
        text += '<output id="score" for="at"></output></p>\n<div id="figures" aria-live="polite"></div>\n'
        text += (
            "<noscript><p>The slider needs JavaScript; all figures are in plan.csv, beside this page.</p></noscript>\n"
        )
        rows_ = [
            [f"{score:g}", *(_number(made.groups["all"][2][name][int(score), 0]) for name in FIGURES)]
            for score in SCORES[::10]
        ]
        text += table(["threshold", *names.values()], rows_, "All films, every tenth score", kind="figures programme")
        file.write(text.encode())
        file.write(data_block("plan", facts).encode())


def _number(value: float) -> str:
    """A figure to about three digits, as plan.js has it. A share near 1 keeps two digits of what it lacks of 1."""
    if not math.isfinite(value):
        return "none found" if math.isinf(value) else "none"
    if value >= 100:
        return f"{value:.0f}"
    if 0.99 <= value < 1 - 1e-6:
        return f"{round(value, 1 - math.floor(math.log10(1 - value)))}"
    return f"{value:.3g}"


def summary_lines(made: Plan) -> list[str]:
    """What the command prints, a line each."""
    sick, well, figures = made.groups["all"]
    place = round(made.chosen)

    def at(name: str) -> str:
        value, low, high = figures[name][place]
        return f"{_number(value)} ({_number(low)} to {_number(high)})"

    costs, sizes = made.costs, made.sizes
    return [
        f"{sick} films with {made.positive} and {well} without; {sum(made.not_judged)} labelled films were not judged "
        f"({made.not_judged[0]} with {made.positive}), {made.missing} are not in the results.",
        f"Prevalence {costs.prevalence:g}, film {costs.film:g}, test {costs.test:g}. Intervals are of the films alone.",
        f"Threshold {made.chosen:g}: sensitivity {at('sensitivity')}, specificity {at('specificity')}.",
        f"Per 1,000 screened: {at('true_positives')} true and {at('false_positives')} false positives; "
        f"{at('tests_per_case')} tests and a cost of {at('cost_per_case')} per case found; NPV {at('npv')}.",
        f"For an interval of the width asked, a study needs {sizes['with']} films with {made.positive} and "
        f"{sizes['without']} without: about {sizes['people']} people as they come.",
    ]
