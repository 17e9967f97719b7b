"""The two collections of Qatar University and the University of Dhaka, put together from other sets.

Trees: their pages, kaggle.com/datasets/tawsifurrahman/tuberculosis-tb-chest-xray-dataset and
.../covid19-radiography-database, with the README.md.txt that ships in each. Rahman T et al. Reliable tuberculosis
detection using chest X-ray with deep learning, segmentation and visualization. IEEE Access 2020;8:191586; Chowdhury MEH
et al. Can AI help in screening viral and COVID-19 pneumonia? IEEE Access 2020;8:132665; Rahman T et al. Exploring the
effect of image enhancement techniques on COVID-19 detection using chest X-ray images. Comput Biol Med 2021;132:104319.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cxr_pipeline.data.layouts.base import (
    Job,
    ManifestRow,
    copies_as_one,
    file_named,
    files_below,
    find_root,
    folder_named,
    wrong_folder,
)
from cxr_pipeline.data.tables import TableError, column_named
from cxr_pipeline.data.tables import read_table as read_any_table

# What addresses in the metadata say of the set that a film is from, by the importer's name.
_ORIGINS = {
    "rsna-pneumonia": "rsna",
    "chest-xray-pneumonia": "kermany",
    "ieee8023": "covidchestxray",
    "nlm.nih.gov": "montgomery or shenzhen",
}


def tbdb(folder: Path, job: Job) -> list[ManifestRow]:
    """Normal (NORM) and Tuberculosis (TB), 512x512 px::

        TB_Chest_Radiography_Database/
          Normal/Normal-1.png
          Tuberculosis/Tuberculosis-1.png
          Normal.metadata.xlsx  Tuberculosis.metadata.xlsx    FILE NAME, FORMAT, SIZE, URL

    Tuberculosis is from the NLM's two sets, Belarus and NIAID; normal films are from the RSNA challenge and the NLM's.
    Class follows the place: a network that tells places apart looks good here. Some TB films are photographs.

    Patients are unknown, and each film counts as one. Splits: none; put it into training only. Column `origin`: the
    address in the metadata, where the package openpyxl is installed, which reads them; `leakage`: the importer of the
    set that this is.
    """
    return _collection(folder, job, tbdb, {"Normal": ("NORM", []), "Tuberculosis": ("TB", ["Tuberculosis"])})


def covidradiography(folder: Path, job: Job) -> list[ManifestRow]:
    """COVID (NTB), Lung_Opacity (NTB), Viral Pneumonia (NTB) and Normal (NORM); films 299x299 px, masks 256x256 px::

        COVID-19_Radiography_Dataset/
          COVID/images/COVID-1.png               COVID/masks/COVID-1.png
          Lung_Opacity/images/...                Lung_Opacity/masks/...
          Normal/images/...                      Normal/masks/...
          Viral Pneumonia/images/...             Viral Pneumonia/masks/...
          COVID.metadata.xlsx ...                FILE NAME, FORMAT, SIZE, URL

    The release of 2020 serves too: `COVID-19/`, `NORMAL/` and `Viral Pneumonia/` with the films in them, no masks.

    Masks were drawn by a network and looked over by its makers; they are scaled to the film when read. Class follows
    the place: Viral Pneumonia are Kermany's children, Lung_Opacity the RSNA challenge, COVID many web pages.

    Patients are unknown, and each film counts as one. Splits: none; put it into training only. `origin` and `leakage`:
    see `tbdb`.
    """
    return _collection(
        folder,
        job,
        covidradiography,
        {
            "COVID": ("NTB", ["COVID-19"]),
            "Lung_Opacity": ("NTB", ["Lung Opacity"]),
            "Normal": ("NORM", []),
            "Viral Pneumonia": ("NTB", ["Viral Pneumonia"]),
        },
    )


# Other names of the classes' folders.
_NAMES = {"COVID": ("COVID", "COVID-19"), "Viral Pneumonia": ("Viral Pneumonia", "ViralPneumonia")}


def _collection(
    folder: Path, job: Job, importer: Callable[..., object], classes: dict[str, tuple[str, list[str]]]
) -> list[ManifestRow]:
    name = importer.__name__
    pieces = {
        f"the folder {own}/": lambda path, own=own: folder_named(path, *_NAMES.get(own, (own,))) is not None
        for own in ("Normal", next(own for own in classes if own != "Normal"))
    }
    root = find_root(folder, pieces, importer)
    films, empty = [], []
    for own, (label, findings) in classes.items():
        home = folder_named(root, *_NAMES.get(own, (own,)))
        if home is None or next(files_below(home), None) is None:
            empty.append(own)
            continue
        images = folder_named(home, "images") or home
        masks = folder_named(home, "masks")
        table = file_named(root, f"{home.name}.metadata.xlsx", f"{own}.metadata.xlsx")
        origins = _origins(table, job) if table is not None else {}
        for path in (path for path in files_below(images) if masks is None or masks not in path.parents):
            mask = masks / path.name if masks is not None and images != home else None
            origin = origins.get(path.stem.lower(), "")
            films.append(
                ManifestRow(
                    path,
                    patient=f"{name}-{path.stem}",
                    label=label,
                    own=own,
                    source=name,
                    findings=list(findings),
                    mask=mask if mask is not None and mask.is_file() else None,
                    extra={
                        "origin": origin,
                        "leakage": next((note for part, note in _ORIGINS.items() if part in origin.lower()), ""),
                    },
                )
            )
    if len(classes) - len(empty) < 2:
        raise wrong_folder(folder, importer, f"no film lies in {', '.join(empty)}. Is the download whole?")
    if empty:
        job.note(f"no film of {', '.join(empty)}: is the download whole? (the release of 2020 has no Lung_Opacity)")
    job.note("patients are unknown, and the films are other sets': use it for training only, never to measure on")
    return copies_as_one(films, job)


def _origins(path: Path, job: Job) -> dict[str, str]:
    """Address by file name without suffix, in lower case: the metadata writes NORMAL-1 for Normal-1.png."""
    try:
        read = read_any_table(path)
    except TableError as error:
        text = f"column `origin` stays empty for films of {path.name}: {error}"
        job.note(text)
        return {}
    name, address = (column_named(wanted, read.columns) for wanted in ("FILE NAME", "URL"))
    return {} if name is None or address is None else {row[name].lower(): row[address] for row in read.rows}
