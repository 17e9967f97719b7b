"""Public data sets, as people download them, and how each becomes a manifest. Imports nothing heavy.

Each importer is a function `name(root, job) -> list[ManifestRow]` in a module here; its docstring draws the tree that
it expects, and says what the labels mean. `LAYOUTS` says of each what a person should know before training on it;
docs/data.md shows the same as a table, made by docs/data.py.

Somebody else's package adds a data set by an entry point of the group `cxr_pipeline.layouts`, whose object is a
`Layout`; its `module` is then the whole name of the module that holds the importer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cxr_pipeline.configs.errors import CxrError

SPLITS_BY_PATIENT = "none; training splits by patient"


class ExternalLayoutError(CxrError, RuntimeError):
    """A data set of another package that cannot be loaded."""


@dataclass(frozen=True)
class Layout:
    """A data set that can be imported.

    Attributes:
        module: where its importer lies, under `data.layouts`; the function is called as the data set in `LAYOUTS`.
        title: its name in full, and where it is from.
        holds: what of it reaches the manifest.
        splits: the splits that the manifest gets.
        licence: terms of the films. They stay with the films, whoever imports them.
        citation: what its makers ask to cite.
        leakage: films that it shares with other sets, and other reasons not to believe a figure on it.
    """

    module: str
    title: str
    holds: str
    splits: str
    licence: str
    citation: str
    leakage: str


LAYOUTS: dict[str, Layout] = {
    "montgomery": Layout(
        "nlm",
        "Montgomery County, tuberculosis screening (USA)",
        "138 films, 58 with TB; lung masks; age, sex, reading",
        SPLITS_BY_PATIENT,
        "public, U.S. National Library of Medicine; not to be passed on",
        "Jaeger et al. 2014, doi:10.3978/j.issn.2223-4292.2014.11.20",
        "in `tbx11k --extra` and in `tbdb`",
    ),
    "shenzhen": Layout(
        "nlm",
        "Shenzhen No. 3 People's Hospital (China)",
        "662 films, 336 with TB; 566 lung masks where downloaded; age, sex, reading",
        SPLITS_BY_PATIENT,
        "public, U.S. National Library of Medicine; not to be passed on",
        "Jaeger et al. 2014, doi:10.3978/j.issn.2223-4292.2014.11.20; masks: Stirenko et al. 2018, arXiv:1803.01199",
        "in `tbx11k --extra` and in `tbdb`",
    ),
    "jsrt": Layout(
        "jsrt",
        "Japanese Society of Radiological Technology, with SCR masks (Japan)",
        "247 films, 154 with a lung nodule; lung masks; a box a nodule; age, sex",
        "none; `fold` is SCR's",
        "research use, registration with JSRT; SCR: research use",
        "Shiraishi et al. 2000, doi:10.2214/ajr.174.1.1740071; "
        "masks: van Ginneken et al. 2006, doi:10.1016/j.media.2005.02.002",
        "none known; scanned films of the 1990s, chosen for their nodules",
    ),
    "tbx11k": Layout(
        "tbx11k",
        "TBX11K (China)",
        "8,400 labelled films of 512 px: healthy, sick without TB, TB; boxes of active and of healed TB",
        "official train and val; the labels of test are not public",
        "non-commercial research",
        "Liu et al. 2020, doi:10.1109/CVPR42600.2020.00272; Liu et al. 2023, doi:10.1109/TPAMI.2023.3330825",
        "imgs/extra copies Montgomery, Shenzhen, DA and DB: left out, or marked with `--extra`; some films lie twice, "
        "also in train and val: equal files are one patient's and leave train",
    ),
    "nih": Layout(
        "nih",
        "ChestX-ray14, NIH Clinical Center (USA)",
        "112,120 films, 14 findings mined from reports; 984 boxes; age, sex, view",
        "official test; val by patient from the official train_val",
        "free use with citation and a link",
        "Wang et al. 2017, doi:10.1109/CVPR.2017.369",
        "all films of `rsna` are from here, and so most normal ones of `covidradiography` and `tbdb`",
    ),
    "chexpert": Layout(
        "chexpert",
        "CheXpert, Stanford (USA)",
        "223,648 films, 191,229 of them frontal; 14 observations, `uncertain` and `negative` too; age, sex, view",
        "official train and valid (as val), and test where its table is there",
        "Stanford University research use agreement",
        "Irvin et al. 2019, doi:10.1609/aaai.v33i01.3301590",
        "none known",
    ),
    "kermany": Layout(
        "pneumonia",
        "Chest X-Ray Images (Pneumonia), Guangzhou (China)",
        "5,856 films of children of 1 to 5 years, normal or pneumonia, bacterial or viral",
        "official test; val by patient from the official train and val",
        "CC BY 4.0",
        "Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010",
        "in `covidradiography`; children: beside adults, a network learns age",
    ),
    "tbdb": Layout(
        "qatar",
        "TB Chest Radiography Database (several places)",
        "4,200 films, 700 with TB",
        "none, and patients unknown: put it into training only",
        "as its parts state",
        "Rahman et al. 2020, doi:10.1109/ACCESS.2020.3031384",
        "holds films of `montgomery`, `shenzhen` and `rsna`; class follows the place",
    ),
    "covidradiography": Layout(
        "qatar",
        "COVID-19 Radiography Database (several places)",
        "21,165 films: COVID-19, lung opacity, viral pneumonia, normal; lung masks drawn by a network",
        "none, and patients unknown: put it into training only",
        "as its parts state",
        "Chowdhury et al. 2020, doi:10.1109/ACCESS.2020.3010287; "
        "Rahman et al. 2021, doi:10.1016/j.compbiomed.2021.104319",
        "holds films of `rsna` (and so of `nih`), `kermany` and `covidchestxray`; class follows the place",
    ),
    "covidchestxray": Layout(
        "covidchestxray",
        "covid-chestxray-dataset (journals and web pages)",
        "frontal films with a finding each, mostly COVID-19 and other pneumonia; age, sex, view, licence of each",
        SPLITS_BY_PATIENT,
        "of each picture, in the column `licence`",
        "Cohen et al. 2020, arXiv:2006.11988",
        "in `covidradiography`; journal figures with arrows and letters",
    ),
    "rsna": Layout(
        "pneumonia",
        "RSNA Pneumonia Detection Challenge 2018 (USA)",
        "26,684 DICOM films: lung opacity, another abnormality, normal; a box an opacity",
        "none: the official test has no labels; patients unknown",
        "RSNA challenge terms: non-commercial, research and education",
        "Shih et al. 2019, doi:10.1148/ryai.2019180041",
        "all films are from `nih`, several of a patient under different names; many in `covidradiography`",
    ),
    "vindr": Layout(
        "vindr",
        "VinDr-CXR, Hanoi (Vietnam)",
        "18,000 DICOM films, 28 findings as most radiologists saw them, among them TB; boxes they agree on",
        "official test; val by film from the official train",
        "PhysioNet credentialed health data licence 1.5.0",
        "Nguyen et al. 2022, doi:10.1038/s41597-022-01498-w",
        "none known; patients unknown",
    ),
}

GROUP = "cxr_pipeline.layouts"


def layouts() -> dict[str, Layout]:
    """All data sets by name: those here, then those of other packages, which take no name of these."""
    from importlib.metadata import entry_points

    found = dict(LAYOUTS)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name in found:
            continue
        try:
            layout = point.load()
        except Exception as error:  # another package's fault must not stop the importers here
            raise ExternalLayoutError(
                f"the data set {point.name!r} of {point.value} cannot be loaded ({error})"
            ) from error
        if not isinstance(layout, Layout):
            raise ExternalLayoutError(f"{point.value} is no Layout, so {point.name!r} cannot be imported")
        found[point.name] = layout
    return found


def importer_of(name: str, layout: Layout) -> Callable[..., Any]:
    """The function `name(folder, job) -> list[ManifestRow]` of a data set."""
    module = layout.module if "." in layout.module else f"cxr_pipeline.data.layouts.{layout.module}"
    return getattr(importlib.import_module(module), name)


def table_of_layouts() -> str:
    """The data sets as the table of docs/data.md."""
    rows = [
        "| name | data set | what it has | splits | licence | cite | known leakage |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, layout in LAYOUTS.items():
        cells = (layout.title, layout.holds, layout.splits, layout.licence, layout.citation, layout.leakage)
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)
