"""The two collections of Qatar University and the University of Dhaka, put together from other sets.

Trees: their pages, kaggle.com/datasets/tawsifurrahman/tuberculosis-tb-chest-xray-dataset and
.../covid19-radiography-database, with the README.md.txt that ships in each. Rahman T et al. Reliable tuberculosis
detection using chest X-ray with deep learning, segmentation and visualization. IEEE Access 2020;8:191586; Chowdhury MEH
et al. Can AI help in screening viral and COVID-19 pneumonia? IEEE Access 2020;8:132665; Rahman T et al. Exploring the
effect of image enhancement techniques on COVID-19 detection using chest X-ray images. Comput Biol Med 2021;132:104319.
"""

from __future__ import annotations

from pathlib import Path

from cxr_pipeline.data.layouts.base import Film, Job, copies_as_one, files_below, find_root

# What addresses in the metadata say of the set that a film is from, by the importer's name.
_ORIGINS = {
    "rsna-pneumonia": "rsna",
    "chest-xray-pneumonia": "kermany",
    "ieee8023": "covidchestxray",
    "nlm.nih.gov": "montgomery or shenzhen",
}


def tbdb(folder: Path, job: Job) -> list[Film]:
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


def covidradiography(folder: Path, job: Job) -> list[Film]:
    """COVID (NTB), Lung_Opacity (NTB), Viral Pneumonia (NTB) and Normal (NORM); films 299x299 px, masks 256x256 px::

        COVID-19_Radiography_Dataset/
          COVID/images/COVID-1.png               COVID/masks/COVID-1.png
          Lung_Opacity/images/...                Lung_Opacity/masks/...
          Normal/images/...                      Normal/masks/...
          Viral Pneumonia/images/...             Viral Pneumonia/masks/...
          COVID.metadata.xlsx ...                FILE NAME, FORMAT, SIZE, URL

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


def _collection(folder: Path, job: Job, importer: object, classes: dict[str, tuple[str, list[str]]]) -> list[Film]:
    name = importer.__name__
    needed = next(own for own in classes if own != "Normal")
    root = find_root(folder, lambda path: (path / "Normal").is_dir() and (path / needed).is_dir(), importer)
    films, absent = [], []
    for own, (label, findings) in classes.items():
        home = root / own if (root / own).is_dir() else root / own.replace("_", " ")  # the 2021 release has a blank
        if not home.is_dir():
            absent.append(own)
        images = home / "images" if (home / "images").is_dir() else home
        origins = _origins(root / f"{own}.metadata.xlsx", job)
        for path in files_below(images):
            mask = home / "masks" / path.name
            origin = origins.get(path.stem.lower(), "")
            films.append(
                Film(
                    path,
                    patient=f"{name}-{path.stem}",
                    label=label,
                    own=own,
                    source=name,
                    findings=list(findings),
                    mask=mask if images != home and mask.is_file() else None,
                    more={
                        "origin": origin,
                        "leakage": next((said for part, said in _ORIGINS.items() if part in origin.lower()), ""),
                    },
                )
            )
    if absent:
        job.note(f"no folder {', '.join(absent)}")
    job.note("patients are unknown, and the films are other sets': use it for training only, never to measure on")
    return copies_as_one(films, job)


def _origins(path: Path, job: Job) -> dict[str, str]:
    """Address by file name without suffix, in lower case: the metadata writes NORMAL-1 for Normal-1.png."""
    if not path.is_file():
        return {}
    import pandas as pd

    try:
        table = pd.read_excel(path, dtype=str).fillna("")
    except ImportError:
        text = "column `origin` stays empty: openpyxl, which reads the metadata, is missing (pip install openpyxl)"
        if text not in job.notes:
            job.note(text)
        return {}
    except Exception as error:  # openpyxl raises whatever it likes on damaged files
        job.note(f"{path.name} cannot be read ({type(error).__name__}): column `origin` stays empty for its films")
        return {}
    table.columns = [str(name).strip().upper() for name in table.columns]
    if not {"FILE NAME", "URL"} <= set(table.columns):
        return {}
    return dict(zip(table["FILE NAME"].str.lower(), table["URL"], strict=True))
