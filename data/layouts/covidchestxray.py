"""covid-chestxray-dataset.

Tree and columns: the set's repository, github.com/ieee8023/covid-chestxray-dataset (README.md, SCHEMA.md). Cohen JP et
al. COVID-19 image data collection: prospective predictions are the future. MELBA 2020, arXiv:2006.11988.
"""

from __future__ import annotations

from pathlib import Path

from cxr_pipeline.data.layouts.base import Job, ManifestRow, age_of, find_root, read_table, sex_of
from cxr_pipeline.data.tables import row_dicts

FRONTAL = ("PA", "AP", "AP Supine", "AP Erect")


def covidchestxray(folder: Path, job: Job) -> list[ManifestRow]:
    """Films of journals and web pages, of every size; arrows and letters on many::

        covid-chestxray-dataset/
          metadata.csv        patientid, finding, view, modality, folder, filename, ...
          images/...

    Modality X-ray and views PA, AP, AP Supine, AP Erect are taken; lateral ones with `--all-views`. `finding` is a path
    such as Pneumonia/Viral/COVID-19: each of its parts becomes a finding. Tuberculosis is TB, No Finding NORM, other
    findings NTB; "todo" and "Unknown" leave the label empty.

    Patients: `patientid`. Splits: none. The licence of each picture is in the column `licence`.
    """
    pieces = {
        "metadata.csv": lambda path: (path / "metadata.csv").is_file(),
        "the folder images/": lambda path: (path / "images").is_dir(),
    }
    root = find_root(folder, pieces, covidchestxray)
    columns = ("patientid", "finding", "view", "modality", "folder", "filename")
    table = read_table(root / "metadata.csv", columns, covidchestxray)
    films, others = [], 0
    for row in row_dicts(table):
        lateral = row["view"] == "L"
        if row["modality"] != "X-ray" or not (row["view"] in FRONTAL or (job.all_views and lateral)):
            others += 1
            continue
        findings = [part for part in row["finding"].split("/") if part.lower() not in ("", "todo", "unknown")]
        if "Tuberculosis" in findings:
            label = "TB"
        elif "No Finding" in findings:
            label = "NORM"
        else:
            label = "NTB" if findings else ""
        films.append(
            ManifestRow(
                root / row["folder"] / row["filename"],
                patient=f"covidchestxray-{row['patientid']}",
                label=label,
                own=row["finding"],
                source="covidchestxray",
                findings=findings,
                extra={
                    "age": age_of(row.get("age", "")),
                    "sex": sex_of(row.get("sex", "")),
                    "view": row["view"],
                    "licence": row.get("license", ""),
                },
            )
        )
    if others:
        job.note(f"{others} rows of metadata.csv are CT or another view than {', '.join(FRONTAL)}, and left out")
    unlabelled = sum(not film.label for film in films)
    if unlabelled:
        job.note(f"{unlabelled} films have no finding yet (todo, Unknown) and so no label")
    return job.existing(films, "metadata.csv")
