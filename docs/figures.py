"""Writes the figures of the shipped weights into docs/model-card.md, between its two markers.

Run `python docs/figures.py` after new weights; a test holds the page to the cards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "model-card.md"
WEIGHTS = Path(__file__).parent.parent / "models" / "weights" / "tb"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

SEGMENT = {"dice": "Dice", "iou": "IoU", "hd95_px": "HD95, px of the stored film"}
CLASSIFY = {
    "auc_tb_against_norm": "AUROC, TB against NORM",
    "specificity_at_90_sensitivity": "specificity at 90 % sensitivity",
    "sensitivity": "sensitivity at the stored threshold",
    "specificity": "specificity at the stored threshold",
    "auc_ntb_against_norm": "AUROC, NTB against NORM",
    "ece_tb": "ECE of the TB probability",
}
LOCALIZE = {
    "hit_rate": "hit rate",
    "iou50_rate": "films whose best box has IoU 0.5 with a lesion",
    "iou": "mean best IoU",
    "ap50": "AP50",
    "cam_in_lungs": "share of the map inside the lungs",
}


def cell(figure: dict[str, Any] | None) -> str:
    """A figure as `0.961 [0.956, 0.966], n 86`; a dash where there is none."""
    if not figure or figure.get("value") is None:
        return "-"
    low, high = figure["ci95"]
    digits = 1 if figure["value"] >= 2 else 3
    return f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}], n {figure['n']}"


def table(columns: dict[str, dict[str, Any]], rows: dict[str, str]) -> str:
    """A Markdown table: a row a figure, a column a set of films. Rows and columns without a figure are left out."""
    columns = {name: node for name, node in columns.items() if any(cell(node.get(key)) != "-" for key in rows)}
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for key, name in rows.items():
        cells = [cell(node.get(key)) for node in columns.values()]
        if any(text != "-" for text in cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figures_text() -> str:
    """The part of the page that lies between the markers."""
    cards = {
        stage: json.loads((WEIGHTS / stage / "card.json").read_text(encoding="utf-8"))["figures"]
        for stage in ("segment", "classify", "localize")
    }

    def sources(stage: str) -> dict[str, dict[str, Any]]:
        return {
            f"{source}, {split}": node
            for split, figures in cards[stage].items()
            for source, node in figures.get("by_source", {}).items()
        }

    segment = {"shenzhen, test": cards["segment"]["test"]}
    segment |= {
        f"{source}, left out of training": cards["segment"][f"without {source}"]
        for source in ("montgomery", "shenzhen")
    }
    guess = cards["localize"]["test"]["constant_guess"]
    localize = {
        **sources("localize"),
        "tbx11k, a constant guess": guess.get("by_source", {}).get("tbx11k", guess),
    }
    parts = [
        "### Segment",
        table(segment, SEGMENT),
        "### Classify",
        table(sources("classify"), CLASSIFY),
        "### Localize",
        table(localize, LOCALIZE),
    ]
    return "\n\n".join(parts)


def filled(page: str) -> str:
    """The page with its figures as the cards have them."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{figures_text()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
